"""The log of one engine: its end, the cause of a failure in it, and room for the next run's."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

TAIL_LINES = 30
_TAIL_READ_BYTES = 256 * 1024  # of the end; a traceback of several processes fits many times

# What vLLM's and uvicorn's loggers put before a message: "(EngineCore pid=7) ERROR 07-01 10:00:00 [core.py:1] ".
_LOG_PREFIX = re.compile(
    r"^(\([\w ]+ pid=\d+\) )*((DEBUG|INFO|WARNING|ERROR|CRITICAL)[: ]+)?"
    r"(\d\d-\d\d \d\d:\d\d:\d\d )?(\[[\w./]+:\d+\] ?)?"
)
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(
    r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Failure|Iteration)|[a-z_]\w*(?:\.\w+)+): ?(.*)"
)
_REFUSED_ARGUMENTS = re.compile(r"^[^:]*: (error: .*)")  # argparse's last line
# Errors that only say that another process failed, or that a wait was given up; the cause stands elsewhere.
_SECONDARY = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "KeyboardInterrupt",
    "SystemExit",
)
# Where multiprocessing's helper finds shared memory removed that a killed process left; it says nothing of why.
_HELPER = "multiprocessing/resource_tracker.py"
# Around the sentence of a validator that pydantic reports: "1 validation error for C Value error, …. [type=…, input…".
_PYDANTIC_NOISE = re.compile(r"1 validation error for \w+ Value error, | \[type=\w+, input_value=.*")
_PYDANTIC = "1 validation error for "
_MAX_CAUSE_CHARS = 500


def rotate(path: Path) -> None:
    """Makes room for a new run: the previous log becomes `.1`, and what was there before is dropped."""
    with suppress(FileNotFoundError):
        os.replace(path, path.with_name(path.name + ".1"))


def read_end(path: Path, max_bytes: int = _TAIL_READ_BYTES) -> str:
    """The last `max_bytes` of the log as text; empty where there is none."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - max_bytes))
            return log.read(max_bytes).decode(errors="replace")  # it may grow meanwhile
    except OSError:
        return ""


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last exception's lines, if there is one before the end, and then the last lines: `lines` in all."""
    rows = text.rstrip().splitlines()
    cause = cause_of(text)
    end = rows[-lines:]
    if not cause or any(cause in row for row in end):
        return "\n".join(end)
    return "\n".join([cause, "…", *rows[-(lines - 2) :]])


def cause_of(text: str) -> str:
    """The exception to blame, as `module.Error: message`; empty where the log shows none.

    Of the tracebacks in the log the last whose exception is the cause of a failure and not its echo in a waiting
    process ("Engine core initialization failed. See root cause above").
    """
    rows = [_LOG_PREFIX.sub("", row) for row in text.splitlines()]
    begins = [
        index for index, row in enumerate(rows) if row.strip() == _TRACEBACK and _HELPER not in _next(rows, index)
    ]
    found = [cause for index in begins if (cause := _exception(rows, index))]
    primary = [cause for cause in found if not any(echo in cause for echo in _SECONDARY)]
    refused = [match[1] for row in rows[-TAIL_LINES:] if (match := _REFUSED_ARGUMENTS.match(row))]
    return (primary or found or refused or [""])[-1]


def _next(rows: list[str], index: int) -> str:
    return rows[index + 1] if index + 1 < len(rows) else ""


def _exception(rows: list[str], traceback_at: int) -> str:
    """The exception line of the traceback that begins at that row, with the start of a message of many lines."""
    for index in range(traceback_at + 1, len(rows)):
        row = rows[index]
        if row.strip() == _TRACEBACK:
            return ""
        if row[:1].isspace() or not row:
            continue
        if match := _EXCEPTION.match(row):
            more = rows[index + 1 : index + 3]
            # Otherwise the message goes on in the next line, indented or not: pydantic's names the field there.
            if match[2] and not row.endswith(":") and _PYDANTIC not in row:
                more = list(takewhile(lambda line: line[:1].isspace(), more))
            text = " ".join(line.strip() for line in (row, *more))
            return _PYDANTIC_NOISE.sub("", text)[:_MAX_CAUSE_CHARS].strip()
        if re.fullmatch(r"[A-Za-z_][\w.]*", row.strip()):
            return row.strip()  # an exception without a message: "AssertionError"
    return ""
