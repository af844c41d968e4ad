"""Sleep and wake of vLLM's engines on CUDA, against a stand-in for vLLM: what holds, and what each fault leads to."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from engines import sleeping
from engines.base import Endpoint, EngineContext, SleepFailed
from engines.engine_http import EngineCallFailed, call
from engines.vllm_adapters import SleepableVllmEngine, VllmEngine
from engines.vllm_engine import VllmFactory
from models.types import ModelSpec, SleepReport, Task
from tests.engines.process_support import WAIT_S
from tests.engines.standin.core import CONTEXT_BYTES, Fault
from tests.engines.standin_factory import (
    KV_BYTES,
    WEIGHTS_BYTES,
    StandinFactory,
    standin_factory,
    standin_spec,
    standing_in,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT_S = 20.0
AWAKE_BYTES = CONTEXT_BYTES + WEIGHTS_BYTES + KV_BYTES


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory() -> AsyncIterator[StandinFactory]:
    """One launcher for all tests here; at the end no process or socket of theirs may be left."""
    async with standin_factory() as factory:
        yield factory


async def complete(endpoint: Endpoint, model: str = "org/model", **more: Any) -> list[int]:
    """The tokens of a completion that vLLM's client would get."""
    assert endpoint.uds is not None
    async with asyncio.timeout(WAIT_S):
        answer = await call(
            endpoint.uds, "POST", "/v1/completions", body={"model": model, "prompt": "once", "max_tokens": 4, **more}
        )
    return list(answer["choices"][0]["token_ids"])


@pytest.mark.parametrize("level", [1, 2])
async def test_it_leaves_the_device_and_answers_as_before_when_it_is_back(
    factory: StandinFactory, tmp_path: Path, level: int
) -> None:
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        before = await complete(engine.endpoint)
        assert engine.memory_bytes() == AWAKE_BYTES
        for _ in range(2):
            report = await engine.sleep(level, TIMEOUT_S)
            host_bytes = WEIGHTS_BYTES if level == 1 else 0
            assert report == SleepReport(report.duration_s, CONTEXT_BYTES, host_bytes)
            assert not await engine.health()
            assert await engine.wake(TIMEOUT_S) > 0
            assert await engine.health()
            assert engine.memory_bytes() == AWAKE_BYTES
            assert await complete(engine.endpoint) == before


async def test_a_sleeping_engine_says_itself_that_it_is_healthy_and_lets_requests_hang(
    factory: StandinFactory, tmp_path: Path
) -> None:
    """Why the state is kept on our side. If vLLM changes there, the stand-in should too."""
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        await engine.sleep(1, TIMEOUT_S)
        assert engine.endpoint.uds is not None
        await call(engine.endpoint.uds, "GET", "/health")
        waiting = asyncio.create_task(complete(engine.endpoint))
        assert (await call(engine.endpoint.uds, "GET", "/is_sleeping")) == {"is_sleeping": True}
        assert not waiting.done()
        await engine.wake(TIMEOUT_S)
        assert len(await waiting) == 4


async def test_an_answer_that_is_still_running_is_finished_and_not_cut_off(
    factory: StandinFactory, tmp_path: Path
) -> None:
    async with standing_in(factory, standin_spec(tmp_path, token_s=0.01)) as engine:
        url = f"{engine.endpoint.base_url}/v1/completions"
        body = {"model": "org/model", "prompt": "once", "max_tokens": 30, "stream": True}
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.endpoint.uds))) as session,
            session.post(url, json=body) as response,
        ):
            await response.content.readline()
            await engine.sleep(1, TIMEOUT_S)
            rest = await asyncio.wait_for(response.text(), WAIT_S)
        assert rest.count("token_ids") == 29
        assert rest.endswith("data: [DONE]\n\n")


async def test_what_nvml_does_not_know_by_pid_is_measured_by_what_the_device_gets_back(
    factory: StandinFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory.gpu.processes, "host_pids", True)
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        assert engine.memory_bytes() == AWAKE_BYTES
        assert (await engine.sleep(1, TIMEOUT_S)).device_bytes == CONTEXT_BYTES
        await engine.wake(TIMEOUT_S)
        assert engine.memory_bytes() == AWAKE_BYTES


async def test_a_wake_that_lacks_memory_at_first_is_tried_again(factory: StandinFactory, tmp_path: Path) -> None:
    async with standing_in(factory, standin_spec(tmp_path, Fault.WAKE_FAILS_ONCE)) as engine:
        before = await complete(engine.endpoint)
        await engine.sleep(2, TIMEOUT_S)
        await engine.wake(TIMEOUT_S)
        assert await complete(engine.endpoint) == before


@pytest.mark.parametrize(
    ("fault", "cause", "forever"),
    [
        (Fault.SLEEP_FAILS, "Memory usage increased after sleeping", False),
        (Fault.SLEEP_HANGS, "did not fall asleep at level 2 within 1 s", False),
        (Fault.KEEPS_MEMORY, "memory did not come back: 896 MiB before, 896 MiB asleep, with 384 MiB", True),
    ],
)
async def test_an_engine_that_does_not_fall_asleep_is_no_longer_trusted(
    factory: StandinFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    cause: str,
    forever: bool,
) -> None:
    monkeypatch.setattr(sleeping, "FREED_WITHIN_S", 0.2)
    async with standing_in(factory, standin_spec(tmp_path, fault)) as engine:
        with pytest.raises(SleepFailed, match=cause) as failed:
            await engine.sleep(2, 1.0 if fault is Fault.SLEEP_HANGS else TIMEOUT_S)
        assert failed.value.forever is forever
        assert not await engine.health()


@pytest.mark.parametrize(
    ("fault", "cause", "forever"),
    [
        (Fault.WAKE_FAILS, "out of memory", False),
        (Fault.WAKE_HANGS, "did not wake from level 2 within 1 s", False),
        (Fault.STAYS_ASLEEP, "/is_sleeping answered {'is_sleeping': True}", False),
        (Fault.DIES_WAKING, "/wake_up", False),
        (Fault.KEEPS_CACHE, "/reset_prefix_cache", False),
        (Fault.ANSWERS_DIFFERENTLY, "answers otherwise than before", True),
    ],
)
async def test_an_engine_that_does_not_come_back_as_it_was_is_no_longer_trusted(
    factory: StandinFactory, tmp_path: Path, fault: Fault, cause: str, forever: bool
) -> None:
    async with standing_in(factory, standin_spec(tmp_path, fault)) as engine:
        await engine.sleep(2, TIMEOUT_S)
        with pytest.raises(SleepFailed, match=cause) as failed:
            await engine.wake(1.0 if fault is Fault.WAKE_HANGS else TIMEOUT_S)
        assert failed.value.forever is forever
        assert not await engine.health()


async def test_weights_that_were_not_read_again_are_noticed(
    factory: StandinFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM answers after level 2 when nobody reloads the weights."""
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        await engine.sleep(2, TIMEOUT_S)
        monkeypatch.setattr(engine, "_asleep", 1)  # woken as if from level 1
        with pytest.raises(SleepFailed, match="token 0 alone, as a model does that computes NaN") as failed:
            await engine.wake(TIMEOUT_S)
        assert failed.value.forever


async def test_an_engine_that_dies_asleep_is_reported_and_cannot_be_woken(
    factory: StandinFactory, tmp_path: Path
) -> None:
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        await engine.sleep(1, TIMEOUT_S)
        assert engine.process is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        assert (await asyncio.wait_for(engine.wait_exited(), WAIT_S)).signal == signal.SIGKILL
        with pytest.raises(SleepFailed, match="did not wake"):
            await engine.wake(TIMEOUT_S)


async def test_level_1_does_not_become_level_2(factory: StandinFactory, tmp_path: Path) -> None:
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        await engine.sleep(1, TIMEOUT_S)
        with pytest.raises(SleepFailed, match="sleeps already, at level 1"):
            await engine.sleep(2, TIMEOUT_S)
        await engine.wake(TIMEOUT_S)


async def test_only_an_engine_that_sleeps_is_woken(factory: StandinFactory, tmp_path: Path) -> None:
    async with standing_in(factory, standin_spec(tmp_path)) as engine:
        with pytest.raises(SleepFailed, match="does not sleep"):
            await engine.wake(TIMEOUT_S)


async def test_adapters_are_among_what_must_answer_as_before(factory: StandinFactory, tmp_path: Path) -> None:
    pirate, parrot = (ModelSpec(f"org/{name}", tmp_path / name, Task.ADAPTER, "vllm") for name in ("pirate", "parrot"))
    async with standing_in(factory, standin_spec(tmp_path), pirate) as engine:
        assert isinstance(engine, SleepableVllmEngine)
        await engine.add_adapter(pirate)
        await engine.sleep(1, TIMEOUT_S)
        assert engine._canary is not None
        assert list(engine._canary) == ["org/model", "org/pirate"]
        assert engine._canary["org/model"] != engine._canary["org/pirate"]
        await engine.wake(TIMEOUT_S)
        await engine.add_adapter(pirate)  # is in it still: nothing new
        await engine.add_adapter(replace(pirate, fingerprint="2"))  # these are: what it answered before says nothing
        await engine.add_adapter(parrot)
        await engine.sleep(1, TIMEOUT_S)
        await engine.remove_adapter("org/parrot")  # its folder goes while the engine sleeps
        await engine.wake(TIMEOUT_S)
        with pytest.raises(SleepFailed, match="was not started for level 2"):
            await engine.sleep(2, TIMEOUT_S)


async def test_an_engine_that_may_not_sleep_has_no_such_routes(factory: StandinFactory, tmp_path: Path) -> None:
    engine = factory.create(standin_spec(tmp_path, overrides={"sleep": False}))
    assert isinstance(engine, VllmEngine)
    await engine.start(TIMEOUT_S)
    try:
        with pytest.raises(EngineCallFailed, match="404"):
            await call(engine._uds, "POST", "/sleep")
        with pytest.raises(SleepFailed):
            await engine.sleep(1, TIMEOUT_S)
    finally:
        await engine.stop(0)
    assert factory.sleep_levels(standin_spec(tmp_path, overrides={"sleep": False})) == ()


@pytest.mark.parametrize(
    ("fields", "engine_args", "levels", "reason"),
    [
        ({}, {}, (1, 2), "level 2 (weights are read again)"),
        ({"overrides": {"sleep": False}}, {}, (), "off, configured for this model"),
        ({}, {"enable_sleep_mode": False}, (), "off, as enable-sleep-mode is configured"),
        ({}, {"speculative_config": {"method": "eagle"}}, (1,), "draft model"),
        ({"architecture": "Gemma3ForConditionalGeneration"}, {}, (1,), "images"),
    ],
)
async def test_the_levels_of_a_model_and_why(
    tmp_path: Path, fields: dict[str, Any], engine_args: dict[str, Any], levels: tuple[int, ...], reason: str
) -> None:
    factory = VllmFactory(EngineContext(Path("/tmp"), tmp_path, tmp_path, "cuda", engine_args))
    spec = standin_spec(tmp_path, **fields)
    assert factory.sleep_levels(spec) == levels
    assert [told for told in factory.reasons(spec) if reason in told]
    assert ("--enable-sleep-mode" in factory.explain(spec).args) is bool(levels)


async def test_adapters_would_not_survive_level_2(tmp_path: Path) -> None:
    factory = VllmFactory(EngineContext(Path("/tmp"), tmp_path, tmp_path, "cuda"))
    adapter = ModelSpec("org/pirate", tmp_path / "pirate", Task.ADAPTER, "vllm")
    assert factory.sleep_levels(standin_spec(tmp_path), [adapter]) == (1,)
    assert "sleep: level 1 only; level 2 would lose the LoRA adapters" in factory.reasons(
        standin_spec(tmp_path), [adapter]
    )


async def test_on_the_cpu_vllm_does_not_sleep(tmp_path: Path) -> None:
    factory = VllmFactory(EngineContext(Path("/tmp"), tmp_path, tmp_path, "cpu"))
    assert factory.sleep_levels(standin_spec(tmp_path)) == ()
    assert "--enable-sleep-mode" not in factory.explain(standin_spec(tmp_path)).args
