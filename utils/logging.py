"""One log for everything: loguru to standard error, as text or JSON lines; the standard library's loggers feed it."""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any, Literal, TextIO

import orjson
from loguru import logger

__all__ = ["logger", "set_up_logging"]

TEXT = "{time:YYYY-MM-DD HH:mm:ss.SSS} {level: <7} {name} {message}"
TEXT_WITH_EXTRA = TEXT + " {extra}\n{exception}"
QUIET = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "aiohttp.access", "watchdog", "httpx", "urllib3")
LEVELS = {"trace": 5, "debug": 10, "info": 20, "warning": 30, "error": 40}
FORWARDED = ("uvicorn", "uvicorn.error", "fastapi", "")


class _Forward(logging.Handler):
    """Hands a record of the standard library to loguru, under the name of the logger that it came from."""

    def emit(self, record: logging.LogRecord) -> None:
        level: str | int = record.levelno
        if record.levelname in ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            level = record.levelname
        name = record.name
        logger.patch(lambda entry: entry.update({"name": name})).opt(depth=_depth(), exception=record.exc_info).log(
            level, "{}", record.getMessage()
        )


def _depth() -> int:
    frame: FrameType | None = sys._getframe(2)
    depth = 2
    while frame and frame.f_code.co_filename == logging.__file__:
        frame = frame.f_back
        depth += 1
    return depth


def _json_line(message: Any) -> str:
    record = message.record
    line = {
        "time": record["time"].isoformat(),
        "level": record["level"].name.lower(),
        "logger": record["name"],
        "message": record["message"],
        **record["extra"],
    }
    if record["exception"] is not None:
        line["exception"] = str(message).partition("\n")[2]
    return orjson.dumps(line, default=str).decode()


def _text_format(record: Any) -> str:
    return TEXT_WITH_EXTRA if record["extra"] else TEXT + "\n{exception}"


def set_up_logging(
    format_: Literal["text", "json"] = "text", level: str = "info", stream: TextIO | None = None
) -> None:
    """Replaces every earlier sink. Variables are never shown in tracebacks: they may hold keys."""
    target = stream or sys.stderr
    logger.remove()
    options: dict[str, Any] = {"level": level.upper(), "backtrace": False, "diagnose": False, "catch": True}
    if format_ == "json":
        logger.add(lambda message: print(_json_line(message), file=target, flush=True), **options)
    else:
        logger.add(target, format=_text_format, colorize=False, **options)
    handler = _Forward()
    for name in FORWARDED:
        standard = logging.getLogger(name)
        standard.handlers = [handler]
        standard.propagate = False
        standard.setLevel(LEVELS[level.lower()])
    for name in QUIET:
        logging.getLogger(name).setLevel(max(LEVELS[level.lower()], logging.WARNING))
