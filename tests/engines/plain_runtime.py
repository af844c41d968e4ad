"""A runtime without a framework, for tests of what the kernel does: it answers on its socket and misbehaves to order.

`args` is a mapping; what each key does stands in `run_engine`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import shared_memory

from engines.runtime.protocol import EngineRequest
from utils import procfs

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
NAMED_S = 10.0  # for a shell to become what it was told to be, on a busy machine
_cuda = False
_kept: shared_memory.SharedMemory | None = None


def preload() -> None:
    """PLAIN_PRELOAD (environment): `thread` leaves a thread running, `raise` fails, `cuda` claims CUDA,
    `hang` takes long."""
    global _cuda
    match os.environ.get("PLAIN_PRELOAD", ""):
        case "thread":
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        case "raise":
            raise ImportError("No module named 'framework'")
        case "cuda":
            _cuda = True
        case "hang":
            time.sleep(600)


def cuda_initialized() -> bool:
    return _cuda


def run_engine(request: EngineRequest) -> None:
    args = dict(request.args)
    if args.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(args.get("children", 0)):
        _fork_sleeper()
    for _ in range(args.get("escapes", 0)):
        _fork_sleeper(escape=True)
    if name := args.get("named_child"):
        _start_named(name)
    if args.get("exec_child"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if args.get("shared_memory"):
        global _kept
        _kept = shared_memory.SharedMemory(create=True, size=4096)  # and never unlinked by us
    if message := args.get("raise"):
        raise ValueError(message)
    if args.get("hang"):
        time.sleep(600)
    serve(request)


def _start_named(name: str) -> None:
    """Returns once it has its name, which the keeper looks for as soon as this engine is ready."""
    child = subprocess.Popen(["/bin/bash", "-c", "exec -a $0 sleep 600", name])
    until_s = time.monotonic() + NAMED_S
    while not procfs.command_line(child.pid).startswith(name):
        if time.monotonic() > until_s:
            raise TimeoutError(f"{name} has not got its name")
        time.sleep(0.001)


def _fork_sleeper(escape: bool = False) -> None:
    """A process that ignores SIGTERM; with `escape`, a daemon: its own session, its parent gone."""
    pid = os.fork()
    if pid and escape:
        os.waitpid(pid, 0)  # the one in between must not be taken for a member of the tree that has just ended
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if escape:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.setsid()
        time.sleep(600)
        os._exit(0)


def serve(request: EngineRequest) -> None:
    print("serving", request.name, "with temporary files in", tempfile.gettempdir())
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(request.uds)
        server.listen()
        request.ready()
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(ANSWER)
