"""Keeps adapters from S3 storage in the state folder and in the catalog: the configured ones, and those asked for.

A configured adapter that is here already is served at once, whatever the storage says; then the storage is asked, and
again from time to time. One that a client asks for is listed once it is here in full.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.discovery.folder import list_folder
from models.discovery.layouts import Found
from models.discovery.safety import Boundary
from models.discovery.scanner import judge
from models.errors import AdapterPathRefused, Busy, ModelUnusable, Unavailable
from models.fetching.address import Address, Configured
from models.fetching.storage import FetchFailed, Storage, is_set_up
from models.fetching.store import Progress, Store
from models.fetching.threads import in_thread
from models.types import Availability, ModelOverrides, ModelSpec, Task

log = logging.getLogger(__name__)

CHECK_EVERY_S = 300.0  # what is configured; a listing of two files
RETRY_S, MAX_RETRY_S = 5.0, 300.0  # after a failure, doubled each time
PROGRESS_S = 2.0  # the catalog is made anew with each step
FETCHES_AT_ONCE = 2
MAX_FETCHES = 64  # that run or wait their turn on clients' words
MAX_WAIT_S = 300.0  # of a client
STOP_WAIT_S = 2.0  # for threads that are writing
OVERTIME_S = 5.0  # for a thread to notice that its fetch took too long


@dataclass(frozen=True, slots=True)
class _Running:
    progress: Progress
    task: asyncio.Task[Path]


class Fetcher:
    """`put` is told all adapters that are known, whenever that changes."""

    def __init__(
        self,
        folder: Path,
        put: Callable[[Sequence[ModelSpec]], None],
        max_bytes: int,
        *,
        check_every_s: float = CHECK_EVERY_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self._store = Store(folder, Storage(), max_bytes)
        self._put = put
        self._check_every_s = check_every_s
        self._retry_s = retry_s
        self._configured: dict[str, Configured] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._specs: dict[str, ModelSpec] = {}
        self._running: dict[Address, _Running] = {}
        self._slots = asyncio.Semaphore(FETCHES_AT_ONCE)

    def configure(self, configured: Mapping[str, Configured]) -> None:
        """By model id; what was configured before and is not among them goes from the catalog."""
        before, self._configured = self._configured, dict(configured)
        for model_id in before.keys() | configured.keys():
            if before.get(model_id) == configured.get(model_id):
                continue
            if keeper := self._keepers.pop(model_id, None):
                keeper.cancel()
            if one := configured.get(model_id):
                self._keepers[model_id] = keeper = asyncio.create_task(self._keep(model_id, one))
                keeper.add_done_callback(_report)
            else:
                self._forget([model_id])

    async def fetch(self, address: Address) -> ModelSpec:
        """The adapter at `address`, in the catalog, as the storage has it now. Raises RoundhouseError.

        Where the storage cannot be asked, it is the one that was fetched before, if there is one.
        """
        path = await self._asked(address)
        same = (name for name, one in self._configured.items() if one.address == address)
        model_id = next(same, str(address))
        one = self._configured.get(model_id, Configured(address, ModelOverrides()))
        spec = await in_thread(lambda: _judged(model_id, path, one))
        if spec.availability is not Availability.AVAILABLE:
            raise ModelUnusable(
                f"The adapter {address} cannot be used: {'; '.join(spec.reasons)}.", param="adapter_path"
            )
        self._set(spec)
        asked_for = self._specs.keys() - self._configured.keys()
        self._forget([name for name in asked_for if not self._specs[name].path.exists()])  # they made room
        return spec

    async def close(self) -> None:
        """Ends what is under way; half-fetched files are begun anew at the next start."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for running in self._running.values():
            running.progress.stop.set()
        if tasks := [running.task for running in self._running.values()]:
            _, pending = await asyncio.wait(tasks, timeout=STOP_WAIT_S)
            for task in pending:
                task.cancel()

    # -- what is configured ----------------------------------------------------------------------------------------

    async def _keep(self, model_id: str, one: Configured) -> None:
        """Runs as long as `one` is configured."""
        path = await in_thread(lambda: self._store.present(one.address))
        await self._list(model_id, one, path)
        retry_s = self._retry_s
        while True:
            pause_s = self._check_every_s
            try:
                newest = await self._watched(model_id, one, listed=path is not None)
                await self._list(model_id, one, newest)
                if newest != path:
                    path = newest
                    log.info("%s: fetched from %s", model_id, one.address)
                retry_s = self._retry_s
            except FetchFailed as error:
                pause_s, retry_s = retry_s, min(2 * retry_s, MAX_RETRY_S)
                log.warning("%s: %s cannot be fetched, again in %.0f s: %s", model_id, one.address, pause_s, error)
                if path is None:
                    reason = f"{one.address} cannot be fetched: {error.message}; it is tried again"
                    self._set(_unlisted(model_id, one, Availability.UNUSABLE, reason))
            await asyncio.sleep(pause_s)

    async def _watched(self, model_id: str, one: Configured, *, listed: bool) -> Path:
        """As `_update`; says meanwhile how far it is, unless a version is `listed` already."""
        running = self._update(one.address)
        while not listed and not running.task.done():
            reason = f"being fetched from {one.address}: {running.progress}"
            self._set(_unlisted(model_id, one, Availability.INCOMPLETE, reason))
            await asyncio.wait([running.task], timeout=PROGRESS_S)
        return await asyncio.shield(running.task)

    async def _list(self, model_id: str, one: Configured, path: Path | None) -> None:
        if path is not None:
            self._set(await in_thread(lambda: _judged(model_id, path, one)))

    # -- fetching --------------------------------------------------------------------------------------------------

    async def _asked(self, address: Address) -> Path:
        """For a client: raises RoundhouseError."""
        if not is_set_up() and all(one.address != address for one in self._configured.values()):
            text = "No S3 storage is set up here: the server needs AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, …"
            raise AdapterPathRefused(text, param="adapter_path")
        if address not in self._running and len(self._running) >= MAX_FETCHES:
            raise Busy(f"{MAX_FETCHES} adapters are being fetched already. Try again later.", retry_after_s=5.0)
        running = self._update(address)
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                return await asyncio.shield(running.task)
        except TimeoutError:
            text = f"{address} is still being fetched ({running.progress}). Ask again later."
            raise Busy(text, retry_after_s=5.0) from None
        except FetchFailed as error:
            return await self._instead(address, error)

    async def _instead(self, address: Address, error: FetchFailed) -> Path:
        """What was fetched before, where the storage cannot be asked now."""
        text = f"The adapter {address} cannot be fetched: {error.message}."
        if not error.passing:
            raise ModelUnusable(text, param="adapter_path") from error
        path = await in_thread(lambda: self._store.present(address))
        if path is None:
            raise Unavailable(text, param="adapter_path", retry_after_s=self._retry_s) from error
        log.warning("%s Served as it was fetched before.", text)
        return path

    def _update(self, address: Address) -> _Running:
        """Begins to fetch, or joins who does already."""
        if running := self._running.get(address):
            return running
        progress = Progress()
        task = asyncio.create_task(self._fetched(address, progress))
        running = self._running[address] = _Running(progress, task)
        task.add_done_callback(lambda _: self._running.pop(address))
        task.add_done_callback(lambda _: task.cancelled() or task.exception())  # heard, also if nobody waits any more
        return running

    async def _fetched(self, address: Address, progress: Progress) -> Path:
        async with self._slots:
            in_use = [*(one.address for one in self._configured.values()), *self._running]
            try:
                # A storage that sends a byte now and then keeps its thread in a read, but not the place of others.
                async with asyncio.timeout(progress.deadline_s + OVERTIME_S - time.monotonic()):
                    return await in_thread(lambda: self._store.update(address, progress, in_use))
            except TimeoutError:
                progress.stop.set()
                raise FetchFailed("the storage is too slow", passing=True) from None

    # -- what is listed --------------------------------------------------------------------------------------------

    def _set(self, spec: ModelSpec) -> None:
        if self._specs.get(spec.id) != spec:
            self._specs[spec.id] = spec
            self._put(list(self._specs.values()))

    def _forget(self, model_ids: Iterable[str]) -> None:
        gone = [model_id for model_id in model_ids if self._specs.pop(model_id, None)]
        if gone:
            self._put(list(self._specs.values()))


def _report(keeper: asyncio.Task[None]) -> None:
    if not keeper.cancelled():
        log.critical(
            "a fetched adapter is not kept any more: this is a bug, please report it", exc_info=keeper.exception()
        )


def _judged(model_id: str, path: Path, one: Configured) -> ModelSpec:
    """By the same rules as a folder of the models folder; pickles are never fetched, so never allowed."""
    found = Found(model_id, list_folder(str(path), Boundary(str(path))), f"fetched from {one.address}")
    return judge(found, one.overrides, {})


def _unlisted(model_id: str, one: Configured, availability: Availability, reason: str) -> ModelSpec:
    """Stands in the catalog for an adapter that is not here."""
    return ModelSpec(
        id=model_id,
        path=Path(str(one.address)),
        task=Task.ADAPTER,
        engine="vllm",
        availability=availability,
        aliases=one.overrides.aliases,
        reasons=(reason,),
        overrides=one.overrides,
    )
