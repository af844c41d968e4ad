"""Models of real servers elsewhere: vLLM's own, killed and started again under load, and another Roundhouse."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench._servers import Server
from demo import facts
from engines.base import Declaration
from tests.app.elsewhere import copy_stream
from tests.app.serving import Served, serving
from tests.e2e import chat
from tests.e2e.faulty import engines

PATIENCE_S = 60
OPEN_S = 0.5
FAIL_FAST_S = 0.05
RECOVERED_S = 5.0  # the circuit is open for half a second; then one answer, on a busy machine
PAUSE_S = 0.02  # of a client, refused or not
CLIENTS = 4
QUESTION = "Which model are you?"
Answers = collections.Counter[int]


class OnPort:
    """A server on a unix socket, reachable on a loopback port for as long as it lives: as if it listened there."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def open(self, uds: Path) -> None:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_unix_connection(str(uds))
                await asyncio.gather(copy_stream(reader, back), copy_stream(there, writer))

        self._server = await asyncio.start_server(carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@asynccontextmanager
async def remote(url: str, **declared: Any) -> AsyncIterator[Served]:
    box: dict[str, Any] = {"breaker_failures": 5, "breaker_open_s": OPEN_S} | declared
    async with serving((), elsewhere={"box": Declaration("openai", (url,), **box)}) as served:
        yield served


def load(server: Server, model: str) -> tuple[psutil.Process, Path]:
    """vLLM's own server for `model`: its main process, and its socket."""
    server.post("/v1/model/load", {"model": model})
    (engine,) = engines(server)
    listening = {connection.laddr for connection in engine.net_connections("unix") if connection.laddr}
    (path,) = [Path(str(address)) for address in listening if str(address).endswith(".sock")]
    return engine, path


async def asking(served: Served, answers: Answers, until: asyncio.Event) -> None:
    """A client that asks again and again, and counts the statuses of its answers."""
    body = chat.body(facts.QWEN3_CHAT, QUESTION)
    while not until.is_set():
        answers[(await served.post("/v1/chat/completions", body, timeout=PATIENCE_S)).status_code] += 1
        await asyncio.sleep(PAUSE_S)


async def seen(answers: Answers, status: int) -> None:
    """Returns once another answer has come with `status`."""
    before = answers[status]
    async with asyncio.timeout(PATIENCE_S):
        while answers[status] == before:  # noqa: ASYNC110 - counted by others
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("cold")
async def test_vllms_own_server_killed_under_load_fails_fast_and_is_in_use_again_once_it_is_back(
    victim: Server,
) -> None:
    engine, uds = await asyncio.to_thread(load, victim, facts.QWEN3_CHAT)
    port, answers, over = OnPort(), Answers(), asyncio.Event()
    await port.open(uds)
    async with remote(port.url) as served, asyncio.TaskGroup() as clients:
        for _ in range(CLIENTS):
            clients.create_task(asking(served, answers, over))
        await seen(answers, 200)
        port.close()
        engine.kill()
        await seen(answers, 503)
        await refused_at_once(served)
        _, uds = await asyncio.to_thread(load, victim, facts.QWEN3_CHAT)
        await port.open(uds)
        back = time.monotonic()
        await seen(answers, 200)
        assert time.monotonic() - back < RECOVERED_S
        over.set()
    port.close()
    assert answers.keys() <= {200, 502, 503}
    assert answers[502] <= CLIENTS  # those that it was reading as it died


async def refused_at_once(served: Served) -> None:
    """Returns after a refusal that took no time; on a busy machine not every one is so quick."""
    body = chat.body(facts.QWEN3_CHAT, QUESTION)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            began = time.perf_counter()
            status = (await served.post("/v1/chat/completions", body, timeout=PATIENCE_S)).status_code
            if status == 503 and time.perf_counter() - began < FAIL_FAST_S:
                return


async def test_another_roundhouse_s_models_are_known_by_task_and_answer_as_they_do_there(victim: Server) -> None:
    # Those of tensors do not speak OpenAI's protocol: they are reached by `kind: triton`.
    there = {one["id"]: one["task"] for one in victim.get("/v1/models")["data"] if one["task"] != "tensor"}
    body = chat.body(facts.QWEN3_CHAT, QUESTION, seed=1)
    expected = await asyncio.to_thread(victim.post, "/v1/chat/completions", body)
    async with remote(f"{victim.url}/v1", prefix="far/") as served:
        listed = (await served.client.get("/v1/models")).json()["data"]
        assert {entry["id"]: entry["task"] for entry in listed} == {f"far/{name}": there[name] for name in there}
        answer = await served.post("/v1/chat/completions", body | {"model": f"far/{facts.QWEN3_CHAT}"})
    assert answer.json()["choices"] == expected["choices"]
