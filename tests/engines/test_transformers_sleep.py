"""Weights of retrieval models that leave the device and come back: the engine's server, and the engine around it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import EngineContext, SleepFailed
from engines.canary import close
from engines.process import ProcessEngine
from engines.progress import transformers_questions
from engines.runtime.transformers_sleep import NotIdle, Residence
from engines.sleeping import DeviceSizes, SleepableEngine
from engines.transformers_engine import TransformersFactory, create_factory
from engines.transformers_sleep import TransformersSleepRoutes
from models.errors import Busy
from models.types import ModelOverrides, ModelSpec, Task
from tests.engines import retrieval_models
from tests.engines.fake_nvml import FakeGpu, FakeNvml
from tests.engines.transformers_support import (
    GRACE_S,
    START_TIMEOUT_S,
    client_of,
    running_engine,
    spec_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 2**20
TIMEOUT_S = 20.0
CONTEXT_BYTES = 300 * MIB


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    return retrieval_models.make_cross_encoder(tmp_path / "reranker")


class CountedWeights:
    """Notes each move; the next one to the device fails if told so."""

    def __init__(self) -> None:
        self.moves: list[str] = []
        self.fails = False

    def to_host(self) -> None:
        self.moves.append("host")

    def to_device(self) -> None:
        if self.fails:
            raise RuntimeError("CUDA out of memory")
        self.moves.append("device")


async def at_once(work: Callable[[], None]) -> None:
    work()


async def test_weights_move_only_while_no_request_needs_them() -> None:
    weights = CountedWeights()
    residence = Residence(weights, at_once)
    with residence.request(), pytest.raises(NotIdle, match="1 requests run"):
        await residence.sleep()
    assert weights.moves == []
    await residence.sleep()
    with pytest.raises(Busy), residence.request():
        pass
    await residence.wake()
    with residence.request():
        assert weights.moves == ["host", "device"]


async def test_a_move_back_that_lacks_memory_leaves_it_asleep_and_may_be_tried_again() -> None:
    weights = CountedWeights()
    residence = Residence(weights, at_once)
    await residence.sleep()
    weights.fails = True
    with pytest.raises(RuntimeError):
        await residence.wake()
    assert residence.asleep
    weights.fails = False
    await residence.wake()
    assert not residence.asleep


async def test_an_engine_that_sleeps_says_so_and_refuses_requests_at_once(
    factory: TransformersFactory, minilm: Path
) -> None:
    async with running_engine(factory, spec_of(minilm)) as engine, client_of(engine) as client:
        before = await client.ok("/v1/embeddings", input="asleep")
        async with client.session.post("http://engine/engine/sleep") as response:
            assert response.status == 200
        assert not await engine.health()
        status, answer = await client.post("/v1/embeddings", {"input": "asleep"})
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        async with client.session.post("http://engine/engine/wake") as response:
            assert response.status == 200
        assert await engine.health()
        assert await client.ok("/v1/embeddings", input="asleep") == before


async def test_an_engine_with_a_request_does_not_fall_asleep(factory: TransformersFactory, minilm: Path) -> None:
    async with running_engine(factory, spec_of(minilm)) as engine, client_of(engine) as client:
        bulk = asyncio.create_task(client.ok("/v1/embeddings", input=["word " * 100] * 200))
        await client.ok("/v1/embeddings", input="the bulk was sent before")
        async with client.session.post("http://engine/engine/sleep") as response:
            assert response.status == 409
            assert "requests run" in await response.text()
        assert len((await bulk)["data"]) == 200


@pytest.mark.parametrize(
    "make",
    [
        retrieval_models.make_splade,
        retrieval_models.make_colbert,
        retrieval_models.make_classifier,
        retrieval_models.make_qwen3_reranker,
    ],
)
async def test_each_kind_of_model_is_asked_what_it_can_answer_and_answers_alike_after_sleep(
    factory: TransformersFactory, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    spec = retrieval_models.judged(make(tmp_path / "Qwen3-Reranker-tiny"))
    questions = transformers_questions(spec.id, spec.task, spec.method)
    async with running_engine(factory, spec) as engine, client_of(engine) as client:
        assert engine.endpoint.uds is not None
        routes = TransformersSleepRoutes(engine.endpoint.uds, spec.id, spec.task, spec.method)
        before = await routes.canary()
        assert len(set(before)) > 2
        await routes.fall_asleep(1)
        await routes.wake_up(1)
        assert routes.same(before, await routes.canary())
        async with client.session.post(f"http://engine{questions.nudge_path}", json=questions.nudge_body) as response:
            assert response.status == 200


def on_a_gpu(factory: TransformersFactory, spec: ModelSpec, weights_bytes: int) -> SleepableEngine[tuple[float, ...]]:
    """An engine as it is made beside a GPU, but for the device that its process computes on."""
    plain = factory.create(spec)
    assert isinstance(plain, ProcessEngine)
    return SleepableEngine(
        factory._launcher,
        plain._request,
        plain._uds,
        "cuda",
        transformers_questions(spec.id, spec.task),
        levels=(1,),
        routes=TransformersSleepRoutes(plain._uds, spec.id, spec.task),
        sizes=lambda: DeviceSizes(weights_bytes),
    )


class Readings(dict[int, int]):
    """What NVML tells of one process, each time that it is asked; the last of it for ever."""

    def __init__(self, engine: ProcessEngine, *counts: int) -> None:
        super().__init__()
        self._engine = engine
        self._counts = list(counts)

    def items(self) -> list[tuple[int, int]]:  # type: ignore[override]
        assert self._engine.process is not None
        return [(self._engine.process.pid, self._counts.pop(0) if len(self._counts) > 1 else self._counts[0])]


@pytest.mark.parametrize("task", [Task.EMBED, Task.RERANK])
async def test_beside_a_gpu_it_answers_as_before_when_it_is_back(
    factory: TransformersFactory, minilm: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    engine = on_a_gpu(factory, spec_of(minilm if task is Task.EMBED else reranker, task), 90 * MIB)
    gpu = FakeGpu(processes=Readings(engine, CONTEXT_BYTES + 100 * MIB, CONTEXT_BYTES))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu))
    await engine.start(START_TIMEOUT_S)
    try:
        report = await engine.sleep(1, TIMEOUT_S)
        assert (report.device_bytes, report.host_bytes) == (CONTEXT_BYTES, 100 * MIB)
        assert not await engine.health()
        await engine.wake(TIMEOUT_S)
        assert await engine.health()
        assert engine._canary is not None
        # As if other weights had come back.
        monkeypatch.setattr(engine, "_canary", tuple(-value for value in engine._canary))
        gpu.processes = Readings(engine, CONTEXT_BYTES + 100 * MIB, CONTEXT_BYTES)
        await engine.sleep(1, TIMEOUT_S)
        with pytest.raises(SleepFailed, match="answers otherwise") as failed:
            await engine.wake(TIMEOUT_S)
        assert failed.value.forever
    finally:
        await engine.stop(GRACE_S)


async def test_rounding_is_no_other_answer() -> None:
    before = (0.6, -0.8, 0.0)
    assert close(before, before)
    assert close(before, (0.6004, -0.8003, 0.0002))
    assert not close(before, (0.62, -0.78, 0.0))  # a cosine of 0.9996
    assert not close(before, (0.6, -0.8))


async def test_retrieval_models_sleep_beside_a_gpu_and_not_on_the_cpu(tmp_path: Path) -> None:
    context = EngineContext(Path("/tmp"), tmp_path, tmp_path, "cuda")
    gpu, cpu = create_factory(context), create_factory(replace(context, device="cpu"))
    awake = spec_of(tmp_path, overrides=ModelOverrides(sleep=False))
    assert (gpu.sleep_levels(spec_of(tmp_path)), gpu.sleep_levels(awake)) == ((1,), ())
    assert cpu.sleep_levels(spec_of(tmp_path)) == ()
    assert isinstance(gpu.create(spec_of(tmp_path)), SleepableEngine)
    assert not isinstance(cpu.create(spec_of(tmp_path)), SleepableEngine)
    assert "sleep: level 1 (weights in host memory)" in gpu.reasons(spec_of(tmp_path))
