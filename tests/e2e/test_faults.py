"""Engines and the router itself killed, folders broken: others go on, causes are told, nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench._servers import Server
from demo import facts
from tests.e2e import chat
from tests.e2e.conftest import Start, assert_nothing_left, processes_of

PATIENCE_S = 60


def engines(server: Server) -> list[psutil.Process]:
    """The main processes of all engines: each leads a session of its own, as only they and the launchers do."""
    app = psutil.Process(server.process.pid)
    launchers = app.children()
    below = [process for process in app.children(recursive=True) if process not in launchers]
    return [process for process in below if _session(process.pid) == process.pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that tests fill; each gives its model a name of its own."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def victim(start: Start, folder: Path, demo_models: Path) -> Iterator[Server]:
    """A server whose engines tests kill and whose folders they break."""
    for model in (facts.QWEN3_CHAT, facts.LLAMA_CHAT):
        shutil.copytree(demo_models / model, folder / model)
    with start(models_dir=folder) as server:
        server.wait_warm()
        yield server


@pytest.fixture(autouse=True)
def nothing_resident(request: pytest.FixtureRequest) -> None:
    """Each test on the shared server begins with every model cold."""
    if "victim" in request.fixturenames:
        server: Server = request.getfixturevalue("victim")
        for model in server.get("/v1/models")["data"]:
            server.post("/v1/model/unload", {"model": model["id"]})


async def test_an_engine_killed_while_idle_is_replaced_and_others_are_unaffected(victim: Server) -> None:
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL)
        before = set(engines(victim))
        await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
        (killed,) = set(engines(victim)) - before
        async with chat.stream(client, facts.LLAMA_CHAT, facts.LONG_QUESTION) as pieces:
            text = await anext(pieces)
            killed.kill()
            answer = await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
            text += "".join([piece async for piece in pieces])
    assert answer == facts.QWEN3.answers[facts.WHICH_MODEL]
    assert text == facts.LONG_ANSWER


async def test_an_engine_killed_while_it_answers_ends_the_stream_with_an_error(victim: Server) -> None:
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        async with chat.stream(client, facts.QWEN3_CHAT, facts.ENDLESS_QUESTION, max_tokens=1500) as pieces:
            await anext(pieces)
            (killed,) = engines(victim)
            killed.kill()
            with pytest.raises(chat.StreamError, match=facts.QWEN3_CHAT):
                _ = [piece async for piece in pieces]
        answer = await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
    assert answer == facts.QWEN3.answers[facts.WHICH_MODEL]


async def test_an_engine_killed_while_it_loads_fails_that_load_only(victim: Server) -> None:
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json=chat.body(facts.QWEN3_CHAT, "Hello!")))
        while not (loading := engines(victim)):  # noqa: ASYNC110 - another process begins the load
            await asyncio.sleep(0)
        loading[0].kill()
        refused = await waiting
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        error = (await refused.json())["error"]
        assert error["code"] == "model_load_failed"
        assert "SIGKILL" in error["message"]
        assert await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL)


def test_a_load_that_fails_tells_the_cause_and_is_not_repeated(victim: Server, folder: Path, demo_models: Path) -> None:
    made = copy_as("odd", demo_models / facts.QWEN3_CHAT, folder, {"hidden_act": "no_such_activation"})
    for _ in range(2):
        status, retry_after, error = refusal(victim, made)
        assert status == 503
        assert int(retry_after or 0) >= 1
        assert "no_such_activation" in error["message"]
    assert victim.log.read_text().count("loading odd failed") == 1


def test_a_truncated_shard_is_refused_before_anything_is_loaded(
    victim: Server, folder: Path, demo_models: Path
) -> None:
    aside = copy_as("cut", demo_models / facts.QWEN3_CHAT, folder.parent)
    weights = folder.parent / aside / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    (folder.parent / aside).rename(folder / aside)
    status, _, error = refusal(victim, aside)
    assert status == 400
    assert "model.safetensors" in error["message"]
    assert engines(victim) == []


async def test_a_folder_deleted_while_it_answers_lets_the_answer_finish(
    victim: Server, folder: Path, demo_models: Path
) -> None:
    name = copy_as("doomed", demo_models / facts.QWEN3_CHAT, folder)
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        await listed(victim, name, True)
        async with chat.stream(client, name, facts.LONG_QUESTION) as pieces:
            text = await anext(pieces)
            shutil.rmtree(folder / name)
            text += "".join([piece async for piece in pieces])
        assert text == facts.LONG_ANSWER
        await listed(victim, name, False)
        async with client.post("/v1/chat/completions", json=chat.body(name, "Hello!")) as answer:
            assert answer.status == 404


def copy_as(name: str, model: Path, folder: Path, changes: dict[str, str] | None = None) -> str:
    """Puts a copy of `model` into `folder` whole, as a rename does; with `changes` to its configuration."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        shutil.copytree(model, Path(aside) / name)
        config = Path(aside) / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | (changes or {})))
        (Path(aside) / name).rename(folder / name)
    return name


def refusal(server: Server, model: str) -> tuple[int, str | None, dict[str, str]]:
    """(status, Retry-After, error) of a request for `model`, asked until its folder was noticed."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.post("/v1/chat/completions", chat.body(model, "Hello!"))
        error = json.load(caught.value)["error"]
        if error["code"] != "model_not_found":
            return caught.value.code, caught.value.headers["retry-after"], error
    raise AssertionError(f"{model} was never noticed")


async def listed(server: Server, model: str, wanted: bool) -> None:
    """Returns when `model` can be served, or is not known at all: the folder is watched by another process."""
    path = "/v1/models" if wanted else "/v1/models?all=true"
    async with asyncio.timeout(PATIENCE_S):
        while (model in {entry["id"] for entry in server.get(path)["data"]}) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def killed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scratch folder of a server that was killed while it had an engine; nothing of it runs any more."""
    scratch = tmp_path_factory.mktemp("killed")
    with start(scratch=scratch) as server:
        server.post("/v1/chat/completions", chat.body(facts.QWEN3_CHAT, facts.WHICH_MODEL))
        assert len(processes_of(scratch)) > 2
        server.process.kill()
        server.process.wait(PATIENCE_S)
        assert_nothing_left(scratch)
    return scratch


async def test_the_start_after_a_kill_works_and_a_term_signal_lets_running_answers_finish(
    start: Start, killed: Path
) -> None:
    with start(scratch=killed) as server:
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            async with chat.stream(client, facts.QWEN3_CHAT, facts.LONG_QUESTION) as pieces:
                text = await anext(pieces)
                server.process.send_signal(signal.SIGTERM)
                text += "".join([piece async for piece in pieces])
            assert text == facts.LONG_ANSWER
        assert server.process.wait(PATIENCE_S) == 0
