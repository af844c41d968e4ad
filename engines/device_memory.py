"""How much memory an engine's process tree holds: on the GPU as NVML says, on CPU as the kernel's PSS says."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from functools import cache
from typing import Any


def cuda_bytes(pids: Collection[int]) -> int:
    """GPU memory held by `pids` on all devices; 0 where NVML cannot tell (no driver, or another pid namespace)."""
    nvml = _nvml()
    if nvml is None:
        return 0
    total = 0
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid in pids:
                    total += process.usedGpuMemory or 0
    except nvml.NVMLError:
        return 0
    return total


@cache
def _nvml() -> Any:
    """The pynvml module, initialised; None where there is none, or no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
