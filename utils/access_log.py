"""One line per request, cheaply: a record of loguru's costs as much as a fifth of all that the router does.

Lines are collected and written together, at most FLUSH_S later; each has the time at which its request ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

import orjson

FLUSH_S = 0.1
LOGGER = "access"


class AccessLog:
    """Writes to standard error as `utils.logging` does, in the same form. Used in the event loop only."""

    def __init__(self, format_: Literal["text", "json"] = "text", stream: TextIO | None = None) -> None:
        self._line: Callable[[str, str, str, int, float, str], str] = _json if format_ == "json" else _text
        self._stream = stream or sys.stderr
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, request_id: str, method: str, path: str, status: int, seconds: float, model: str) -> None:
        """`path` must be free of control characters."""
        self._lines.append(self._line(request_id, method, path, status, seconds * 1000, model))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Writes what is collected; a stream that cannot be written loses it, and serving goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            return


def _text(request_id: str, method: str, path: str, status: int, ms: float, model: str) -> str:
    return f"{_now(' ')} INFO    {LOGGER} {request_id} {method} {path} {status} {ms:.1f} ms {model or '-'}\n"


def _json(request_id: str, method: str, path: str, status: int, ms: float, model: str) -> str:
    line = {"time": _now("T"), "level": "info", "logger": LOGGER, "request_id": request_id, "method": method}
    return orjson.dumps(line | {"path": path, "status": status, "ms": round(ms, 1), "model": model}).decode() + "\n"


_second = (0, "")


def _now(separator: str) -> str:
    """Local time to the millisecond; the part that changes once a second is kept."""
    global _second
    now_s = time.time()
    whole = int(now_s)
    if _second[0] != whole:
        _second = (whole, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole)))
    text = _second[1] if separator == " " else _second[1].replace(" ", separator)
    return f"{text}.{int((now_s - whole) * 1000):03d}"
