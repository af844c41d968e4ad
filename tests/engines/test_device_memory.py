"""GPU memory by NVML, with a stand-in for the driver that this machine may lack."""

from __future__ import annotations

import sys

import pytest

from engines.device_memory import DeviceMeter
from tests.engines.fake_nvml import FakeGpu, FakeNvml
from utils import nvml


@pytest.fixture(autouse=True)
def _every_gpu_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake)


def test_memory_of_a_tree_is_that_of_the_first_device_without_what_others_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeGpu(processes={1: 100, 2: 20, 9: 7}, others_bytes=5)
    install(monkeypatch, FakeNvml(first, FakeGpu(processes={1: 100, 2: 20}, capability=(8, 6))))
    assert (nvml.process_bytes({1, 2}), nvml.used_bytes()) == (120, 132)
    assert [gpu.capability for gpu in nvml.visible_gpus()] == [90, 86]


@pytest.mark.parametrize("fake", [FakeNvml(driver=False), FakeNvml(FakeGpu(processes={1: 5}), lost=True), FakeNvml()])
def test_without_an_answer_of_the_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    install(monkeypatch, fake)
    assert (nvml.process_bytes({1}), nvml.used_bytes(), nvml.visible_gpus()) == (None, None, [])
    assert DeviceMeter().tree_bytes({1}) == 0


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (nvml.process_bytes({1}), nvml.used_bytes()) == (None, None)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb", "MIG-cccc"]),
        ("1,0", ["GPU-bbbb", "GPU-aaaa"]),
        ("GPU-b", ["GPU-bbbb"]),
        ("MIG-cccc", ["MIG-cccc"]),
        ("0,-1,1", ["GPU-aaaa"]),
        ("7", []),
        ("", []),
    ],
)
def test_only_devices_that_cuda_shows_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: list[str]
) -> None:
    install(monkeypatch, FakeNvml(FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb"), FakeGpu("MIG-cccc")))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.uuid for gpu in nvml.visible_gpus()] == seen


def test_where_processes_are_told_apart_the_meter_goes_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(processes={9: 1000})
    install(monkeypatch, FakeNvml(gpu))
    meter = DeviceMeter()
    with meter.action():
        gpu.processes |= {1: 100, 9: 5000}  # a neighbour grows meanwhile
    assert meter.tree_bytes({1}) == 100
    assert meter.tree_bytes(()) == 0


@pytest.mark.parametrize("listed", [{}, {81234: 700}, {1: None}])
def test_where_they_are_not_it_goes_by_what_the_device_s_use_changed(
    monkeypatch: pytest.MonkeyPatch, listed: dict[int, int | None]
) -> None:
    gpu = FakeGpu(processes=dict(listed), others_bytes=300)
    install(monkeypatch, FakeNvml(gpu))
    meter = DeviceMeter()
    with meter.action():  # a start
        gpu.others_bytes += 900
    assert meter.tree_bytes({1, 2}) == 900
    gpu.others_bytes += 5000  # somebody else's, between our actions
    with meter.action():  # a sleep
        gpu.others_bytes -= 600
    assert meter.tree_bytes({1, 2}) == 300
    with meter.action():  # of which another program freed a part: never below nothing
        gpu.others_bytes -= 800
    assert meter.tree_bytes({1, 2}) == 0


def test_an_action_that_fails_is_measured_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    install(monkeypatch, FakeNvml(gpu))
    meter = DeviceMeter()

    def fails() -> None:
        with meter.action():
            gpu.others_bytes += 40
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fails()
    assert meter.tree_bytes({1}) == 40
