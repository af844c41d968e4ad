"""How many cores this process may really use: fewer than it sees where a container or service is limited."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """By affinity, and by the CPU time that the control groups above this process grant (version 2)."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        path = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), "")
        group = cgroups / path.lstrip("/")
        for folder in (group, *group.parents):
            cores = min(cores, _granted(folder))
            if folder == cgroups:
                break
    return max(1, cores)


def _granted(folder: Path) -> int:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))  # a ValueError where the quota is "max"
    return os.cpu_count() or 1
