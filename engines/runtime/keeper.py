"""The keeper: one small process above each engine, whose only work is that nothing of the engine outlives it.

It is the subreaper of the engine's tree, so whatever the engine starts, in whatever session, stays below the keeper;
"no child left" (ECHILD) then proves that the whole tree is gone. It kills what is left when the engine's main process
or a vital one ends, when it is told to stop, when the app's end of its channel closes (the app died), and when the
launcher dies. The engine in turn is killed by the kernel should the keeper die.

One keeper per engine, rather than the launcher reaping for all, because an orphan that the launcher adopts says
nothing of which engine it came from.
"""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.runtime.linux import SignalPipe, become_subreaper, die_with_parent, open_process, signals_blocked
from engines.runtime.protocol import MAX_MESSAGE_BYTES, EngineRequest, Event, StartMethod, decode, encode
from utils import leftovers, procfs

KEEPER_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
KILL_AGAIN_S = 0.02  # between two sweeps of a dying tree: a process may fork while it is being killed
TRACKER_SPARE_S = 1.0  # for multiprocessing's resource tracker to unlink the shared memory of its dead owners
LOG_CHECK_S = 60.0  # how often the log's size is looked at
MAX_LOG_BYTES = 64 * 1024 * 1024  # of one engine's log; beyond it the log starts again and the old half is kept as .1

RunEngine = Callable[[EngineRequest], None]


def keep(
    request: EngineRequest, run_engine: RunEngine, channel: socket.socket, method: StartMethod, reason: str = ""
) -> None:
    """Forks the engine and returns when its whole tree is gone. Single-threaded, in a process of its own."""
    become_subreaper()
    signals = SignalPipe(KEEPER_SIGNALS)
    pid, pipe_fd = _fork_engine(request, run_engine, channel, signals)
    keeper = _Keeper(request, channel, signals, pid, pipe_fd)
    keeper.tell(Event.STARTED, pid=pid, keeper_pid=os.getpid(), start_method=method, reason=reason)
    keeper.run()


class _Keeper:
    def __init__(
        self, request: EngineRequest, channel: socket.socket, signals: SignalPipe, pid: int, pipe_fd: int
    ) -> None:
        self._request = request
        self._channel = channel
        self._signals = signals
        self._pid = pid
        self._pipe_fd = pipe_fd
        self._error = ""
        self._ended_with = ""  # the vital process whose end was the engine's
        self._exited = False
        self._shared_memory: set[str] = set()
        self._kill_at_s: float | None = None  # monotonic; when the grace of a stop ends
        self._kill_since_s: float | None = None  # monotonic; set while the tree is being killed
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._on_channel)
        self._selector.register(signals, selectors.EVENT_READ, self._on_signal)
        self._selector.register(pipe_fd, selectors.EVENT_READ, self._on_pipe)

    def tell(self, event: Event, **values: Any) -> None:
        """Never raises for a closed channel: the app's end is noticed by reading."""
        with suppress(OSError):
            self._channel.send(encode(event, **values), socket.MSG_NOSIGNAL)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._timeout_s()):
                key.data()
            if not self._reap():
                break
            self._act_on_time()
        self._remove_files()
        self.tell(Event.GONE)

    def _timeout_s(self) -> float:
        if self._kill_since_s is not None:
            return KILL_AGAIN_S
        if self._kill_at_s is not None:
            return max(0.0, self._kill_at_s - time.monotonic())
        return LOG_CHECK_S

    def _act_on_time(self) -> None:
        if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
            self._start_killing()
        if self._kill_since_s is not None:
            self._kill_tree(time.monotonic() - self._kill_since_s)
        else:
            bound_log(self._request.log_path)

    def _note_shared_memory(self) -> None:
        """Before anything is killed: a killed process unlinks nothing, and vLLM ends by killing its own children."""
        for pid in procfs.descendants(os.getpid()):
            self._shared_memory |= procfs.shared_memory(pid)
        if self._shared_memory:
            leftovers.record_shared_memory(self._record, self._shared_memory)

    def _remove_files(self) -> None:
        """What the engine left that is not a process."""
        for path in (self._request.uds, str(self._record), *self._shared_memory):
            with suppress(OSError):
                os.unlink(path)
        if self._request.scratch:
            shutil.rmtree(self._request.scratch, ignore_errors=True)

    @property
    def _record(self) -> Path:
        return Path(self._request.uds).with_suffix(leftovers.RECORD_SUFFIX)

    def _watch_vital(self) -> None:
        """By descriptors of the kernel's: the engine may take seconds to see it, and the parent alone is told."""
        if not self._request.vital:
            return
        for pid in procfs.descendants(os.getpid()):
            name = procfs.command_line(pid)
            if name.startswith(self._request.vital) and (fd := open_process(pid)) is not None:
                self._selector.register(fd, selectors.EVENT_READ, partial(self._on_vital_end, fd, f"{name} ({pid})"))

    def _on_vital_end(self, fd: int, name: str) -> None:
        """Held before it is killed, the engine sends no error of its own to those who can be served by another."""
        self._selector.unregister(fd)
        os.close(fd)
        if self._exited or self._kill_at_s is not None or self._kill_since_s is not None:
            return
        self._ended_with = name
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGSTOP)
        self._start_killing()

    def _start_killing(self) -> None:
        if self._kill_since_s is None:
            self._kill_since_s = time.monotonic()

    def _kill_tree(self, since_s: float) -> None:
        self._note_shared_memory()
        for pid in procfs.descendants(os.getpid()):
            if since_s < TRACKER_SPARE_S and "multiprocessing.resource_tracker" in procfs.command_line(pid):
                continue  # it ends by itself once those that it tracks are gone
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> bool:
        """Collects what has ended. False when no child is left: the tree is gone."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._on_engine_exit(status)

    def _on_engine_exit(self, status: int) -> None:
        self._on_pipe()
        self._exited = True
        code = os.waitstatus_to_exitcode(status)
        self.tell(
            Event.EXITED,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            error=self._error,
            ended_with=self._ended_with,
        )
        self._start_killing()

    def _on_signal(self) -> None:
        if self._signals.drain() & {signal.SIGTERM, signal.SIGINT}:
            self._start_killing()

    def _on_channel(self) -> None:
        try:
            data = self._channel.recv(MAX_MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:  # the app is gone, and with it every reason for this engine
            self._selector.unregister(self._channel)
            self._start_killing()
            return
        message = decode(data)
        if message["event"] == Event.STOP:
            self._stop(float(message["grace_s"]))

    def _stop(self, grace_s: float) -> None:
        kill_at_s = time.monotonic() + grace_s
        self._kill_at_s = kill_at_s if self._kill_at_s is None else min(self._kill_at_s, kill_at_s)
        self._note_shared_memory()
        if grace_s > 0 and not self._exited:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def _on_pipe(self) -> None:
        """What the engine said of itself; called once more after its end, for its last words."""
        if self._pipe_fd < 0:
            return
        try:
            data = os.read(self._pipe_fd, MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._pipe_fd)
            os.close(self._pipe_fd)
            self._pipe_fd = -1
        for line in data.splitlines():
            message = json.loads(line)
            if message["event"] == Event.READY:
                self._note_shared_memory()
                self._watch_vital()
                self.tell(Event.READY)
            else:
                self._error = message["error"]


def _fork_engine(
    request: EngineRequest, run_engine: RunEngine, channel: socket.socket, signals: SignalPipe
) -> tuple[int, int]:
    """(pid of the engine, the pipe on which it speaks)."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    keeper_pid = os.getpid()
    with signals_blocked(KEEPER_SIGNALS):
        pid = os.fork()
        if pid == 0:
            signals.close()
            channel.close()
            os.close(read_fd)
            _be_engine(request, run_engine, keeper_pid, write_fd)
    os.close(write_fd)
    return pid, read_fd


def _be_engine(request: EngineRequest, run_engine: RunEngine, keeper_pid: int, pipe_fd: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL, keeper_pid)
        _redirect_output(request.log_path)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, KEEPER_SIGNALS)
        os.environ.update(request.env)
        _use_scratch(request.scratch)
        run_engine(replace(request, notify=lambda: _say(pipe_fd, Event.READY), notify_fd=pipe_fd))
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        traceback.print_exc()
        _say(pipe_fd, Event.FAILED, error=describe(error))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: this process is a copy of one that had more on its stack. What the engine left is killed.
        os._exit(status)


def _use_scratch(scratch: str) -> None:
    """Temporary files, sockets among them, go where the keeper finds them and nobody else looks."""
    if scratch:
        os.makedirs(scratch, mode=0o700)
        os.environ["TMPDIR"] = scratch
        tempfile.tempdir = None  # chosen once per process, and this one was forked after


def describe(error: BaseException) -> str:
    """As the last line of a traceback, short enough for a message."""
    text = "".join(traceback.format_exception_only(error)).strip()
    return text[:4000]


def _say(pipe_fd: int, event: Event, **values: Any) -> None:
    with suppress(OSError):
        os.write(pipe_fd, json.dumps({"event": event, **values}).encode() + b"\n")


def _redirect_output(log_path: str) -> None:
    null_fd = os.open(os.devnull, os.O_RDONLY)
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null_fd)
    os.close(log_fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # TextIO in name only
    faulthandler.enable()


def bound_log(log_path: str, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Keeps the newest half of a log that grew over `max_bytes` as `.1` and lets the log start again at 0.

    The engine appends (O_APPEND), so that truncating under it is safe; a line written in between may be lost.
    """
    with suppress(OSError):
        if os.stat(log_path).st_size <= max_bytes:
            return
        with open(log_path, "rb") as log, open(log_path + ".1", "wb") as kept:
            log.seek(-max_bytes // 2, os.SEEK_END)
            kept.write(log.read(max_bytes))
        os.truncate(log_path, 0)
