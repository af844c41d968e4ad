"""A model of servers elsewhere, as the manager sees it: there is nothing to start, to end or to measure."""

from __future__ import annotations

import asyncio
from typing import Protocol

from engines.base import Endpoint, EngineStartError, ExitReport, SleepFailed
from models.types import LoadReport, Progress, SleepReport


class Serves(Protocol):
    """The factory of such models."""

    def endpoint(self, model_id: str) -> Endpoint:
        """Raises EngineUnavailable."""
        ...

    def healthy(self, model_id: str) -> bool: ...


class RemoteEngine:
    """One model of servers elsewhere."""

    def __init__(self, factory: Serves, model_id: str) -> None:
        self._factory = factory
        self._model_id = model_id

    @property
    def endpoint(self) -> Endpoint:
        return self._factory.endpoint(self._model_id)

    async def start(self, timeout_s: float) -> LoadReport:
        raise EngineStartError("it is served elsewhere: there is nothing to start")

    async def stop(self, grace_s: float) -> None:
        return

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        raise SleepFailed("it is served elsewhere: it does not sleep here", forever=True)

    async def wake(self, timeout_s: float) -> float:
        raise SleepFailed("it is served elsewhere: it does not sleep here", forever=True)

    async def health(self) -> bool:
        return self._factory.healthy(self._model_id)

    async def progress(self) -> Progress:
        return Progress(None, 0.0)

    def memory_bytes(self) -> int:
        return 0

    async def wait_exited(self) -> ExitReport:
        await asyncio.Event().wait()
        raise AssertionError("it never ends")
