"""Carries out the scheduler's commands on real engines, one task each, and tells how they ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from engines.base import Engine, EngineFactory, EngineStartError, SleepFailed, TakesAdapters
from models.types import LoadReport, ModelSpec, SleepReport

log = logging.getLogger(__name__)

MAX_CAUSE_CHARS = 1000  # of a failure, for clients …
MAX_TAIL_CHARS = 1500  # … and of the log's end after it; the whole of it is in the log file
SLEEP_SLACK_S = 5.0  # beyond its limit, for an engine to keep its promise to fall asleep or wake within that
MEASURE_WAIT_S = 5.0  # for an explicit load to tell the memory, too
STOP_RETRY_S = 1.0  # after an engine could not be confirmed gone: its memory must not be given away before


class Outcomes(Protocol):
    """What the runner tells: each is an event of the manager's loop."""

    def loaded(self, model_id: str, report: LoadReport) -> None: ...
    def measured(self, model_id: str, memory_bytes: int) -> None: ...
    def load_failed(self, model_id: str, cause: str, *, interrupted: bool = False) -> None: ...
    def slept(self, model_id: str, report: SleepReport) -> None: ...
    def woken(self, model_id: str, wake_s: float) -> None: ...
    def sleep_failed(self, model_id: str, cause: str, *, forever: bool) -> None: ...
    def unloaded(self, model_id: str) -> None: ...
    def exited(self, model_id: str, cause: str) -> None: ...


@dataclass(slots=True)
class AdapterUse:
    """The requests that run with one adapter, in whichever content of its folder they began."""

    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def begin(self) -> None:
        self.running += 1
        self.idle.clear()

    def end(self) -> None:
        self.running -= 1
        if not self.running:
            self.idle.set()


@dataclass(slots=True)
class Resident:
    """A running engine, and what it was started from."""

    engine: Engine
    spec: ModelSpec
    adapters: dict[str, str | None]  # id → fingerprint of those that it serves; None: it may have it, in any content
    measured: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: bool = False  # it would use a grace only to fail its requests, which a fresh engine can still answer
    awake: bool = True  # what is sent to an engine that sleeps is never answered
    changing: asyncio.Task[None] | None = None  # its falling asleep or waking, while that is under way
    remote: bool = False  # a server elsewhere: there is nothing here to start, watch or measure
    adapter_locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    adapter_uses: dict[str, AdapterUse] = field(default_factory=dict)
    refused_adapters: dict[str, tuple[str, str]] = field(default_factory=dict)  # id → fingerprint, reason

    def made_for(self, spec: ModelSpec) -> bool:
        """True for its model, and for an adapter that it serves and whose folder has not changed since."""
        return spec.id == self.spec.id or self.adapters.get(spec.id) == spec.fingerprint

    def serves(self) -> tuple[str, ...]:
        """Ids of its adapters."""
        return tuple(sorted(adapter_id for adapter_id, content in self.adapters.items() if content is not None))


class Runner:
    """The engines of one device. Only the manager calls it."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._residents: dict[str, Resident] = {}
        self._failing: dict[Engine, str] = {}  # those whose load failed unexpectedly, until they are confirmed gone
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, model_id: str) -> Resident | None:
        return self._residents.get(model_id)

    def model_ids(self) -> list[str]:
        """Of every engine that there is, those that sleep included."""
        return list(self._residents)

    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    def load(self, spec: ModelSpec, adapters: list[ModelSpec], factory: EngineFactory, timeout_s: float) -> None:
        """Begins to load; ends in `loaded` or `load_failed`."""
        self._spawn(self._load(spec, adapters, factory, timeout_s), f"load {spec.id}")

    def connect(self, spec: ModelSpec, factory: EngineFactory) -> None:
        """Takes in a model that a server elsewhere serves, or takes it in anew."""
        self._residents[spec.id] = Resident(factory.create(spec), spec, {}, remote=True)
        self._residents[spec.id].measured.set()  # there is nothing to measure here

    def disconnect(self, model_id: str) -> None:
        """Forgets such a model; running answers go on."""
        resident = self._residents.get(model_id)
        if resident is not None and resident.remote:
            del self._residents[model_id]

    def sleep(self, model_id: str, level: int, timeout_s: float) -> None:
        """Begins to put the engine to sleep; ends in `slept`, `sleep_failed`, or `exited` if it ends meanwhile."""
        resident = self._residents[model_id]
        resident.awake = False
        resident.changing = self._spawn(self._sleep(model_id, resident, level, timeout_s), f"sleep {model_id}")

    def wake(self, model_id: str, timeout_s: float) -> None:
        """Begins to wake the engine; ends in `woken`, `sleep_failed`, or `exited` if it ends meanwhile."""
        resident = self._residents[model_id]
        resident.changing = self._spawn(self._wake(model_id, resident, timeout_s), f"wake {model_id}")

    def unload(self, model_id: str, grace_s: float) -> None:
        """Begins to end the engine; ends in `unloaded`. Nothing after `close`, which has ended every engine."""
        if not self._closed:
            self._spawn(self._unload(model_id, grace_s), f"unload {model_id}")

    async def close(self, grace_s: float) -> None:
        """Ends every task and engine; returns when all are confirmed gone, or what is not has been logged."""
        self._closed = True
        await self._cancel_all()
        engines = [*(resident.engine for resident in self._residents.values()), *self._failing]
        for ended in await asyncio.gather(*(engine.stop(grace_s) for engine in engines), return_exceptions=True):
            if isinstance(ended, BaseException):  # whoever made the engine makes sure of it once more
                log.error("an engine could not be ended in order: %s: %s", type(ended).__name__, ended)
        self._residents.clear()

    async def end_all(self, grace_s: float) -> None:
        """Ends every task and engine, whatever they were at; returns when all are confirmed gone. Then it may go on."""
        await self._cancel_all()
        engines = {resident.engine: model_id for model_id, resident in self._residents.items()} | self._failing
        await asyncio.gather(*(self._end(model_id, engine, grace_s) for engine, model_id in engines.items()))
        self._residents.clear()
        self._failing.clear()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, spec: ModelSpec, adapters: list[ModelSpec], factory: EngineFactory, timeout_s: float) -> None:
        began = time.monotonic()
        log.info("loading %s", spec.id)
        engine: Engine | None = None
        try:
            engine = factory.create(spec, adapters)
            report = await engine.start(timeout_s)
        except EngineStartError as error:
            log.error("loading %s failed: %s\n%s", spec.id, error.message, error.log_tail)
            self._outcomes.load_failed(spec.id, _cause(error), interrupted=error.interrupted)
            return
        except Exception as error:  # a factory's bug must fail one load, not leave the device busy for ever
            log.exception("loading %s failed unexpectedly", spec.id)
            if engine is not None:  # only an EngineStartError says that nothing of it is left
                self._failing[engine] = spec.id
                await self._end(spec.id, engine, 0)
                del self._failing[engine]
            self._outcomes.load_failed(spec.id, f"{type(error).__name__}: {error}."[:MAX_CAUSE_CHARS])
            return
        # One that takes them as it serves gets each when it is first needed: a broken one spoils no start.
        begun_with = () if isinstance(engine, TakesAdapters) else adapters
        self._residents[spec.id] = Resident(engine, spec, {adapter.id: adapter.fingerprint for adapter in begun_with})
        log.info("loaded %s in %.2f s (%s)", spec.id, time.monotonic() - began, report.started_by)
        self._spawn(self._watch(spec.id, engine), f"watch {spec.id}")
        self._outcomes.loaded(spec.id, report)
        # After the first waiters were let in: measuring takes a tenth of a second, which nobody should wait for.
        await self.measure(spec.id)

    async def measure(self, model_id: str) -> None:
        """Ends in `measured`, where there is something to tell."""
        resident = self._residents.get(model_id)
        if resident is None:
            return
        try:
            memory_bytes = await asyncio.to_thread(resident.engine.memory_bytes)
            if memory_bytes and self._residents.get(model_id) is resident:
                self._outcomes.measured(model_id, memory_bytes)
        except Exception:  # the estimate stays in force
            log.exception("the memory of %s cannot be measured", model_id)
        finally:
            resident.measured.set()

    async def wait_measured(self, model_id: str) -> None:
        """Returns once an engine was measured for the first time, or soon all the same."""
        resident = self._residents.get(model_id)
        if resident is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(MEASURE_WAIT_S):
                    await resident.measured.wait()

    async def _sleep(self, model_id: str, resident: Resident, level: int, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s + SLEEP_SLACK_S):
                report = await resident.engine.sleep(level, timeout_s)
        except Exception as error:
            self._report_sleep_failed(model_id, "falling asleep", error)
            return
        log.info("%s sleeps at level %d, after %.2f s", model_id, level, report.duration_s)
        self._outcomes.slept(model_id, report)

    async def _wake(self, model_id: str, resident: Resident, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s + SLEEP_SLACK_S):
                wake_s = await resident.engine.wake(timeout_s)
        except Exception as error:
            self._report_sleep_failed(model_id, "waking", error)
            return
        resident.awake = True
        resident.adapters = dict.fromkeys(resident.adapters)  # not every level keeps them; to put one in costs little
        log.info("woke %s in %.2f s", model_id, wake_s)
        self._outcomes.woken(model_id, wake_s)
        await self.measure(model_id)

    def _report_sleep_failed(self, model_id: str, doing: str, error: Exception) -> None:
        """Whatever it was, the engine cannot be trusted any more; only the engine itself can say that it never will."""
        if isinstance(error, SleepFailed):
            cause, forever = error.message, error.forever
            log.error("%s failed at %s: %s", model_id, doing, cause)
        else:
            cause, forever = f"{type(error).__name__}: {error}", False
            log.exception("%s failed at %s unexpectedly", model_id, doing, exc_info=error)
        self._outcomes.sleep_failed(model_id, f"{doing} failed: {cause}"[:MAX_CAUSE_CHARS], forever=forever)

    async def _unload(self, model_id: str, grace_s: float) -> None:
        resident = self._residents[model_id]
        await self._end(model_id, resident.engine, 0 if resident.hangs else grace_s)
        del self._residents[model_id]
        log.info("unloaded %s", model_id)
        self._outcomes.unloaded(model_id)

    async def _end(self, model_id: str, engine: Engine, grace_s: float) -> None:
        """Returns when the engine is confirmed gone, after as many tries as that takes."""
        while True:
            try:
                return await engine.stop(grace_s)
            except Exception:  # whatever it was: without confirmation the memory stays charged, so try again
                log.exception("%s could not be confirmed gone; trying again", model_id)
                await asyncio.sleep(STOP_RETRY_S)

    async def _watch(self, model_id: str, engine: Engine) -> None:
        report = await engine.wait_exited()
        resident = self._residents.get(model_id)
        if resident is None or resident.engine is not engine:
            return
        if resident.changing is not None:  # what it has to tell is about an engine that is gone
            resident.changing.cancel()
            await asyncio.wait([resident.changing])
        if self._residents.get(model_id) is resident:
            log.info("engine of %s ended: %s", model_id, report.reason)
            self._outcomes.exited(model_id, report.reason)


def _cause(error: EngineStartError) -> str:
    """One text for the client, bounded: the cause, and the end of the engine's log where there is one."""
    message = error.message[:MAX_CAUSE_CHARS].rstrip(".")
    tail = error.log_tail.strip()
    if len(tail) > MAX_TAIL_CHARS:
        kept = tail[-MAX_TAIL_CHARS:]
        tail = "… " + (kept.partition("\n")[2] or kept)  # from the beginning of a line on, where it has one
    return f"{message}. The end of its log: {tail}" if tail else f"{message}."


async def close_factories(factories: Mapping[str, EngineFactory]) -> None:
    """Ends what the factories share among their engines; one that fails at it must not keep the others from it."""
    ends = await asyncio.gather(*(factory.close() for factory in factories.values()), return_exceptions=True)
    for name, ended in zip(factories, ends, strict=True):
        if isinstance(ended, BaseException):
            log.error("the engine %s could not be closed in order: %s: %s", name, type(ended).__name__, ended)
