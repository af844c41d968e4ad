"""`python -m roundhouse_engine SETTINGS`: loads the class that SETTINGS names, and serves it on a unix socket.

SETTINGS is a JSON file: `class` ("package.module:Class"), `model_path`, `args`, `uds`, and `ready_fd`, on which one
line of JSON tells that it accepts requests, or why it will not.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from . import Engine
from .routes import METHODS
from .server import Server


def main(settings_path: str) -> int:
    with open(settings_path, encoding="utf-8") as file:
        settings = json.load(file)
    try:
        engine = make(settings["class"])
        engine.load(settings["model_path"], settings["args"])
        server = Server(settings["uds"], engine)
    except BaseException as error:
        traceback.print_exc()
        _tell(settings["ready_fd"], event="failed", error=f"{type(error).__name__}: {error}"[:4000])
        return 1
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _tell(settings["ready_fd"], event="ready")
    stop.wait()
    server.close()
    return 0


def make(name: str) -> Engine:
    """An instance of `package.module:Class`. Raises TypeError, ImportError, or whatever the class raises."""
    module, _, class_name = name.partition(":")
    found = getattr(importlib.import_module(module), class_name, None)
    if not isinstance(found, type) or not issubclass(found, Engine):
        raise TypeError(f"{name} is no class that derives from roundhouse_engine.Engine")
    methods = [method for method in METHODS if hasattr(found, method)]
    if not methods:
        raise TypeError(f"{name} has none of the methods {', '.join(METHODS)}")
    for method in methods:
        function = getattr(found, method)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{name}.{method} is async; write it as a plain method, each call has a thread of its own")
    return found()


def _tell(fd: int, **message: Any) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")
    os.close(fd)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it goes to the engine's log
    os._exit(main(sys.argv[1]))  # threads of the engine's own must not keep its memory
