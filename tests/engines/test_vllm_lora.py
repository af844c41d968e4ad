"""LoRA adapters in vLLM: which are taken, with which limits, and how they come and go in an engine that runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from safetensors.numpy import save_file

from engines.base import AdapterRefused, EngineContext
from engines.engine_http import EngineCallFailed
from engines.vllm_adapters import ENDING, RunningAdapters
from engines.vllm_engine import VllmFactory
from engines.vllm_lora import MIB, adapter_rank, adapter_refusal, arguments, started_rank
from models.types import ModelOverrides, ModelSpec, Task

NOWHERE = Path("/nowhere")
HIDDEN, INNER = 32, 64


@pytest.mark.parametrize(
    ("config", "rank"),
    [({"r": 16}, 16), ({"r": 8, "rank_pattern": {"q_proj": 64}}, 64), ({}, 16), ({"r": "many"}, 16), ([], 16)],
)
def test_the_rank_of_an_adapter_is_read_from_its_configuration(tmp_path: Path, config: Any, rank: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_rank(tmp_path) == rank


PLAIN_LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "use_dora": False, "init_lora_weights": True}


def test_a_plain_adapter_is_taken(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN_LORA | {"modules_to_save": None}))
    assert adapter_refusal(tmp_path) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"r": 1024}, "rank 1024; vLLM serves adapters of rank up to 512"),
        ({"rank_pattern": {"q_proj": 600}}, "rank 600"),
        ({"r": 0}, "'0' and not a rank"),
        ({"target_modules": None}, "nothing of target_modules"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"modules_to_save": {"lm_head": 1}}, "modules_to_save"),
    ],
)
def test_an_adapter_that_would_end_its_base_s_engine_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN_LORA | change))
    assert told in adapter_refusal(tmp_path)


def test_an_adapter_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    assert "nothing of r" in adapter_refusal(tmp_path)


# -- limits ----------------------------------------------------------------------------------------------------------


def context(device: str = "cpu", **settings: Any) -> EngineContext:
    return EngineContext(NOWHERE, NOWHERE, NOWHERE, device, **settings)


def adapter_of(folder: Path, rank: int, name: str = "pirate", **fields: Any) -> ModelSpec:
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(PLAIN_LORA | {"r": rank}))
    return ModelSpec(f"org/{name}", path, Task.ADAPTER, "vllm", **fields)


def base_of(folder: Path, **fields: Any) -> ModelSpec:
    return ModelSpec("org/base", folder / "base", Task.CHAT, "vllm", **fields)


@pytest.mark.parametrize(
    ("device", "found", "rank"),
    [("cpu", 4, 16), ("cpu", 16, 16), ("cpu", 24, 32), ("cuda", 16, 32), ("cuda", 40, 64), ("cuda", 512, 512)],
)
def test_the_rank_that_is_served_has_room_for_more_where_that_costs_little(
    tmp_path: Path, device: str, found: int, rank: int
) -> None:
    lora = arguments(base_of(tmp_path), context(device), [adapter_of(tmp_path, found)])
    assert lora.values["max-lora-rank"] == rank
    assert f"rank up to {found}; taken up to rank {rank}" in lora.reason


def test_more_adapters_may_come_than_were_found_and_none_is_ever_read_twice(tmp_path: Path) -> None:
    def limits(count: int, weights_bytes: int = 0) -> tuple[int, int]:
        adapters = [adapter_of(tmp_path, 8, f"a{number}", weights_bytes=weights_bytes) for number in range(count)]
        values = arguments(base_of(tmp_path), context(), adapters).values
        return values["max-loras"], values["max-cpu-loras"]

    assert limits(1) == (8, 32)
    assert limits(20) == (8, 40)
    assert limits(20, weights_bytes=1024 * MIB) == (8, 8)  # within host memory


def test_slots_that_would_take_too_much_of_the_device_are_fewer_and_of_the_rank_that_is_needed(tmp_path: Path) -> None:
    large = base_of(tmp_path, weights_bytes=32 * 1024 * MIB, hidden_size=8192, num_layers=80)
    adapters = [adapter_of(tmp_path, 8, f"a{number}") for number in range(8)]
    roomy = arguments(large, context("cuda"), adapters)
    assert (roomy.values["max-lora-rank"], roomy.values["max-loras"]) == (16, 8)
    greedy = arguments(large, context("cuda"), [*adapters, adapter_of(tmp_path, 512, "large")])
    assert (greedy.values["max-lora-rank"], greedy.values["max-loras"]) == (512, 1)
    assert roomy.device_bytes < 4096 * MIB


def test_what_the_slots_take_is_part_of_what_the_model_is_expected_to_take(tmp_path: Path) -> None:
    base = base_of(tmp_path, hidden_size=4096, num_layers=32, weights_bytes=16 * 1024 * MIB)
    factory = VllmFactory(context("cuda"))
    plain = factory.estimate_bytes(base)
    with_adapter = factory.estimate_bytes(base, [adapter_of(tmp_path, 16)])
    # 20 sides of 4096, of 2 bytes, in 32 layers, for 8 adapters of rank 32.
    assert with_adapter - plain == 20 * 4096 * 2 * 32 * 8 * 32


def test_the_sides_of_every_matrix_of_the_base_are_counted_from_its_files(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    lora = arguments(base_of(tmp_path), context(), [adapter_of(tmp_path, 16)])
    sides = 2 * (HIDDEN + HIDDEN + HIDDEN + INNER) + 100 + HIDDEN
    assert lora.device_bytes == 8 * 16 * 2 * sides


def test_the_owner_may_turn_lora_off(tmp_path: Path) -> None:
    off = ModelOverrides(engine_args={"enable_lora": False})
    lora = arguments(base_of(tmp_path, overrides=off), context(), [adapter_of(tmp_path, 16)])
    assert (lora.values, lora.device_bytes) == ({}, 0)
    assert "off" in lora.reason
    assert started_rank(["--model", "x"]) is None
    assert started_rank(["--enable-lora", "--max-lora-rank", "64"]) == 64


# -- in an engine that runs --------------------------------------------------------------------------------------------


def write_base(folder: Path) -> None:
    matrices = {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (INNER, HIDDEN)}
    tensors = {
        f"model.layers.{layer}.{module}.weight": np.zeros(shape, np.float16)
        for layer in range(2)
        for module, shape in matrices.items()
    }
    folder.mkdir(exist_ok=True)
    save_file({**tensors, "model.embed_tokens.weight": np.zeros((100, HIDDEN), np.float16)}, folder / "m.safetensors")


def write_adapter(
    folder: Path, module: str = "layers.1.self_attn.q_proj", *, rank: int = 8, size: int = HIDDEN, halves: str = "AB"
) -> None:
    shapes = {"A": (rank, size), "B": (size, rank)}
    tensors = {
        f"base_model.model.model.{module}.lora_{half}.weight": np.zeros(shapes[half], np.float32) for half in halves
    }
    save_file(tensors, folder / "adapter_model.safetensors")


class FakeServer:
    """vLLM's two routes for adapters."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refusal: web.Response | None = None
        self.asked = asyncio.Event()
        self.may_load = asyncio.Event()
        self.may_load.set()

    async def load(self, request: web.Request) -> web.Response:
        self.calls.append(("load", await request.json()))
        self.asked.set()
        await self.may_load.wait()
        return self.refusal or web.Response(text="Success: LoRA adapter added successfully.")

    async def unload(self, request: web.Request) -> web.Response:
        self.calls.append(("unload", await request.json()))
        return web.Response(text="Success: LoRA adapter removed successfully.")

    def done(self) -> list[str]:
        return [route for route, _ in self.calls]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[tuple[FakeServer, Path]]:
    """With the path of its socket, which is short."""
    folder, fake, app = Path(mkdtemp(dir="/tmp")), FakeServer(), web.Application()
    app.router.add_post("/v1/load_lora_adapter", fake.load)
    app.router.add_post("/v1/unload_lora_adapter", fake.unload)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "e.sock")).start()
    try:
        yield fake, folder / "e.sock"
    finally:
        fake.may_load.set()
        await runner.cleanup()
        shutil.rmtree(folder)


def running(
    tmp_path: Path, uds: Path, rank: int | None = 16, anew: int | None = 64, found: Sequence[ModelSpec] = ()
) -> RunningAdapters:
    """Of an engine that was started for `rank`, and would be for `anew`."""
    write_base(tmp_path / "base")
    adapters = RunningAdapters(base_of(tmp_path, fingerprint="1"), uds, found, lambda _: anew)
    adapters.begin(rank)
    return adapters


async def test_an_adapter_is_put_in_once_and_anew_when_its_content_is_another(
    server: tuple[FakeServer, Path], tmp_path: Path
) -> None:
    fake, uds = server
    adapters, pirate = running(tmp_path, uds), adapter_of(tmp_path, 8, fingerprint="1")
    write_adapter(pirate.path)
    assert await adapters.add(pirate)
    assert not await adapters.add(pirate)
    assert await adapters.add(replace(pirate, fingerprint="2"))
    assert fake.done() == ["load", "unload", "load"]
    first, second = (body for route, body in fake.calls if route == "load")
    # vLLM knows cached blocks by name and path: what was computed with other weights must not be found again.
    assert first["lora_name"] == second["lora_name"] == pirate.id
    assert first["lora_path"] != second["lora_path"]
    assert os.readlink(second["lora_path"]) == str(pirate.path)
    # A request would read it again with each of its tokens.
    assert "load_inplace" not in second
    assert adapters.names == ["org/base", "org/pirate"]
    await adapters.remove(pirate.id)
    await adapters.remove(pirate.id)
    assert (fake.done()[3:], adapters.names) == (["unload"], ["org/base"])


async def test_one_whose_request_goes_away_meanwhile_is_in_all_the_same(
    server: tuple[FakeServer, Path], tmp_path: Path
) -> None:
    fake, uds = server
    adapters, pirate = running(tmp_path, uds), adapter_of(tmp_path, 8)
    fake.may_load.clear()
    adding = asyncio.create_task(adapters.add(pirate))
    await asyncio.wait_for(fake.asked.wait(), 10)
    adding.cancel()
    fake.may_load.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert not await adapters.add(pirate)
    assert fake.done() == ["load"]


@pytest.mark.parametrize(
    ("rank", "anew", "reload", "told"),
    [
        (None, 64, True, "started without LoRA"),
        (16, 64, True, "it has rank 32, its base was started for up to 16"),
        (16, 16, False, "it has rank 32, and max-lora-rank is configured to be 16"),
        (None, None, False, "engine_args turn LoRA off"),
    ],
)
async def test_its_base_is_started_anew_for_an_adapter_only_where_that_would_help(
    tmp_path: Path, rank: int | None, anew: int | None, reload: bool, told: str
) -> None:
    adapters = running(tmp_path, tmp_path / "none.sock", rank, anew)
    with pytest.raises(AdapterRefused, match=told) as refused:
        await adapters.add(adapter_of(tmp_path, 32))
    assert refused.value.reload is reload


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"size": 2 * HIDDEN}, "made for another base: its model.layers.1.self_attn.q_proj is for 64, .* has 32 x 32"),
        ({"module": "layers.1.self_attn.wq"}, "its base has no model.layers.1.self_attn.wq"),
        ({"module": "layers.7.self_attn.q_proj"}, "its base has no model.layers.7.self_attn.q_proj"),
        ({"rank": 12}, "weights are of rank 12, where adapter_config.json says 8"),
        ({"halves": "A"}, "only one of the two LoRA matrices of model.layers.1.self_attn.q_proj"),
    ],
)
async def test_an_adapter_that_was_made_for_something_else_never_reaches_the_engine(
    server: tuple[FakeServer, Path], tmp_path: Path, weights: dict[str, Any], told: str
) -> None:
    """vLLM itself would take most of these, and answer with a base that is spoilt a little."""
    fake, uds = server
    pirate = adapter_of(tmp_path, 8)
    write_adapter(pirate.path, **weights)
    with pytest.raises(AdapterRefused, match=told) as refused:
        await running(tmp_path, uds).add(pirate)
    assert not refused.value.reload
    assert fake.calls == []


async def test_what_vllm_says_of_an_adapter_is_told_but_not_that_it_ends(
    server: tuple[FakeServer, Path], tmp_path: Path
) -> None:
    fake, uds = server
    adapters, pirate = running(tmp_path, uds), adapter_of(tmp_path, 8)
    fake.refusal = web.json_response({"error": {"message": "no tensors", "code": 500}}, status=500)
    with pytest.raises(AdapterRefused, match="vLLM says: no tensors"):
        await adapters.add(pirate)
    fake.refusal = web.json_response({"error": {"message": f"{ENDING}. See above"}}, status=500)
    with pytest.raises(EngineCallFailed):
        await adapters.add(pirate)
    fake.refusal = None
    assert await adapters.add(pirate)
    with pytest.raises(EngineCallFailed):
        await running(tmp_path, tmp_path / "none.sock").add(pirate)
