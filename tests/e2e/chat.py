"""Chat requests for tests that look at more than the answer: many at once, streams that are watched or left."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bench._servers import Server

TIMEOUT = aiohttp.ClientTimeout(total=120)


@asynccontextmanager
async def session(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP session at the server's root."""
    async with aiohttp.ClientSession(server.url, timeout=TIMEOUT) as made:
        yield made


def body(model: str, question: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0} | more


async def ask(client: aiohttp.ClientSession, model: str, question: str, **more: Any) -> str:
    """The whole answer. Raises aiohttp.ClientResponseError for a status from 400."""
    async with client.post("/v1/chat/completions", json=body(model, question, **more)) as answer:
        answer.raise_for_status()
        return str((await answer.json())["choices"][0]["message"]["content"])


@asynccontextmanager
async def stream(
    client: aiohttp.ClientSession, model: str, question: str, **more: Any
) -> AsyncIterator[AsyncIterator[str]]:
    """The pieces of a streamed answer; an error event raises StreamError."""
    request = body(model, question, stream=True, **more)
    async with client.post("/v1/chat/completions", json=request) as answer:
        answer.raise_for_status()
        yield _pieces(answer)


class StreamError(Exception):
    """The stream ended with an error event; `error` is what it said."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in answer.content:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[len(b"data: ") :])
        if "error" in event:
            raise StreamError(event["error"])
        content = event["choices"][0]["delta"].get("content") if event["choices"] else None
        if content:
            yield content
