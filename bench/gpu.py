"""What one GPU can do for this product: cold swaps, sleeping and waking, two models at once, and what stays behind.

    python -m bench.gpu [--minutes 8] [--sizes 0.5,3,8] [--cycles 20] [--scratch DIR]

Needs a CUDA device and vLLM from 0.25 on; the models are made on the spot with random weights, in a scratch folder that
is removed afterwards. Without vLLM it measures the embedding engine and the limits. Every part has a limit in time, and
what does not fit into the minutes is left out, and named. Everything that it starts it ends.

The last line is `key=value` figures: `gpu= total_gib= vllm=`, then for each size `cold_s_… swap_s_… wake1_s_…`, and at
the end `left_out= failed=`, the numbers of parts. Without a GPU it is `gpu=none`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from app.memory import available_ram_bytes
from bench._gpu_report import Part, Report, TimeBudget, run_part
from utils import nvml

if TYPE_CHECKING:
    from bench._gpu_parts import Limits, Subject
    from engines.base import EngineContext, EngineFactory

GIB = 2**30
GB = 10**9
CLOSE_S = 50.0  # of the minutes, kept for ending what runs
KV_CACHE_BYTES = GIB
ENGINE_BYTES = KV_CACHE_BYTES + 3 * GIB  # beside the weights: KV cache, context, workspace, and some room
CYCLES_S = 45.0  # for cycles of one kind
START_S = 8.0  # for a small model to start, and to end
EMBEDDER = "embedder"
VLLM, TRANSFORMERS = "vllm", "transformers"
PACKAGES = {VLLM: "vllm", TRANSFORMERS: "sentence_transformers"}


@dataclass(frozen=True, slots=True)
class Options:
    """`total_s` for everything; sizes of chat models in GB, the smallest first."""

    total_s: float
    sizes_gb: tuple[float, ...]
    cycles: int
    scratch: Path | None


@dataclass(slots=True)
class Bench:
    """What all parts share."""

    options: Options
    report: Report
    budget: TimeBudget
    limits: Limits
    folder: Path
    factories: dict[str, EngineFactory] = field(default_factory=dict)
    made: dict[str, Subject] = field(default_factory=dict)

    async def part(self, part: Part) -> None:
        await run_part(part, self.report, self.budget)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 where a part failed."""
    options = parse(argv)
    gpus = nvml.visible_gpus()
    if not gpus:
        print("There is no GPU here: NVML finds no driver, or no device that CUDA_VISIBLE_DEVICES shows.")
        print("gpu=none")
        return 0
    report = Report()
    gpu = gpus[0]
    version = package_version(VLLM)
    report.figures |= {"gpu": gpu.name, "total_gib": gpu.total_bytes / GIB, "vllm": version}
    try:
        asyncio.run(measure(options, report, gpu))
    except (KeyboardInterrupt, asyncio.CancelledError):
        report.leave_out("the rest", "interrupted")
    finally:
        report.print(f"{gpu.name}, {gpu.total_bytes / GIB:.0f} GiB, vLLM {version}")
    return 1 if report.failed else 0


async def measure(options: Options, report: Report, gpu: nvml.Gpu) -> None:
    """All parts in turn, the more telling first; returns when nothing runs any more."""
    from bench._gpu_parts import Limits

    budget = TimeBudget(options.total_s - CLOSE_S)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if options.scratch is not None:
        options.scratch.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-gpu-", dir=options.scratch)))
        bench = Bench(options, report, budget, Limits(), folder)
        bench.factories = await stack.enter_async_context(engine_factories(report))
        await measure_limits(bench)
        if TRANSFORMERS in bench.factories:
            await measure_embedder(bench)
            await measure_precision(bench)
        if VLLM in bench.factories:
            await measure_chat(bench, sizes_that_fit(options.sizes_gb, gpu, folder, report))


@contextlib.asynccontextmanager
async def engine_factories(report: Report) -> AsyncIterator[dict[str, EngineFactory]]:
    """Started factories of the engines whose packages are installed; they import while other things are done."""
    factories: dict[str, EngineFactory] = {}
    with TemporaryDirectory(prefix="bench-gpu-", dir="/tmp") as name:  # a short path, for unix sockets
        context = engine_context(Path(name), "cuda")
        try:
            for engine, package in PACKAGES.items():
                if importlib.util.find_spec(package) is None:
                    report.leave_out(f"everything with {engine}", f"the package {package} is not installed")
                    continue
                factories[engine] = make_factory(engine, context)
                await factories[engine].start()
            yield factories
        finally:
            for factory in factories.values():
                await factory.close()


def engine_context(folder: Path, device: str) -> EngineContext:
    """Private folders below `folder`."""
    from engines.base import EngineContext

    folders = [folder / name for name in ("run", "log", "cache")]
    for path in folders:
        path.mkdir(mode=0o700)
    return EngineContext(folders[0], folders[1], folders[2], device, kv_cache_bytes=KV_CACHE_BYTES)


def make_factory(engine: str, context: EngineContext) -> EngineFactory:
    """Imported here, so that a missing package of one engine leaves the other."""
    if engine == VLLM:
        from engines.vllm_engine import VllmFactory

        return VllmFactory(context)
    from engines.transformers_engine import TransformersFactory

    return TransformersFactory(context)


async def measure_limits(bench: Bench) -> None:
    from bench import _gpu_limits

    report, limits = bench.report, bench.limits

    async def copies() -> None:
        gb_s = await _gpu_limits.pcie_gb_s()
        bench.limits.to_device, bench.limits.to_host = gb_s["to_device"], gb_s["to_host"]
        bench.report.add(
            "machine", "PCIe, pinned memory to the device", gb_s["to_device"], "GB/s", "", "to_device_gb_s"
        )
        bench.report.add("machine", "PCIe, the device to pinned memory", gb_s["to_host"], "GB/s", "", "to_host_gb_s")
        bench.report.add("machine", "PCIe, pageable memory to the device", gb_s["to_device_pageable"], "GB/s")

    async def reading() -> None:
        path = bench.folder / "page-cache"
        with path.open("wb") as file:
            for _ in range(GIB >> 24):
                file.write(bytes(1 << 24))
        limits.page_cache = await asyncio.to_thread(_gpu_limits.page_cache_gb_s, path)
        path.unlink()
        report.add("machine", "page cache, one thread", limits.page_cache, "GB/s", key="page_cache_gb_s")

    await bench.part(Part("copies over PCIe", 5, 60, copies))
    await bench.part(Part("reading from the page cache", 2, 20, reading))


async def make_embedder(bench: Bench, label: str, dtype: str) -> Subject:
    from bench import _gpu_models
    from bench._gpu_client import embed_s
    from bench._gpu_parts import Subject
    from models.types import ModelSpec, Task

    made = await asyncio.to_thread(_gpu_models.make_embedder, bench.folder / label, dtype=dtype)
    spec = ModelSpec(
        id=f"bench/{label}",
        path=made.path,
        task=Task.EMBED,
        engine=TRANSFORMERS,
        architecture="BertModel",
        weights_bytes=made.weights_bytes,
        dtype=dtype,
        fingerprint=label,
    )
    return Subject(label, bench.factories[TRANSFORMERS], spec, embed_s)


async def measure_embedder(bench: Bench) -> None:
    from bench import _gpu_parts

    async def work() -> None:
        subject = bench.made[EMBEDDER] = await make_embedder(bench, EMBEDDER, "bfloat16")
        await _gpu_parts.life(subject, bench.report, bench.limits)

    await bench.part(Part("the life of an embedding model", 15, 90, work))


async def measure_precision(bench: Bench) -> None:
    """What the first load of a model of 32 bits makes of it, and how much longer it takes than later ones."""
    from bench._gpu_parts import running

    async def work() -> None:
        subject = await make_embedder(bench, f"{EMBEDDER}-float32", "float32")
        ready_s: list[float] = []
        for _ in range(2):
            async with running(subject, ready_s) as engine:
                await subject.ask(engine.endpoint, subject.spec.id)
        reason = subject.factory.reasons(subject.spec)[0]
        for what, value, key in (("first", ready_s[0], "first_load_s"), ("second", ready_s[1], "load_s")):
            bench.report.add(subject.label, f"{what} load", value, "s", reason, subject.key(key))

    await bench.part(Part("the precision of an embedding model", 20, 120, work))


async def measure_chat(bench: Bench, sizes_gb: Sequence[float]) -> None:
    """The smallest model's life and cycles, then two at once, then the larger ones, at last compiled."""
    from bench._gpu_parts import first_start, life

    report, limits = bench.report, bench.limits
    for index, size_gb in enumerate(sizes_gb):
        subject = await make_chat(bench, size_gb)
        if subject is None:
            continue
        if index == 0:
            await bench.part(Part("the first start", 20, 150, partial(first_start, subject, report, limits)))
        await bench.part(Part(f"the life of {subject.label}", 20, 120, partial(life, subject, report, limits)))
        if index == 0:
            await measure_cycles(bench, subject)
        if index == min(1, len(sizes_gb) - 1):
            await measure_together(bench, subject)
    if sizes_gb and (smallest := bench.made.get(label_of(sizes_gb[0]))):
        compiled = smallest.compiled()
        await bench.part(Part("the first compiled start", 60, 150, partial(first_start, compiled, report, limits)))
        await bench.part(Part("the life of a compiled model", 40, 120, partial(life, compiled, report, limits)))


async def make_chat(bench: Bench, size_gb: float) -> Subject | None:
    """A chat model of this size, to be run eagerly; None where it could not be made, which the report then says."""
    from bench import _gpu_models
    from bench._gpu_client import first_token_s
    from bench._gpu_parts import Subject
    from models.types import ModelOverrides, ModelSpec, Task

    label = label_of(size_gb)

    async def work() -> None:
        made = await asyncio.to_thread(_gpu_models.make_chat, bench.folder / label, int(size_gb * GB))
        spec = ModelSpec(
            id=f"bench/{label}",
            path=made.path,
            task=Task.COMPLETION,
            engine=VLLM,
            architecture="LlamaForCausalLM",
            model_type="llama",
            weights_bytes=made.weights_bytes,
            max_model_len=_gpu_models.CONTEXT_TOKENS,
            num_layers=made.layers,
            num_kv_heads=made.kv_heads,
            head_dim=made.head_dim,
            dtype="bfloat16",
            overrides=ModelOverrides(engine_args={"enforce-eager": True}),
        )
        bench.made[label] = Subject(label, bench.factories[VLLM], spec, first_token_s)

    await bench.part(Part(f"making a model of {size_gb:g} GB", 5 + 2 * size_gb, 30 + 10 * size_gb, work))
    return bench.made.get(label)


async def measure_cycles(bench: Bench, subject: Subject) -> None:
    from bench._gpu_parts import cycles

    levels = subject.factory.sleep_levels(subject.spec)
    if not levels:
        bench.report.leave_out("cycles of sleep", "engines of this model cannot sleep")
    for level in (*levels, 0):
        name = f"cycles of level {level}" if level else "cycles of start and end"
        limit_s = min(CYCLES_S, bench.budget.left_s)
        work = partial(cycles, subject, level, bench.options.cycles, limit_s - START_S, bench.report)
        await bench.part(Part(name, 2 * START_S, limit_s, work))


async def measure_together(bench: Bench, subject: Subject) -> None:
    from bench._gpu_parts import together

    embedder = bench.made.get(EMBEDDER)
    if embedder is None:
        bench.report.leave_out("two models at once", "there is no embedding model")
        return
    await bench.part(Part("two models at once", 50, 120, partial(together, subject, embedder, bench.report)))


def sizes_that_fit(sizes_gb: Sequence[float], gpu: nvml.Gpu, folder: Path, report: Report) -> list[float]:
    """Those of which the engine fits on the card, the files on the disk, and the weights, asleep, into the RAM."""
    fitting, disk_bytes = [], shutil.disk_usage(folder).free
    for size_gb in sizes_gb:
        size_bytes = int(size_gb * GB)
        if size_bytes + ENGINE_BYTES > gpu.total_bytes - gpu.used_bytes:
            why = f"{(gpu.total_bytes - gpu.used_bytes) / GB:.1f} GB of the card are free"
            report.leave_out(f"{size_gb:g} GB", f"{why}, and beside weights an engine takes {ENGINE_BYTES / GB:.1f}")
        elif size_bytes * 2 > available_ram_bytes():
            report.leave_out(f"{size_gb:g} GB", "asleep its weights would take more than half of the RAM")
        elif size_bytes + GB > disk_bytes:
            report.leave_out(f"{size_gb:g} GB", f"{disk_bytes / GB:.1f} GB are free in {folder}; see --scratch")
        else:
            fitting.append(size_gb)
            disk_bytes -= size_bytes
    return fitting


def label_of(size_gb: float) -> str:
    """As people and figures call a chat model."""
    return f"{size_gb:g}gb"


def package_version(package: str) -> str:
    """Of an importable package, without importing it; "none" where there is none."""
    builds = importlib.metadata.packages_distributions().get(package, [])  # vllm, or a build of another name
    return importlib.metadata.version(builds[0]) if builds else "none"


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="for everything (default 8)")
    parser.add_argument("--sizes", default="0.5,3,8", help="of the chat models, GB (default 0.5,3,8)")
    parser.add_argument("--cycles", type=int, default=20, help="of each kind, to see what stays behind (default 20)")
    parser.add_argument("--scratch", type=Path, help="where models are made, in a folder of their own")
    values = parser.parse_args(argv)
    try:
        sizes = tuple(sorted({float(size) for size in values.sizes.split(",")}))
    except ValueError:
        parser.error(f"--sizes {values.sizes}: numbers of GB, with commas between them")
    if sizes[0] <= 0 or values.cycles < 1 or values.minutes * 60 <= CLOSE_S:
        parser.error(f"sizes and cycles must be positive, and --minutes more than {CLOSE_S / 60:.1f}")
    return Options(values.minutes * 60, sizes, values.cycles, values.scratch)


if __name__ == "__main__":
    sys.exit(main())
