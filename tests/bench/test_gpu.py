"""The measurements for a GPU, as far as they can be tested without one: on real engines, and on stand-ins for CUDA."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from bench import _gpu_client, _gpu_limits, _gpu_models, _gpu_parts, gpu
from bench._gpu_client import first_token_s
from bench._gpu_parts import Limits, Subject
from bench._gpu_report import Part, Report, TimeBudget, run_part
from engines.base import EngineContext, EngineFactory
from engines.transformers_engine import TransformersFactory
from engines.vllm_engine import VllmFactory
from models.types import ModelSpec, Task
from tests.engines.fake_nvml import GIB, FakeGpu, FakeNvml
from tests.engines.process_support import engine_folders, marked_processes
from tests.engines.standin.core import Fault
from tests.engines.standin.device import ReportedMemory
from tests.engines.standin_factory import StandinFactory, standin_factory, standin_spec
from utils import nvml

TINY_BYTES = 1 << 20
KV_BYTES = 16 << 20
FAST = Limits(page_cache=10.0, to_device=50.0, to_host=40.0)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu(total_bytes=24 * GIB, others_bytes=GIB)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fake))
    return fake


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "There is no GPU here" in said[0]
    assert said[-1] == "gpu=none"


def test_no_framework_is_imported_to_find_out() -> None:
    code = "import sys; import bench.gpu; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.usefixtures("fake_gpu")
def test_with_a_gpu_and_no_engine_what_can_be_measured_is_and_the_rest_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "PACKAGES", {"vllm": "no_such_package", "transformers": "nor_this_one"})
    monkeypatch.setattr(gpu, "GIB", 1 << 26)  # of the file for the page cache
    assert gpu.main(["--scratch", str(tmp_path / "scratch")]) == 1  # torch has no CUDA here
    said = capsys.readouterr().out
    assert "Left out: everything with vllm: the package no_such_package is not installed" in said
    assert "Failed: copies over PCIe: RuntimeError" in said
    assert re.search(r"page cache, one thread +\d", said)
    assert said.splitlines()[-1].startswith("gpu=Fake_GPU-aaaa total_gib=")
    assert said.splitlines()[-1].endswith("left_out=2 failed=1")
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("argv", [["--sizes", "big"], ["--sizes", "0"], ["--cycles", "0"], ["--minutes", "0.5"]])
def test_options_that_make_no_sense_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(argv)


def test_sizes_that_do_not_fit_are_left_out_with_the_reason(fake_gpu: FakeGpu, tmp_path: Path) -> None:
    report = Report()
    card = nvml.visible_gpus()[0]
    assert gpu.sizes_that_fit([0.001, 30], card, tmp_path, report) == [0.001]
    assert report.left_out == ["30 GB: 24.7 GB of the card are free, and beside weights an engine takes 4.3"]


async def test_a_part_is_not_begun_too_late_and_cut_off_at_its_limit() -> None:
    report = Report()
    now_s = [0.0]
    budget = TimeBudget(100, lambda: now_s[0])

    async def work() -> None:
        report.add("m", "half", 1.0)
        await asyncio.Event().wait()

    await run_part(Part("one that hangs", 10, 0.01, work), report, TimeBudget(100))
    assert report.left_out == ["one that hangs: 100 s are left, and it needs 10"]
    await run_part(Part("one that hangs", 0, 0.01, work), report, budget)
    assert report.left_out[1] == "one that hangs: cut off after 0 s; what it had measured by then is shown"
    assert report.rows == [("m: half", 1.0, "", "")]
    now_s[0] = 95.0
    await run_part(Part("a late one", 10, 50, work), report, budget)
    assert report.left_out[2] == "a late one: 5 s are left, and it needs 10"


async def test_a_part_that_fails_is_told_and_the_next_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()

    async def fails() -> None:
        raise RuntimeError("CUDA error:\n  out of memory")

    async def works() -> None:
        report.add("m", "wake", 0.25, "s", "PCIe alone 0.10 s", "wake_s")

    await run_part(Part("first", 0, 5, fails), report, TimeBudget(100))
    await run_part(Part("second", 0, 5, works), report, TimeBudget(100))
    report.print("A card")
    said = capsys.readouterr().out.splitlines()
    assert "Failed: first: RuntimeError: CUDA error: out of memory" in said
    assert said[-1] == "wake_s=0.25 left_out=0 failed=1"
    assert [line.split() for line in said if line.startswith("m: wake")] == [
        ["m:", "wake", "0.250", "s", "PCIe", "alone", "0.10", "s"]
    ]


@pytest.mark.parametrize("size_gb", [0.5, 3, 8, 16])
def test_the_shapes_give_the_sizes_that_are_asked_for(size_gb: float) -> None:
    size_bytes = int(size_gb * 1e9)
    shape = next(shape for least, shape in reversed(_gpu_models.SHAPES) if size_bytes >= least)
    layers = shape.layers(size_bytes)
    made = 2 * (2 * _gpu_models.VOCABULARY * shape.hidden + layers * shape.layer_values)
    assert abs(made - size_bytes) < 0.1 * size_bytes
    assert shape.heads % shape.kv_heads == 0
    assert 8 <= layers <= 64


async def test_made_models_live_on_the_real_engines_and_answer_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gpu_parts, "RATE_S", 0.1)
    monkeypatch.setattr(_gpu_client, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(_gpu_client, "TEXTS", ["one text", "and another"])
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    chat = _gpu_models.make_chat(tmp_path / "chat", TINY_BYTES)
    make_small = partial(_gpu_models.make_embedder, hidden=64, layers=1)
    monkeypatch.setattr(_gpu_models, "make_embedder", make_small)
    report = Report()
    with engine_folders(kv_cache_bytes=KV_BYTES) as context:
        nothing_compared = replace(context, engine_args={"backend": "torch"})
        factories = VllmFactory(context), TransformersFactory(nothing_compared)
        try:
            for factory in factories:
                await factory.start()
            chat_spec = ModelSpec("bench/chat", chat.path, Task.COMPLETION, "vllm", max_model_len=2048)
            talking = Subject("chat", factories[0], replace(chat_spec, weights_bytes=chat.weights_bytes), first_token_s)
            bench = gpu.Bench(gpu.parse([]), report, TimeBudget(100), FAST, tmp_path, {"transformers": factories[1]})
            embedding = await gpu.make_embedder(bench, "embedder", "bfloat16")
            await _gpu_parts.life(embedding, report, FAST)
            await _gpu_parts.together(talking, embedding, report)
            await gpu.measure_precision(bench)
        finally:
            for factory in factories:
                await factory.close()
    assert report.failed == []
    assert report.rows[-1][0].startswith("embedder-float32: second load")
    assert report.rows[-1][3].startswith("loaded as float32")
    assert {
        "cold_s_embedder",
        "load_s_embedder-float32",
        "swap_s_embedder",
        "tokens_s_alone",
        "tokens_s_beside",
        "texts_s_beside",
    } <= set(report.figures)
    assert all(isinstance(value, float) and value > 0 for value in report.figures.values())


@pytest.fixture
async def standins() -> AsyncIterator[StandinFactory]:
    async with standin_factory() as factory:
        yield factory


def subject_of(factory: StandinFactory, folder: Path, *faults: Fault) -> Subject:
    return Subject("0.5gb", factory, standin_spec(folder, *faults), first_token_s)


async def test_the_life_of_a_model_that_sleeps_shows_what_each_level_takes_and_holds(
    standins: StandinFactory, tmp_path: Path
) -> None:
    report = Report()
    await _gpu_parts.life(subject_of(standins, tmp_path), report, FAST)
    assert report.failed == []
    for key in ("cold_s", "swap_s", "sleep1_s", "wake1_s", "sleep2_s", "wake2_s"):
        assert float(report.figures[f"{key}_0.5gb"]) > 0
    assert float(report.figures["asleep1_mib_0.5gb"]) < float(report.figures["ready_mib_0.5gb"])
    assert report.figures["canary1_0.5gb"] == report.figures["canary2_0.5gb"] == "the same"
    rows = {row[0]: row for row in report.rows}
    assert rows["0.5gb: waking, level 1"][3] == "PCIe alone 0.01 s"
    assert rows["0.5gb: memory after its end"][1] == 0.0


async def test_an_engine_that_answers_otherwise_after_a_wake_is_a_failure_and_the_swap_is_measured_all_the_same(
    standins: StandinFactory, tmp_path: Path
) -> None:
    report = Report()
    await _gpu_parts.life(subject_of(standins, tmp_path, Fault.ANSWERS_DIFFERENTLY), report, FAST)
    assert len(report.failed) == 1
    assert "it answers otherwise than before" in report.failed[0]
    assert "canary1_0.5gb" not in report.figures
    assert "swap_s_0.5gb" in report.figures


@pytest.mark.parametrize(("level", "figure"), [(1, "left_asleep1_mib"), (2, "left_awake2_mib"), (0, "left_starts_mib")])
async def test_cycles_tell_what_stays_behind(standins: StandinFactory, tmp_path: Path, level: int, figure: str) -> None:
    report = Report()
    await _gpu_parts.cycles(subject_of(standins, tmp_path), level, 3, 60.0, report)
    assert report.figures[f"{figure}_0.5gb"] == 0.0
    assert all(row[3].startswith("3 times: ") for row in report.rows)


async def test_of_cycles_there_are_as_many_as_there_is_time_for(standins: StandinFactory, tmp_path: Path) -> None:
    report = Report()
    await _gpu_parts.cycles(subject_of(standins, tmp_path), 1, 20, 0.0, report)
    assert all(row[3].startswith("1 times: ") for row in report.rows)


@pytest.mark.usefixtures("fake_gpu")
def test_the_whole_run_goes_through_all_parts_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fake_gpu: FakeGpu
) -> None:
    def factory_of(engine: str, context: EngineContext) -> EngineFactory:
        assert (engine, context.device) == ("vllm", "cuda")
        fake_gpu.processes = ReportedMemory(context.log_dir)  # type: ignore[assignment]
        return StandinFactory(context, fake_gpu)

    async def copies() -> dict[str, float]:
        return {"to_device": 50.0, "to_host": 40.0, "to_device_pageable": 10.0}

    monkeypatch.setattr(gpu, "make_factory", factory_of)
    monkeypatch.setattr(gpu, "PACKAGES", {"vllm": "vllm"})
    monkeypatch.setattr(gpu, "GIB", 1 << 26)  # of the file for the page cache
    monkeypatch.setattr(_gpu_limits, "pcie_gb_s", copies)
    before = set(marked_processes(os.getpid()))
    assert gpu.main(["--scratch", str(tmp_path), "--sizes", "0.001,0.01", "--cycles", "2"]) == 0
    last = dict(figure.split("=") for figure in capsys.readouterr().out.splitlines()[-1].split())
    for size in ("0.001gb", "0.01gb", "0.001gb_compiled"):
        assert {f"{name}_{size}" for name in ("cold_s", "swap_s", "wake1_s", "wake2_s", "canary1")} <= set(last)
    assert {"first_start_s_0.001gb", "left_awake1_mib_0.001gb", "left_starts_mib_0.001gb"} <= set(last)
    assert (last["left_out"], last["failed"]) == ("1", "0")  # two models at once need an embedding model
    assert list(tmp_path.iterdir()) == []
    assert set(marked_processes(os.getpid())) <= before


def test_the_packages_that_are_looked_for_are_those_that_the_engines_import() -> None:
    assert all(importlib.util.find_spec(package) for package in gpu.PACKAGES.values())
