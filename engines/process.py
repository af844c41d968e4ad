"""The Engine of every factory whose engines are processes made by a launcher: they differ in their request only."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic

from engines.base import Endpoint, EngineContext, EngineStartError, ExitReport, SleepFailed
from engines.device_memory import DeviceMeter
from engines.engine_process import EngineProcess
from engines.launcher import Launcher
from engines.progress import Pulse, Questions, any_stopped
from engines.runtime.protocol import EngineRequest
from engines.waiting import run_to_the_end
from models.types import LoadReport, Progress, SleepReport
from utils import leftovers

HEALTH_TIMEOUT_S = 5.0
LOOK_S = 2.0  # between looks at the processes of an engine that is being started
STOPPED_LOOKS = 3  # in a row at which one must be stopped: a debugger's user is quicker to resume
SCRATCH_SUFFIX = ".tmp"  # of the folder beside its socket that goes with the engine
MAX_SOCKET_PATH_BYTES = 107  # sun_path less its NUL


def engine_files(context: EngineContext, engine_name: str, model_id: str) -> tuple[Path, Path]:
    """(socket, log) of a model: safe file names, short for the socket, readable for the log, different per id.

    Raises ValueError where the run folder's path leaves no room for a socket.
    """
    digest = hashlib.sha256(f"{engine_name}\0{model_id}".encode()).hexdigest()[:12]
    uds = context.run_dir / f"{digest}.sock"
    if len(str(uds).encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"{uds}: choose a shorter run folder; it is too long for a unix socket ({MAX_SOCKET_PATH_BYTES} bytes)"
        )
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model_id).strip(".-")[:80]
    return uds, context.log_dir / f"{engine_name}-{readable}-{digest[:6]}.log"


class ProcessEngine:
    """One model on one process tree of `launcher` (see engines.base.Engine).

    `request` is built anew for each start, so that it is made of what the folder holds then.
    """

    def __init__(
        self,
        launcher: Launcher,
        request: Callable[[], EngineRequest],
        uds: Path,
        device: str,
        questions: Questions | None = None,
        *,
        last_words: tuple[bytes, ...] = (),
    ) -> None:
        """`questions`: how it is asked for its progress; without them only its processes are looked at."""
        self._launcher = launcher
        self._request = request
        self._uds = uds
        self._last_words = last_words
        self._device = device
        self._meter = DeviceMeter()
        self._pulse = Pulse(uds, questions)
        self._process: EngineProcess | None = None
        self._spawned = asyncio.Event()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(uds=self._uds, last_words=self._last_words)

    @property
    def process(self) -> EngineProcess | None:
        """For tests and diagnosis."""
        return self._process

    async def start(self, timeout_s: float) -> LoadReport:
        """Raises EngineStartError; then, and when cancelled, the tree is gone before the caller hears of it."""
        asked_s = monotonic()
        try:
            await self._launcher.wait_warm(timeout_s)
            begin_s = monotonic()  # the import is not what loading this model costs
            with self._meter.action():
                process = await self._spawn(timeout_s)
                await _wait_ready(process, timeout_s - (monotonic() - asked_s))
        except BaseException:
            await run_to_the_end(self._end(0))
            raise
        return LoadReport(monotonic() - begin_s, process.start_method)

    async def stop(self, grace_s: float) -> None:
        """TERM, wait up to `grace_s`, KILL; returns when the whole tree is gone. Raises EngineNotGone. Idempotent."""
        await run_to_the_end(self._end(grace_s))

    async def sleep(self, level: int, timeout_s: float) -> SleepReport:
        raise SleepFailed(f"level {level}: this engine cannot sleep", forever=True)

    async def wake(self, timeout_s: float) -> float:
        raise SleepFailed("this engine cannot sleep, and so not wake", forever=True)

    async def progress(self) -> Progress:
        # In a thread, as the process table of a large machine takes many milliseconds to read.
        return await self._pulse.look(await asyncio.to_thread(self._process.pids) if self._process else ())

    async def health(self) -> bool:
        """Whether GET /health on the socket answers 200 within HEALTH_TIMEOUT_S."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                return await _http_status(self._uds, "/health") == 200
        except (OSError, TimeoutError, ValueError, IndexError):
            return False

    def memory_bytes(self) -> int:
        """PSS of the tree on CPU, GPU memory on CUDA; 0 where it is gone or NVML cannot tell."""
        if self._process is None:
            return 0
        if self._device == "cpu":
            return self._process.memory_bytes()
        pids = self._process.pids()
        return self._meter.tree_bytes(pids) if pids else 0

    async def wait_exited(self) -> ExitReport:
        await self._spawned.wait()
        if self._process is None:
            return ExitReport("never ran")
        return await self._process.wait_exited()

    async def _spawn(self, timeout_s: float) -> EngineProcess:
        # Reading the model's folder for the request may take milliseconds on a network file system.
        try:
            request = await asyncio.to_thread(self._request)
        except (OSError, ValueError) as error:
            raise EngineStartError(f"{self._uds.name}: {error}") from error
        self._remove_stale()  # vLLM does not replace a stale socket
        self._process = await self._launcher.spawn(replace(request, scratch=str(self._scratch)), timeout_s)
        self._spawned.set()
        return self._process

    async def _end(self, grace_s: float) -> None:
        if self._process is not None:
            await self._process.stop(grace_s)
        self._remove_stale()

    @property
    def _scratch(self) -> Path:
        return self._uds.with_suffix(SCRATCH_SUFFIX)

    def _remove_stale(self) -> None:
        """The keeper removes these; this is for keepers that were killed."""
        self._uds.unlink(missing_ok=True)
        leftovers.remove_shared_memory(self._uds.with_suffix(leftovers.RECORD_SUFFIX))
        shutil.rmtree(self._scratch, ignore_errors=True)


async def _wait_ready(process: EngineProcess, timeout_s: float) -> None:
    """As `process.wait_ready`, cut short where a process of it is stopped (SIGSTOP): else nothing ends the wait."""
    ready = asyncio.ensure_future(process.wait_ready(timeout_s))
    stopped = asyncio.ensure_future(_until_stopped(process))
    try:
        await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return ready.result()
    finally:
        ready.cancel()
        stopped.cancel()
    message = f"{process.request.name} could not be started: a process of it was stopped (log: {process.log_path})"
    raise EngineStartError(message, interrupted=True)


async def _until_stopped(process: EngineProcess) -> None:
    looks = 0
    while looks < STOPPED_LOOKS:
        await asyncio.sleep(LOOK_S)
        looks = looks + 1 if any_stopped(await asyncio.to_thread(process.pids)) else 0


async def _http_status(uds: Path, path: str) -> int:
    """The status of a GET, with no client library: the app asks this of every engine, once in a while."""
    reader, writer = await asyncio.open_unix_connection(str(uds))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
