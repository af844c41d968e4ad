"""Real vLLM with the demonstration models: forked, answering, failing and being killed."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from demo import facts
from engines import engine_log, progress
from engines.base import Endpoint, EngineStartError, TakesAdapters
from engines.process import ProcessEngine, engine_files
from engines.runtime.protocol import EngineRequest
from engines.runtime.vllm_runtime import START_METHOD_VARIABLE
from engines.vllm_engine import VllmFactory, launcher_changes
from engines.vllm_lora import LORA_PLAIN_INITS, LORA_UNSUPPORTED
from engines.vllm_sleep import ENVIRONMENT, VllmSleepRoutes
from models.types import Availability, ModelOverrides, ModelSpec, Task
from tests.engines import vllm_parsing
from tests.engines.process_support import WAIT_S, engine_folders, until_gone
from tests.engines.vllm_formats import ANSWER, FORMATS, THOUGHT, Format
from utils import procfs

START_TIMEOUT_S = 90.0  # with the launcher's import, on a busy machine
GRACE_S = 15.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def factory() -> AsyncIterator[VllmFactory]:
    """One launcher for all tests here; at the end no process, socket or record of shared memory may be left."""
    with engine_folders() as context:
        factory = VllmFactory(context, vllm_parsing.__name__)  # vLLM's runtime, and one thing more
        await factory.start()
        try:
            yield factory
        finally:
            await factory.close()


def chat_spec(path: Path, model_id: str = facts.QWEN3_CHAT, **fields: Any) -> ModelSpec:
    shape = {"num_layers": 4, "num_kv_heads": 2, "head_dim": 32, "max_model_len": facts.CONTEXT_TOKENS}
    return ModelSpec(
        id=model_id,
        path=path,
        task=Task.CHAT,
        engine="vllm",
        **{"model_type": "qwen3", "dtype": "bfloat16", **shape, **fields},
    )


@contextlib.asynccontextmanager
async def running(factory: VllmFactory, spec: ModelSpec, *adapters: ModelSpec) -> AsyncIterator[ProcessEngine]:
    engine = factory.create(spec, adapters)
    assert isinstance(engine, ProcessEngine)
    await engine.start(START_TIMEOUT_S)
    try:
        yield engine
    finally:
        await engine.stop(GRACE_S)
        assert engine.memory_bytes() == 0


async def ask(endpoint: Endpoint, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 100}
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(endpoint.uds))) as session,
        session.post(f"{endpoint.base_url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


async def test_a_model_is_forked_and_answers_and_the_launcher_keeps_its_single_thread(
    factory: VllmFactory, demo_models: Path
) -> None:
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT, aliases=("qwen",))) as engine:
        assert await engine.health()
        assert await ask(engine.endpoint, "qwen", facts.WHICH_MODEL) == facts.QWEN3.answers[facts.WHICH_MODEL]
        state = factory.state()
        assert (state["state"], state["start_method"], state["reason"]) == ("ready", "fork", "")
        assert procfs.thread_count(state["pid"]) == 1


async def test_vllms_own_process_is_forked_too_and_has_its_worker_in_it(
    factory: VllmFactory, demo_models: Path
) -> None:
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT)) as engine:
        assert engine.process is not None
        pids = {procfs.command_line(pid): pid for pid in engine.process.pids()}
        assert "VLLM::Worker" not in pids
        # TMPDIR is set after the engine was forked: only a new program would have it in its first environment.
        assert b"\0TMPDIR=" not in procfs.read_environment(pids["VLLM::EngineCore"])


async def test_an_adapter_changes_what_its_base_answers(factory: VllmFactory, demo_models: Path) -> None:
    adapter = ModelSpec(facts.ADAPTER, demo_models / facts.ADAPTER, Task.ADAPTER, "vllm")
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT), adapter) as engine:
        assert isinstance(engine, TakesAdapters)
        await engine.add_adapter(adapter)
        plain = await ask(engine.endpoint, facts.QWEN3_CHAT, facts.WHICH_MODEL)
        assert await ask(engine.endpoint, facts.ADAPTER, facts.WHICH_MODEL) != plain


async def test_vllms_own_routes_for_sleeping_are_as_we_use_them(
    factory: VllmFactory, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU vLLM sleeps in all but its memory: it pauses, reads its weights again, and answers as before."""
    engine = factory.create(chat_spec(demo_models / facts.QWEN3_CHAT))
    assert isinstance(engine, ProcessEngine)
    as_usual = engine._request
    monkeypatch.setattr(engine, "_request", lambda: replace(as_usual(), env=ENVIRONMENT))
    routes = VllmSleepRoutes(engine._uds, [facts.QWEN3_CHAT])
    await engine.start(START_TIMEOUT_S)
    try:
        before = await routes.canary()
        for level in (1, 2):
            await routes.fall_asleep(level)
            assert await engine.health()
            hanging = asyncio.create_task(ask(engine.endpoint, facts.QWEN3_CHAT, facts.WHICH_MODEL))
            await routes._expect(sleeping=True)
            assert not hanging.done()
            await routes.wake_up(level)
            assert await hanging == facts.QWEN3.answers[facts.WHICH_MODEL]
            assert routes.same(before, await routes.canary())
        assert engine.process is not None
        assert "Reloading weights inplace" in engine_log.read_end(engine.process.log_path)
    finally:
        await engine.stop(GRACE_S)


async def test_it_makes_a_step_with_each_answer_and_when_it_is_idle_with_a_nudge(
    factory: VllmFactory, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT)) as engine:
        before = await engine.progress()
        await ask(engine.endpoint, facts.QWEN3_CHAT, facts.WHICH_MODEL)
        after = await engine.progress()
        assert before.steps is not None
        assert after.steps is not None
        assert (after.steps > before.steps, after.cpu_s > before.cpu_s, after.stopped) == (True, True, False)
        monkeypatch.setattr(progress, "NUDGE_AFTER_S", 0.0)
        nudged = await engine.progress()
        assert nudged.steps == after.steps + 1  # for the answer, of whatever kind …
        again = await engine.progress()
        assert again.steps is not None
        assert again.steps > nudged.steps  # … and this for the step that it took


async def test_an_engine_whose_core_is_killed_is_reported_and_gone(factory: VllmFactory, demo_models: Path) -> None:
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT)) as engine:
        assert engine.process is not None
        tree = engine.process.pids()
        core = next(pid for pid in tree if procfs.command_line(pid) == "VLLM::EngineCore")
        os.kill(core, signal.SIGKILL)
        await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        await until_gone(tree)


async def test_a_killed_engine_takes_its_core_and_worker_along(factory: VllmFactory, demo_models: Path) -> None:
    async with running(factory, chat_spec(demo_models / facts.QWEN3_CHAT)) as engine:
        assert engine.process is not None
        tree = engine.process.pids()
        os.kill(engine.process.pid, signal.SIGKILL)
        report = await asyncio.wait_for(engine.wait_exited(), WAIT_S)
        assert report.signal == signal.SIGKILL
        await until_gone(tree)


def broken_copy(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "broken"))


async def test_a_truncated_weights_file_is_named_as_the_cause(
    factory: VllmFactory, demo_models: Path, tmp_path: Path
) -> None:
    path = broken_copy(demo_models / facts.QWEN3_CHAT, tmp_path)
    weights = path / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(EngineStartError, match=r"SafetensorError: .*(incomplete|InvalidHeader)"):
        await factory.create(chat_spec(path)).start(START_TIMEOUT_S)


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ('{"architectures": ["NobodysForCausalLM"], "model_type": "qwen3"}', "NobodysForCausalLM"),
        ('{"model_type": "nobodys"}', "nobodys"),
        ("{", "JSON|json|Expecting"),
    ],
)
async def test_a_bad_config_is_named_as_the_cause(
    factory: VllmFactory, demo_models: Path, tmp_path: Path, config: str, cause: str
) -> None:
    path = broken_copy(demo_models / facts.QWEN3_CHAT, tmp_path)
    path.joinpath("config.json").write_text(config)
    with pytest.raises(EngineStartError, match=cause) as caught:
        await factory.create(chat_spec(path)).start(START_TIMEOUT_S)
    assert len(caught.value.message) < 1500
    assert caught.value.log_tail


async def test_a_reserved_argument_fails_the_load_and_not_the_router(factory: VllmFactory, tmp_path: Path) -> None:
    spec = chat_spec(tmp_path, overrides=ModelOverrides(engine_args={"uds": "/tmp/other"}))
    with pytest.raises(EngineStartError, match="'uds' is set by Roundhouse"):
        await factory.create(spec).start(START_TIMEOUT_S)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"no-such-argument": 1}, "unrecognized arguments: --no-such-argument"),
        ({"max-model-len": 10_000_000}, "greater than the derived max_model_len"),
        ({"speculative-config": {"method": "mtp", "num_speculative_tokens": 2}}, "Unsupported speculative method"),
        ({"tool-call-parser": "nobody"}, "invalid tool call parser: nobody"),
    ],
)
async def test_arguments_that_vllm_refuses_are_found_without_a_start(
    factory: VllmFactory, demo_models: Path, arguments: dict[str, Any], told: str
) -> None:
    spec = chat_spec(demo_models / facts.QWEN3_CHAT, overrides=ModelOverrides(engine_args=arguments))
    assert factory.accepts(spec).ok
    assert not factory.prepared(spec)
    with pytest.raises(EngineStartError, match=told):
        await factory.prepare(spec)
    assert not factory.prepared(spec)
    assert list(factory._context.run_dir.glob("*")) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def parsed(factory: VllmFactory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the installed parsers make of each format, by model id."""
    written = tmp_path_factory.mktemp("parsed") / "formats.json"
    uds, log_path = engine_files(factory._context, "parsing", "formats")
    request = EngineRequest(vllm_parsing.PARSE, str(uds), "/nowhere", str(log_path), args=[str(written)])
    process = await factory._launcher.spawn(request)
    try:
        async with asyncio.timeout(WAIT_S):
            report = await process.wait_exited()
    finally:
        await process.stop(0)
    assert report.exit_code == 0, report.log_tail
    return {found["model_id"]: found for found in json.loads(written.read_bytes())}


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.model_id)
async def test_the_parsers_chosen_for_a_family_understand_what_it_writes(
    case: Format, parsed: dict[str, dict[str, Any]]
) -> None:
    found = parsed[case.model_id]
    assert found["error"] == ""
    if case.tools:
        assert found["calls"] == [["get_weather", {"city": "Paris"}]]
    if case.reasoning:
        assert found["reasoning"].strip() == THOUGHT
        assert found["content"].strip() == ANSWER.strip()


async def test_arguments_that_vllm_takes_are_looked_at_once_and_ours_never(
    factory: VllmFactory, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ModelOverrides(engine_args={"max-num-seqs": 8}, speculative="ngram")
    spec = chat_spec(demo_models / facts.QWEN3_CHAT, overrides=given)
    await asyncio.gather(factory.prepare(spec), factory.prepare(spec))
    monkeypatch.setattr(factory._launcher, "spawn", None)
    await factory.prepare(replace(spec))
    assert factory.prepared(spec)
    assert factory.prepared(chat_spec(demo_models / facts.QWEN3_CHAT, "plain"))


async def test_the_factory_takes_what_generates_and_nothing_else(factory: VllmFactory, tmp_path: Path) -> None:
    assert factory.accepts(chat_spec(tmp_path)).ok
    assert factory.accepts(ModelSpec("x", tmp_path, Task.COMPLETION, "vllm")).ok
    assert not factory.accepts(ModelSpec("x", tmp_path, Task.EMBED, "vllm")).ok
    assert not factory.accepts(chat_spec(tmp_path, availability=Availability.INCOMPLETE)).ok


async def test_an_adapter_is_taken_or_refused_by_its_own_configuration(factory: VllmFactory, tmp_path: Path) -> None:
    adapter = ModelSpec("pirate", tmp_path, Task.ADAPTER, "vllm", parent="x")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}')
    assert factory.accepts(adapter).ok
    (tmp_path / "adapter_config.json").write_text('{"r": 4096, "lora_alpha": 8, "target_modules": "all-linear"}')
    assert "rank 4096" in factory.accepts(adapter).reason


async def test_vllms_environment_keeps_dev_mode_keys_and_the_network_out(factory: VllmFactory) -> None:
    changes = launcher_changes(factory._context)
    assert changes["VLLM_SERVER_DEV_MODE"] is None
    assert changes["VLLM_API_KEY"] is None
    assert changes["HF_HUB_OFFLINE"] == "1"


def vllm_source(*parts: str) -> str:
    """The text of a file of the installed vLLM, which is not imported for that."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0], *parts).read_text()


async def test_vllms_cpu_platform_still_changes_in_one_place_what_we_set_back() -> None:
    """Should this fail, look at engines/runtime/vllm_runtime.py: keep_forking_on_cpu."""
    source = vllm_source("platforms", "cpu.py")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assignment = f"os.environ['{START_METHOD_VARIABLE}'] = 'spawn'"
    setting = [node.name for node in functions if assignment in ast.unparse(node)]
    assert setting == ["check_and_update_config"]
    method = next(node for node in functions if node.name == "check_and_update_config")
    assert [ast.unparse(decorator) for decorator in method.decorator_list] == ["classmethod"]
    assert "parallel_config.distributed_executor_backend = 'mp'" in ast.unparse(method)


async def test_vllm_still_refuses_adapters_for_what_we_refuse_them_for() -> None:
    """Should this fail, look at engines/vllm_lora.py: adapter_refusal."""
    source = vllm_source("lora", "peft_helper.py")
    assert [key for key in LORA_UNSUPPORTED if f"if self.{key}:" not in source] == []
    assert all(f'"{init}"' in source for init in LORA_PLAIN_INITS)
