"""Process trees and their memory, read from /proc. Works for processes of our own user; needs nothing installed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENDED_STATES = frozenset("ZXx")  # a zombie holds a table entry and nothing else


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One line of the process table. `start_ticks` (since boot) tells a reused pid from the process that had it."""

    pid: int
    ppid: int
    session: int
    state: str
    start_ticks: int

    @property
    def ended(self) -> bool:
        return self.state in _ENDED_STATES


def read_process(pid: int) -> ProcessInfo | None:
    """The process `pid` now, or None where there is none."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command's name is in parentheses and may itself hold blanks and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    return ProcessInfo(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[19]))


def process_table() -> dict[int, ProcessInfo]:
    """Every process that /proc shows, by pid."""
    pids = (int(name) for name in os.listdir(PROC) if name.isdecimal())
    return {info.pid: info for pid in pids if (info := read_process(pid)) is not None}


def is_running(pid: int) -> bool:
    """Whether `pid` exists and is more than a zombie."""
    info = read_process(pid)
    return info is not None and not info.ended


def descendants(root: int, table: Mapping[int, ProcessInfo] | None = None) -> list[int]:
    """Pids below `root` (children, theirs and so on; without `root`; zombies left out), parents before children."""
    table = process_table() if table is None else table
    children: dict[int, list[int]] = {}
    for info in table.values():
        children.setdefault(info.ppid, []).append(info.pid)
    found: list[int] = []
    frontier = [root]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, ()) if child != root]
        found.extend(frontier)
    return [pid for pid in found if not table[pid].ended]


def session_members(session: int) -> list[int]:
    """Pids of the running processes in the session led (once) by `session`."""
    return [info.pid for info in process_table().values() if info.session == session and not info.ended]


def with_environment(name: str, value: str) -> list[int]:
    """Pids of running processes whose environment, as it was at their exec, has `name=value`.

    A fork inherits the mark, whatever session or parent it moves to; a process that rewrites its environment area
    (setproctitle without SPT_NOENV) loses it.
    """
    mark = f"{name}={value}".encode()
    return [pid for pid in _own_pids() if mark in read_environment(pid).split(b"\0") and is_running(pid)]


def read_environment(pid: int) -> bytes:
    """NUL-separated `name=value` entries of `pid` at its exec; empty where it is gone or not ours."""
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _own_pids() -> Iterable[int]:
    return [int(name) for name in os.listdir(PROC) if name.isdecimal()]


def thread_count(pid: int | None = None) -> int:
    """Number of kernel threads of `pid` (of this process by default)."""
    return len(os.listdir(PROC / ("self" if pid is None else str(pid)) / "task"))


def command_line(pid: int) -> str:
    """The arguments of `pid`, joined by blanks; empty where it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def shared_memory(pid: int) -> set[str]:
    """Paths of the POSIX shared memory (/dev/shm) that `pid` has mapped and nobody has unlinked yet."""
    try:
        maps = (PROC / str(pid) / "maps").read_text(errors="replace")
    except OSError:
        return set()
    paths = (line[line.index("/dev/shm/") :] for line in maps.splitlines() if " /dev/shm/" in line)
    return {path for path in paths if not path.endswith(" (deleted)")}


def pss_bytes(pid: int) -> int:
    """Proportional set size of `pid`: its own pages and its share of those it shares. 0 where it is gone.

    Where the kernel has no smaps_rollup, the resident size instead (shared pages counted in full).
    """
    try:
        with open(PROC / str(pid) / "smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        return _rss_bytes(pid)
    except OSError:
        pass  # gone between open and read (ESRCH), or not ours
    return 0


def _rss_bytes(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def tree_pss_bytes(root: int) -> int:
    """PSS of `root` and everything below it."""
    return sum(pss_bytes(pid) for pid in (root, *descendants(root)))
