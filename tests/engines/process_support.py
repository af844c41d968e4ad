"""What the tests of launchers share: private folders, a launcher of the plain runtime, the proof that all is gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engines.base import EngineContext
from engines.launcher import MARK, Launcher
from engines.process import ProcessEngine, engine_files
from engines.runtime.protocol import EngineRequest
from utils import procfs

PLAIN_RUNTIME = "tests.engines.plain_runtime"
START_TIMEOUT_S = 20.0
GRACE_S = 5.0
WAIT_S = 15.0  # for what takes milliseconds; the machine may be busy


def marked_processes(app_pid: int) -> list[int]:
    """Running launchers of `app_pid` and everything below them, by the mark in their environment."""
    mark = f"{MARK}={app_pid}-".encode()
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if b"\0" + mark in b"\0" + procfs.read_environment(pid) and procfs.is_running(pid)]


@contextmanager
def engine_folders(device: str = "cpu", **fields: Any) -> Iterator[EngineContext]:
    """Folders for a factory. Afterwards: no process that it began, no socket."""
    before = set(marked_processes(os.getpid()))
    # pytest's own temporary folders have paths too long for a unix socket.
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        dirs = {name: Path(folder, name) for name in ("run", "log", "cache")}
        for path in dirs.values():
            path.mkdir(mode=0o700)
        yield EngineContext(dirs["run"], dirs["log"], dirs["cache"], device, **fields)
        assert set(marked_processes(os.getpid())) <= before
        assert list(dirs["run"].iterdir()) == []


@asynccontextmanager
async def plain_launcher(**env: str) -> AsyncIterator[tuple[Launcher, EngineContext]]:
    with engine_folders() as context:
        launcher = Launcher("plain", PLAIN_RUNTIME, context, env=env)
        await launcher.start()
        try:
            yield launcher, context
        finally:
            await launcher.close()


def plain_engine(
    launcher: Launcher, context: EngineContext, model_id: str = "org/model", *, vital: str = "", **args: Any
) -> ProcessEngine:
    """A cold engine of the plain runtime; `args` say how it misbehaves."""
    uds, log_path = engine_files(context, "plain", model_id)

    def request() -> EngineRequest:
        return EngineRequest(model_id, str(uds), "/nowhere", str(log_path), (model_id,), args, vital=vital)

    return ProcessEngine(launcher, request, uds, context.device)


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Polls for what sends no event. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # the kernel has no event for most of it
            await asyncio.sleep(0.005)


async def until_gone(pids: Collection[int], timeout_s: float = WAIT_S) -> None:
    await until(lambda: not any(procfs.is_running(pid) for pid in pids), timeout_s)


def tree_of(engine: ProcessEngine) -> list[int]:
    """The engine's processes now: its main process and everything below it."""
    assert engine.process is not None
    return engine.process.pids()
