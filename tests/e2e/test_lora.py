"""LoRA adapters that come, change and go while their base serves, and adapters that are no good."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bench._adapters import CONFIG, WEIGHTS, make_adapter
from bench._servers import Server
from demo import facts
from tests.e2e import chat
from tests.e2e.faulty import PATIENCE_S, copy_as, listed, loads, refusal

BASE = "crewed"
CLIENTS, ROUNDS = 8, 4
PLAIN_ANSWER = facts.QWEN3.answers[facts.WHICH_MODEL]


@pytest.fixture(scope="module")
def pirate(victim: Server, folder: Path, demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An adapter to make others of, for a base of this module's own, which is asked for the first of them: pirate-0."""
    source = tmp_path_factory.mktemp("source") / "pirate"
    shutil.copytree(demo_models / facts.ADAPTER, source)
    config = json.loads((source / CONFIG).read_text())
    (source / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": f"/home/somebody/{BASE}"}))
    make_adapter(source, folder, "pirate-0")
    copy_as(BASE, demo_models / facts.QWEN3_CHAT, folder)
    yield source
    for made in (*folder.glob("pirate-*"), folder / BASE):
        shutil.rmtree(made)


async def which(client: aiohttp.ClientSession, model: str) -> str:
    return await chat.ask(client, model, facts.WHICH_MODEL)


async def answers(client: aiohttp.ClientSession, model: str, wanted: str, before: str) -> None:
    """Returns when `model` answers `wanted`, which it does once its folder's change was noticed."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await which(client, model)) != wanted:
            assert answer == before


async def test_adapters_come_change_and_go_without_a_reload_of_their_base(
    victim: Server, folder: Path, pirate: Path
) -> None:
    chance = random.Random(5)
    async with chat.session(victim) as client, asyncio.timeout(2 * PATIENCE_S):
        await listed(victim, "pirate-0", True)
        assert await which(client, "pirate-0") == facts.ADAPTER_ANSWER
        crew = ["pirate-0", *(make_adapter(pirate, folder, f"pirate-{n}", rank=(8, 16)[n % 2]) for n in range(1, 10))]
        shy = make_adapter(pirate, folder, "pirate-shy", scale=0.0)
        for name in (*crew, shy):
            await listed(victim, name, True)

        async def ask_at_random() -> None:
            for model in chance.choices((*crew, shy, BASE), k=ROUNDS):
                assert await which(client, model) == (facts.ADAPTER_ANSWER if model in crew else PLAIN_ANSWER)

        # More adapters than fit into a batch, and more clients than that.
        await asyncio.gather(*(ask_at_random() for _ in range(CLIENTS)))
        make_adapter(pirate, folder, shy, scale=1.0)
        await answers(client, shy, facts.ADAPTER_ANSWER, before=PLAIN_ANSWER)
        shutil.rmtree(folder / shy)
        await listed(victim, shy, False)
        with pytest.raises(aiohttp.ClientResponseError, match="404"):
            await which(client, shy)
        assert await which(client, BASE) == PLAIN_ANSWER
    entries = {entry["id"]: entry for entry in victim.get("/v1/models")["data"]}
    assert entries["pirate-3"]["parent"] == BASE
    assert loads(victim, BASE) == 1


async def test_one_of_a_higher_rank_has_its_base_loaded_anew_after_what_runs(
    victim: Server, folder: Path, pirate: Path
) -> None:
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        await listed(victim, "pirate-0", True)
        await which(client, "pirate-0")
        before = loads(victim, BASE)
        large = make_adapter(pirate, folder, "pirate-large", rank=32)
        await listed(victim, large, True)
        async with chat.stream(client, "pirate-0", facts.LONG_QUESTION) as pieces:
            text = await anext(pieces)
            asking = asyncio.create_task(which(client, large))
            text += "".join([piece async for piece in pieces])
        assert text == facts.LONG_ANSWER
        assert await asking == facts.ADAPTER_ANSWER
        assert loads(victim, BASE) == before + 1
        status = victim.post("/v1/model/unload", {"model": large})
        assert (status["id"], status["state"], status["adapters"]) == (BASE, "ready", [])
        assert await which(client, large) == facts.ADAPTER_ANSWER
        assert loads(victim, BASE) == before + 1


def _change(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def test_what_is_no_good_is_told_for_itself_and_spoils_nobody(victim: Server, folder: Path, pirate: Path) -> None:
    def put(name: str, **changes: object) -> str:
        aside = folder.parent / name
        shutil.copytree(pirate, aside)
        _change(aside, **changes)
        if name == "pirate-cut":
            os.truncate(aside / WEIGHTS, 100_000)
        if name == "pirate-pickled":
            (aside / WEIGHTS).rename(aside / "adapter_model.bin")
        aside.rename(folder / name)
        return name

    told = {
        put("pirate-orphan", base_model_name_or_path="org/nobody"): "needs its base model 'org/nobody'",
        put("pirate-high", r=1024): "rank 1024; vLLM serves adapters of rank up to 512",
        put("pirate-cut"): "half-copied",
        put("pirate-pickled"): "pickle",
        put("pirate-low", r=4): "weights are of rank 8, where adapter_config.json says 4",
    }
    for name, words in told.items():
        status, _, error = refusal(victim, name)
        assert status == 400, error
        assert words in error["message"]
        assert error["param"] == "model"
    assert victim.first_token_s("pirate-0", facts.WHICH_MODEL) > 0
