"""How much memory models may take: measured where the settings do not say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from utils import nvml

CUDA_SHARE = 0.92  # the rest is for contexts, fragmentation, and whoever draws the desktop
SLEEP_SHARE = 0.5  # of the RAM beside a GPU, for the weights of models that sleep
RAM_SHARE = 0.70  # the rest is for the page cache, the app and everybody else
UNLIMITED = 1 << 60  # cgroup v1 writes a number about this large for "no limit"


@dataclass(frozen=True, slots=True)
class Device:
    """`kind` is "cuda" or "cpu"; `budget_bytes` what models may take together; `why` a sentence for the log.

    `sleep_bytes` is the RAM that weights of sleeping models may take: none on CPU, where it is the same memory.
    """

    kind: str
    budget_bytes: int
    why: str
    sleep_bytes: int = 0
    gpus: int = 0  # as many as there are, from the first on, with as much memory as the first
    capability: int = 0  # the first one's, see utils.nvml.Gpu


def measure_device() -> Device:
    gpus, available = nvml.visible_gpus(), available_ram_bytes()
    total = gpus[0].total_bytes if gpus else 0
    if total:
        why = f"{CUDA_SHARE:.0%} of the GPU's {total >> 20} MiB"
        alike = len(list(takewhile(lambda gpu: gpu.total_bytes >= total, gpus)))
        return Device("cuda", int(total * CUDA_SHARE), why, int(available * SLEEP_SHARE), alike, gpus[0].capability)
    return Device("cpu", int(available * RAM_SHARE), f"{RAM_SHARE:.0%} of the {available >> 20} MiB of RAM available")


def available_ram_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """RAM that can be had without swapping: the machine's, or what this container's limit leaves."""
    found = [_meminfo(proc / "meminfo")]
    for limit_name, usage_name, stat_name, cache_key in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit, usage = _number(cgroup / limit_name), _number(cgroup / usage_name)
        if limit is not None and usage is not None and limit < UNLIMITED:
            found.append(max(0, limit - usage + _stat(cgroup / stat_name, cache_key)))
    return min(found)


def _meminfo(path: Path) -> int:
    for line in path.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} does not tell MemAvailable")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such cgroup version, or "max"
        return None


def _stat(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key + " "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
