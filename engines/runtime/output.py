"""Standard output that never fails: on a full disk a line of log is lost, not the engine that wrote it."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lossy(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes  # as if it had been written, or it would be tried again with the next line


def lose_what_cannot_be_written() -> None:
    """Replaces sys.stdout and sys.stderr of this process and, as it forks, of all that it forks."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        buffer = io.BufferedWriter(_Lossy(fd, "wb", closefd=False))
        setattr(sys, name, io.TextIOWrapper(buffer, "utf-8", errors="backslashreplace", line_buffering=True))
