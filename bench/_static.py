"""The router in front of a static upstream: everything of ours is real but the engine, which is nginx.

    python -m bench._static SOCKET PORT CPU

Serves one model, `static`, whose engine is whatever listens on the unix socket SOCKET; stays on processor CPU.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.config import Settings
from app.main import build
from app.server import DrainingServer, bind, server_config
from engines.base import Endpoint, Engine, ExitReport, Verdict
from engines.registry import Engines
from models.types import LoadReport, ModelOverrides, ModelSpec, Progress, SleepReport, Task
from utils.logging import set_up_logging

MODEL = "static"


class StaticEngine:
    """Answers at once; there is nothing to start or to stop."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(uds=self._socket)

    async def start(self, timeout_s: float) -> LoadReport:
        return LoadReport(0.0, "exec")

    async def stop(self, grace_s: float) -> None:
        return

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        raise NotImplementedError

    async def wake(self, timeout_s: float) -> float:
        raise NotImplementedError

    async def progress(self) -> Progress:
        return Progress(None, 0.0)

    async def health(self) -> bool:
        return True

    def memory_bytes(self) -> int:
        return 0

    async def wait_exited(self) -> ExitReport:
        await asyncio.Event().wait()
        raise AssertionError("nothing ends it")


class StaticFactory:
    """Makes the one engine."""

    name = MODEL

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def accepts(self, spec: ModelSpec) -> Verdict:
        return Verdict(True, "everything")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        return ()

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return 0

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Engine:
        return StaticEngine(self._socket)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    async def start(self) -> None:
        return

    def state(self) -> Mapping[str, Any]:
        return {"state": "ready"}

    async def close(self) -> None:
        return


class OneModel:
    """In place of the scanner and the watcher of a models folder: always the same."""

    def set_overrides(self, overrides: Mapping[str, ModelOverrides]) -> None:
        return

    async def start(self) -> list[ModelSpec]:
        return [ModelSpec(MODEL, Path("/"), Task.CHAT, MODEL)]

    async def rescan(self) -> list[ModelSpec]:
        return await self.start()

    async def stop(self) -> None:
        return


def main() -> None:
    socket, port, cpu = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, {cpu})
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(models_dir=Path(scratch), state_dir=Path(scratch) / "state", port=port)
        set_up_logging(settings.log_format, settings.log_level)
        with bind(settings) as listener:
            engines = Engines({MODEL: StaticFactory(socket)}, {})
            one = OneModel()
            made = build(settings, Path(scratch), engines=engines, scanner=one, make_watcher=lambda _: one)
            DrainingServer(server_config(made.app, settings), made.lifecycle).run([listener])


if __name__ == "__main__":
    main()
