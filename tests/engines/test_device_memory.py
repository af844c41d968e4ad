"""GPU memory by NVML, with a stand-in for the driver that this machine may lack."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines import device_memory


class NVMLError(Exception):
    pass


def fake_nvml(processes: list[list[tuple[int, int | None]]]) -> SimpleNamespace:
    """Devices with their processes, as (pid, bytes)."""

    def running(handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes[handle]]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetCount=lambda: len(processes),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=running,
    )


def test_memory_of_a_tree_is_summed_over_devices_and_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_nvml", lambda: fake_nvml([[(1, 100), (9, 7)], [(2, 20), (1, None)]]))
    assert device_memory.cuda_bytes({1, 2}) == 120


def test_without_a_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "_nvml", lambda: None)
    assert device_memory.cuda_bytes({1}) == 0


def test_an_error_of_the_driver_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise NVMLError("GPU is lost")

    nvml = fake_nvml([])
    nvml.nvmlDeviceGetCount = fails
    monkeypatch.setattr(device_memory, "_nvml", lambda: nvml)
    assert device_memory.cuda_bytes({1}) == 0
