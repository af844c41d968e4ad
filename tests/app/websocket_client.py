"""A WebSocket client for tests, and the streams that fake engines answer with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.app.serving import Served

WAIT_S = 5.0


class Client:
    """Sends and receives JSON; `close_code` once the server has closed."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def send(self, type_: str, **fields: Any) -> None:
        await self.socket.send_json({"type": type_, **fields})

    async def generate(self, session_id: str, fake: dict[str, Any] | None = None, **fields: Any) -> None:
        """`fake`: what a fake engine does with it."""
        messages = [{"role": "user", "content": "hi", **({"fake": fake} if fake else {})}]
        await self.send("generate", **{"session_id": session_id, "messages": messages, **fields})

    async def next(self) -> dict[str, Any]:
        """Raises EOFError when the server has closed."""
        message = await self.socket.receive(WAIT_S)
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EOFError(self.socket.close_code)
        told = json.loads(message.data)
        assert isinstance(told, dict)
        return told

    async def error(self) -> tuple[str, str | None, str]:
        """Code, session and text of the next message, which is an error."""
        told = await self.next()
        assert told.keys() == {"type", "message", "code", "session_id"}, told
        assert told["type"] == "error"
        return told["code"], told["session_id"], told["message"]

    async def closed(self) -> int | None:
        """The code with which the server closes, now."""
        message = await self.socket.receive(WAIT_S)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
        return self.socket.close_code


@asynccontextmanager
async def connected(served: Served, path: str = "/ws", **options: Any) -> AsyncIterator[Client]:
    url = f"http://127.0.0.1:{served.port}{path}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as socket:
        yield Client(socket)


async def refusal(served: Served, path: str = "/ws", **options: Any) -> int:
    """The status of a handshake that is refused."""
    try:
        async with connected(served, path, **options):
            raise AssertionError("the handshake was accepted")
    except aiohttp.WSServerHandshakeError as error:
        return error.status


def delta(**fields: Any) -> str:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def event(document: Any) -> str:
    return f"data: {json.dumps(document)}\n\n"


END = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + "data: [DONE]\n\n"


def saying(*pieces: str) -> dict[str, Any]:
    """What makes a fake engine answer in these pieces."""
    return {"stream": [*(delta(content=piece) for piece in pieces), END]}


async def until_idle(served: Served) -> None:
    """Every lease is back."""
    async with asyncio.timeout(WAIT_S):
        while any(status.running for status in served.roundhouse.state.manager.statuses()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
