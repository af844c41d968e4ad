"""Chat over a WebSocket at real engines: what HTTP would have answered, in messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bench._servers import Server
from demo import facts
from tests.e2e import chat

PATIENCE_S = 60.0


class Socket:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, type_: str, **fields: Any) -> None:
        await self._socket.send_json({"type": type_, **fields})

    async def ask(self, session_id: str, question: str, **fields: Any) -> None:
        messages = [{"role": "user", "content": question}]
        await self.send("generate", session_id=session_id, messages=messages, **fields)

    async def next(self) -> dict[str, Any]:
        told = json.loads(await self._socket.receive_str(timeout=PATIENCE_S))
        assert isinstance(told, dict)
        return told

    async def answers(self, *session_ids: str) -> dict[str, tuple[list[str], str]]:
        """By session: its tokens, and the whole; returns when all are done."""
        tokens: dict[str, list[str]] = {session_id: [] for session_id in session_ids}
        whole: dict[str, str] = {}
        while len(whole) < len(session_ids):
            told = await self.next()
            assert told["type"] in ("token", "done"), told
            if told["type"] == "token":
                tokens[told["session_id"]].append(told["content"])
            else:
                whole[told["session_id"]] = told["content"]
        return {session_id: (tokens[session_id], whole[session_id]) for session_id in session_ids}


@asynccontextmanager
async def opened(server: Server) -> AsyncIterator[Socket]:
    async with chat.session(server) as client, client.ws_connect("/ws") as socket:
        yield Socket(socket)


async def test_sessions_of_two_models_stream_at_once_and_sampling_is_heeded(server: Server) -> None:
    async with opened(server) as socket:
        await socket.ask("long", facts.LONG_QUESTION, model=facts.LLAMA.id, temperature=0)
        greedy = {"temperature": 1.0, "top_k": 1, "top_p": 0.9}  # of one candidate the choice is certain
        await socket.ask("which", facts.WHICH_MODEL, model=facts.QWEN3.id, **greedy)
        await socket.ask("short", facts.LONG_QUESTION, model=facts.QWEN3.id, max_tokens=3, temperature=0)
        told = await socket.answers("long", "which", "short")
        assert told["long"][1] == facts.LONG_ANSWER
        assert told["which"][1] == facts.QWEN3.answers[facts.WHICH_MODEL]
        assert facts.LONG_ANSWER.startswith(told["short"][1])
        assert [len(told["long"][0]) > 10, len(told["short"][0]) <= 3] == [True, True]
        assert all("".join(tokens) == whole for tokens, whole in told.values())


async def test_an_adapter_answers_on_the_connection_that_loaded_it(server: Server) -> None:
    async with opened(server) as socket, opened(server) as other:
        await socket.send("load_adapter", adapter_path=facts.ADAPTER)
        assert await socket.next() == {"type": "adapter_loaded", "adapter_path": facts.ADAPTER}
        await socket.ask("s", facts.ADAPTER_QUESTION, temperature=0)
        await other.ask("s", facts.ADAPTER_QUESTION, temperature=0, model=facts.QWEN3.id)
        assert (await socket.answers("s"))["s"][1] == facts.ADAPTER_ANSWER
        assert (await other.answers("s"))["s"][1] == facts.QWEN3.answers[facts.ADAPTER_QUESTION]
        await other.ask("t", facts.ADAPTER_QUESTION)
        refused = await other.next()
        assert (refused["type"], refused["code"], refused["session_id"]) == ("error", "invalid_request", "t")
        assert facts.QWEN3.id in refused["message"]


async def test_a_cancelled_session_leaves_its_engine_idle(server: Server) -> None:
    async with opened(server) as socket:
        await socket.ask("s", facts.ENDLESS_QUESTION, model=facts.LLAMA.id, temperature=0)
        assert (await socket.next())["type"] == "token"
        await socket.send("cancel", session_id="s")
        while (told := await socket.next())["type"] == "token":
            pass
        assert (told["type"], told["code"]) == ("error", "cancelled")
        async with asyncio.timeout(PATIENCE_S):
            while server.get("/v1/models/" + facts.LLAMA.id)["running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
