"""What happens around the answering: the start in the background, changes of the configuration, the end.

The server is bound before any of it, so that /health answers within a second; requests for models that are not known
yet are refused until the first scan is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from typing import Protocol

from app.announce import Announcer
from app.config import Settings
from app.configured import without_effect
from app.lazy import LazyApp
from app.reload import ConfigReloader
from app.state import AppState
from app.upstream import Upstreams
from models.fetching.fetcher import Fetcher
from models.sources import FOLDER, Sources
from models.types import ModelOverrides, ModelSpec
from utils.logging import logger


class Scans(Protocol):
    """As `models.discovery.scanner.Scanner`."""

    def set_overrides(self, overrides: Mapping[str, ModelOverrides]) -> None: ...


class Watches(Protocol):
    """As `models.discovery.watch.FolderWatcher`."""

    async def start(self) -> list[ModelSpec]: ...

    async def rescan(self) -> list[ModelSpec]: ...

    async def stop(self) -> None: ...


OnChange = Callable[[Sequence[ModelSpec]], None]
MakeWatcher = Callable[[OnChange], Watches]


class Lifecycle:
    """Starts and ends what the app consists of; the only writer of `AppState.phase`."""

    def __init__(
        self,
        state: AppState,
        scanner: Scans,
        make_watcher: MakeWatcher,
        upstreams: Upstreams,
        control: LazyApp,
        sources: Sources,
        fetcher: Fetcher,
    ) -> None:
        self._state = state
        self._sources = sources
        self._fetcher = fetcher
        self._scanner = scanner
        self._make_watcher = make_watcher
        self._watcher: Watches | None = None
        self._upstreams = upstreams
        self._control = control
        self._settings = state.settings
        self._reloader = ConfigReloader(state.settings, self._apply, self._on_config_error)
        self._tasks: list[asyncio.Task[None]] = []
        self._announcer = Announcer(state.settings.models_dir, state.manager.servable.refusal)
        self._missing: Set[str] = frozenset()  # what was told of what is configured without effect

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Entering returns at once; the work goes on in the background."""
        self._control.begin()
        work = (self._count_events(), self._begin(), self._reloader.run())
        self._tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            await self._end()

    async def drain(self) -> None:
        """Refuses new requests, lets running ones finish up to shutdown_timeout_s, ends all engines."""
        self._state.phase = "stopping"
        logger.info("Shutting down: running answers have {:g} s to finish.", self._settings.shutdown_timeout_s)
        await self._stop_tasks()
        self._state.manager.events.close()  # who follows them would hold up the end
        await self._state.manager.close(self._settings.shutdown_timeout_s)

    async def hurry(self) -> None:
        """As `drain`, without waiting for running answers."""
        self._state.phase = "stopping"
        logger.warning("Shutting down at once: running answers are cut off.")
        self._state.manager.events.close()  # the second signal may have come before the first one got so far
        await self._state.manager.close(0.0)

    async def _begin(self) -> None:
        self._fetcher.configure(self._settings.adapter_sources())
        await self._guarded(self._watch(), "The models folder cannot be watched")
        await self._guarded(self._state.manager.start(), "The engines cannot be started")
        if self._state.phase == "starting":
            self._state.phase = "ready"
        self._state.scanned.set()
        self._tell_missing()

    async def _count_events(self) -> None:
        """For the metrics."""
        metrics = self._state.metrics
        async with self._state.manager.events.subscribe() as events:
            async for event in events:
                if event.kind == "state":
                    metrics.count_change(event.data["model"], event.data["trigger"])
                elif event.kind == "swap":
                    metrics.count_swap(event.data["seconds"], event.data["evicted"])

    async def _watch(self) -> None:
        self._watcher = self._make_watcher(self._on_models)
        self._on_models(await self._watcher.start())

    async def _guarded(self, work: Awaitable[object], what: str) -> None:
        try:
            await work
        except Exception as error:  # the top of a background task: the server goes on and says what is wrong
            self._state.scan_error = f"{what}: {error}"
            logger.exception("{}", what)

    def _on_models(self, specs: Sequence[ModelSpec]) -> None:
        self._sources.put(FOLDER, specs)
        self._announcer.tell(specs)
        if self._state.phase == "ready":  # before that, servers elsewhere have not said yet what they have
            self._tell_missing()

    def _tell_missing(self) -> None:
        missing = without_effect(self._settings, self._state.manager.catalog)
        for sentence in sorted(missing - self._missing):
            logger.warning("{}", sentence)
        self._missing = missing

    async def _apply(self, old: Settings, new: Settings) -> None:
        self._settings = new
        self._state.settings = new
        sleep_bytes = self._state.device.sleep_bytes
        if old.policy(sleep_bytes) != new.policy(sleep_bytes):
            self._state.manager.set_policy(new.policy(sleep_bytes))
        self._fetcher.configure(new.adapter_sources())
        if old.overrides() != new.overrides():
            self._sources.set_overrides(new.overrides())
            self._scanner.set_overrides(new.overrides())
            if self._watcher is not None:
                await self._guarded(self._watcher.rescan(), "The models folder cannot be read")
        if self._state.phase == "ready":
            self._tell_missing()

    def _on_config_error(self, message: str | None) -> None:
        self._state.config_error = message

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):  # it must not keep the engines from being ended
                logger.opt(exception=result).error("A background task had failed")
        self._tasks = []
        if self._watcher is not None:
            await self._watcher.stop()
        await self._fetcher.close()

    async def _end(self) -> None:
        await self._stop_tasks()
        if self._state.phase != "stopping":  # the server ended without a signal
            self._state.phase = "stopping"
            await self._state.manager.close(0.0)
        await self._upstreams.close()
