"""GPUs as NVML tells of them, in bytes. Opens no CUDA context, imports no torch; without a driver there are none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as it was when it was asked."""

    name: str
    uuid: str
    total_bytes: int
    used_bytes: int  # by all processes, the driver's own reserve included
    capability: int = 0  # for computing, ten times: 90 for 9.0; 0 where the driver does not say


def visible_gpus() -> list[Gpu]:
    """The devices that CUDA programs started from here would see, in their order; [] where NVML cannot tell."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        return [_describe(nvml, handle) for handle in _visible_handles(nvml)]
    except nvml.NVMLError:
        return []


def used_bytes() -> int | None:
    """What all processes together hold of the first visible device; None where NVML cannot tell."""
    gpus = visible_gpus()
    return gpus[0].used_bytes if gpus else None


def process_bytes(pids: Collection[int]) -> int | None:
    """What `pids` hold of the first visible device; None where NVML cannot tell.

    Of the first, as the memory that models may take is the first one's: engines that span several begin there, and
    take as much of each. It cannot tell where it lists none of `pids`, as in a container: its are those of the host.
    """
    nvml = _nvml()
    if not pids or nvml is None:
        return None if pids else 0
    try:
        listed = [
            process.usedGpuMemory
            for handle in _visible_handles(nvml)[:1]
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.pid in pids
        ]
    except nvml.NVMLError:
        return None
    return sum(listed) if listed and None not in listed else None


def _describe(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
    return Gpu(str(name), str(uuid), int(memory.total), int(memory.used), _capability(nvml, handle))


def _capability(nvml: Any, handle: Any) -> int:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return 0
    return int(major) * 10 + int(minor)


def _visible_handles(nvml: Any) -> list[Any]:
    """By CUDA_VISIBLE_DEVICES, read as CUDA reads it: what follows an entry that names no device is invisible.

    Numbers are those of NVML, by PCI bus, which are CUDA's too with CUDA_DEVICE_ORDER=PCI_BUS_ID: launchers have it.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return handles
    visible = []
    for entry in wanted.split(","):
        handle = _named(nvml, entry.strip(), handles)
        if handle is None:
            break
        visible.append(handle)
    return visible


def _named(nvml: Any, entry: str, handles: list[Any]) -> Any:
    """The device of one entry, or None: a number, the UUID of a GPU or its beginning, or that of a MIG partition."""
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    if not entry.startswith("GPU-"):
        return None
    return next((handle for handle in handles if str(nvml.nvmlDeviceGetUUID(handle)).startswith(entry)), None)


def _nvml() -> Any:
    """The pynvml module, initialised; None where there is none, or no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    return nvml if _initialise(nvml) else None


@cache
def _initialise(nvml: ModuleType) -> bool:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return False
    return True
