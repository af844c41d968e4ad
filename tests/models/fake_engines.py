"""Engines that a test moves by hand, at the seam of `engines.base`. No process, no waiting but for the test's word."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.base import Endpoint, EngineStartError, ExitReport, Verdict
from models.types import LoadReport, ModelSpec, Progress, SleepReport

MIB = 2**20
ASLEEP_BYTES = 12 * MIB


class FakeEngine:
    """Starts when `may_start` is set; ends when told, or when `crash` is called."""

    def __init__(self, factory: FakeFactory, spec: ModelSpec, adapters: Sequence[ModelSpec]) -> None:
        self.spec = spec
        self.adapters = [adapter.id for adapter in adapters]
        self._factory = factory
        self._exited = asyncio.Event()
        self.alive = False
        self.asleep = False
        self.memory = 120 * MIB
        self.slept: list[int] = []  # the levels, in order
        self.wakes = 0
        self.grace_s: float | None = None  # that it was last stopped with

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(uds=Path("/nonexistent") / self.spec.id)

    async def start(self, timeout_s: float) -> LoadReport:
        self.alive = True
        if self._factory.start_error is not None:
            raise self._factory.start_error
        try:
            await asyncio.wait_for(self._factory.may_start.wait(), timeout_s)
            if self._factory.failure:
                raise EngineStartError(self._factory.failure, "the last line")
        except BaseException:
            self.alive = False
            raise
        return LoadReport(duration_s=0.5, started_by="fork")

    async def stop(self, grace_s: float) -> None:
        self.grace_s = grace_s
        await asyncio.wait_for(self._factory.may_stop.wait(), 10)
        self.crash()

    def crash(self) -> None:
        self.alive = False
        self._exited.set()

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        self.slept.append(level)
        await self._factory.may_sleep.wait()
        if self._factory.sleep_error is not None:
            raise self._factory.sleep_error
        self.asleep = True
        return SleepReport(duration_s=0.1, device_bytes=ASLEEP_BYTES, host_bytes=self.spec.weights_bytes)

    async def wake(self, timeout_s: float) -> float:
        self.wakes += 1
        await self._factory.may_wake.wait()
        if self._factory.wake_error is not None:
            raise self._factory.wake_error
        self.asleep = False
        return 0.2

    async def progress(self) -> Progress:
        return Progress(None, 0.0)

    async def health(self) -> bool:
        return self.alive

    def memory_bytes(self) -> int:
        return self.memory

    async def wait_exited(self) -> ExitReport:
        await self._exited.wait()
        return ExitReport("it ended")


class FakeFactory:
    """Remembers every engine that it made."""

    name = "fake"

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.may_start = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_sleep = asyncio.Event()
        self.may_wake = asyncio.Event()
        self.let_all()
        self.failure: str | None = None
        self.start_error: Exception | None = None  # a bug: it leaves the engine alive
        self.levels: tuple[int, ...] = ()
        self.sleep_error: Exception | None = None
        self.wake_error: Exception | None = None
        self.closed = False

    def let_all(self) -> None:
        """Nothing is held back any more."""
        for gate in (self.may_start, self.may_stop, self.may_sleep, self.may_wake):
            gate.set()

    def accepts(self, spec: ModelSpec) -> Verdict:
        ok = spec.architecture != "Odd"
        return Verdict(ok, "it is a fake" if ok else "the architecture Odd is not known")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        return ("engine: it is a fake",)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return spec.weights_bytes

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> FakeEngine:
        self.engines.append(FakeEngine(self, spec, adapters))
        return self.engines[-1]

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return self.levels

    async def start(self) -> None:
        pass

    def state(self) -> Mapping[str, Any]:
        return {"state": "ready"}

    async def close(self) -> None:
        self.closed = True

    def alive(self) -> list[str]:
        return [engine.spec.id for engine in self.engines if engine.alive]
