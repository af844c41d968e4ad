"""A stand-in for the pynvml module, and so for the driver that this machine may lack: the one seam to the GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

GIB = 2**30


class NVMLError(Exception):
    pass


@dataclass
class FakeGpu:
    """`processes`: pid → bytes, None where the driver does not say how much. `others_bytes`: held by no listed pid."""

    uuid: str = "GPU-aaaa"
    total_bytes: int = 24 * GIB
    processes: dict[int, int | None] = field(default_factory=dict)
    others_bytes: int = 0
    capability: tuple[int, int] = (9, 0)


class FakeNvml(ModuleType):
    """To be put into sys.modules as "pynvml". `lost` makes every question fail."""

    NVMLError = NVMLError

    def __init__(self, *gpus: FakeGpu, lost: bool = False, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.gpus = gpus
        self.lost = lost
        self.driver = driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        if self.lost:
            raise NVMLError("GPU is lost")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        found = [gpu for gpu in self.gpus if gpu.uuid == uuid]
        if not found:
            raise NVMLError("Not Found")
        return found[0]

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return f"Fake {handle.uuid}"

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.uuid

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeGpu) -> tuple[int, int]:
        return handle.capability

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:
        used = handle.others_bytes + sum(used or 0 for used in handle.processes.values())
        return SimpleNamespace(total=handle.total_bytes, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.processes.items()]
