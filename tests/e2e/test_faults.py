"""Engines and the router itself killed, folders broken: others go on, causes are told, nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import urllib.error
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


async def test_an_engine_killed_while_idle_is_replaced_and_others_are_unaffected(start: Start) -> None:
    with start() as server:
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL)
            before = set(engines(server))
            await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
            (victim,) = set(engines(server)) - before
            async with chat.stream(client, facts.LLAMA_CHAT, facts.LONG_QUESTION) as pieces:
                text = await anext(pieces)
                victim.kill()
                answer = await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
                text += "".join([piece async for piece in pieces])
        assert answer == facts.QWEN3.answers[facts.WHICH_MODEL]
        assert text == facts.LONG_ANSWER


async def test_an_engine_killed_while_it_answers_ends_the_stream_with_an_error(start: Start) -> None:
    with start() as server:
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            async with chat.stream(client, facts.QWEN3_CHAT, facts.ENDLESS_QUESTION, max_tokens=1500) as pieces:
                await anext(pieces)
                (victim,) = engines(server)
                victim.kill()
                with pytest.raises(chat.StreamError, match=facts.QWEN3_CHAT):
                    _ = [piece async for piece in pieces]
            answer = await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
        assert answer == facts.QWEN3.answers[facts.WHICH_MODEL]


async def test_an_engine_killed_while_it_loads_fails_that_load_only(start: Start) -> None:
    with start() as server:
        server.wait_warm()
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            waiting = asyncio.create_task(
                client.post("/v1/chat/completions", json=chat.body(facts.QWEN3_CHAT, "Hello!"))
            )
            while not (loading := engines(server)):  # noqa: ASYNC110 - another process begins the load
                await asyncio.sleep(0)
            loading[0].kill()
            refused = await waiting
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) >= 1
            error = (await refused.json())["error"]
            assert error["code"] == "model_load_failed"
            assert "SIGKILL" in error["message"]
            assert await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL)


def copy_of(model: Path, folder: Path) -> Path:
    """A model folder that a test may break: `folder/broken`, beside nothing else."""
    target = folder / "broken"
    shutil.copytree(model, target)
    return target


def test_a_load_that_fails_tells_the_cause_and_is_not_repeated(start: Start, demo_models: Path, tmp_path: Path) -> None:
    config = copy_of(demo_models / facts.QWEN3_CHAT, tmp_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "no_such_activation"}))
    with start(models_dir=tmp_path) as server:
        server.wait_until("/health/ready", PATIENCE_S)
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as caught:
                server.post("/v1/chat/completions", chat.body("broken", "Hello!"))
            assert caught.value.code == 503
            assert int(caught.value.headers["retry-after"]) >= 1
            message = json.load(caught.value)["error"]["message"]
            assert "no_such_activation" in message
        assert server.log.read_text().count("loading broken failed") == 1


def test_a_truncated_shard_is_refused_before_anything_is_loaded(
    start: Start, demo_models: Path, tmp_path: Path
) -> None:
    weights = copy_of(demo_models / facts.QWEN3_CHAT, tmp_path) / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with start(models_dir=tmp_path) as server:
        server.wait_until("/health/ready", PATIENCE_S)
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.post("/v1/chat/completions", chat.body("broken", "Hello!"))
        assert caught.value.code == 400
        assert "model.safetensors" in json.load(caught.value)["error"]["message"]
        assert engines(server) == []


async def test_a_folder_deleted_while_it_answers_lets_the_answer_finish(
    start: Start, demo_models: Path, tmp_path: Path
) -> None:
    folder = copy_of(demo_models / facts.QWEN3_CHAT, tmp_path)
    with start(models_dir=tmp_path) as server:
        server.wait_until("/health/ready", PATIENCE_S)
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            async with chat.stream(client, "broken", facts.LONG_QUESTION) as pieces:
                text = await anext(pieces)
                shutil.rmtree(folder)
                text += "".join([piece async for piece in pieces])
            assert text == facts.LONG_ANSWER
            while server.get("/v1/models")["data"]:  # noqa: ASYNC110 - the folder is watched by another process
                await asyncio.sleep(0.01)
            async with client.post("/v1/chat/completions", json=chat.body("broken", "Hello!")) as answer:
                assert answer.status == 404


async def test_nothing_outlives_a_killed_router_and_the_next_start_works(start: Start, tmp_path: Path) -> None:
    with start(scratch=tmp_path) as server:
        async with chat.session(server) as client, asyncio.timeout(PATIENCE_S):
            await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
        assert len(processes_of(tmp_path)) > 2
        server.process.kill()
        server.process.wait(PATIENCE_S)
        assert_nothing_left(tmp_path)
    with start(scratch=tmp_path) as server:
        async with chat.session(server) as client, asyncio.timeout(PATIENCE_S):
            assert await chat.ask(client, facts.QWEN3_CHAT, facts.WHICH_MODEL)
    assert_nothing_left(tmp_path)


async def test_a_term_signal_lets_running_answers_finish(start: Start) -> None:
    with start() as server:
        async with chat.session(server) as client, asyncio.timeout(2 * PATIENCE_S):
            async with chat.stream(client, facts.QWEN3_CHAT, facts.LONG_QUESTION) as pieces:
                text = await anext(pieces)
                server.process.send_signal(signal.SIGTERM)
                text += "".join([piece async for piece in pieces])
            assert text == facts.LONG_ANSWER
        assert server.process.wait(PATIENCE_S) == 0
