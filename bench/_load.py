"""Clients in one event loop: each question streams, and the time of each piece of its answer is kept."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp

from bench._timeline import Answer
from demo.facts import ENDLESS_QUESTION

ANSWER_TIMEOUT_S = 600.0
LEAST_TOKENS, MOST_TOKENS = 128, 256  # answers as chats have them
ERROR_BYTES = 1024  # of an error that is shown
TAIL_BYTES = 1024  # the last event, with the usage, and what ends the stream
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Ask:
    """A question whose answer has `tokens` tokens."""

    model: str
    tokens: int


def asks(models: Sequence[str], random: Random) -> Iterator[Ask]:
    """Questions without end: each to one of `models`, its answer of a length that varies."""
    while True:
        yield Ask(random.choice(models), random.randint(LEAST_TOKENS, MOST_TOKENS))


class Clients:
    """What all clients of one server share."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def chat(self, ask: Ask) -> Answer:
        """Raises RuntimeError for an answer that is an error, ends early or has none of its tokens."""
        body = {
            "model": ask.model,
            "messages": [{"role": "user", "content": ENDLESS_QUESTION}],
            "max_tokens": ask.tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = Answer(ask.model, time.monotonic())
        tail = b""
        async with self._session.post("/v1/chat/completions", json=body) as response:
            async for data in response.content.iter_any():
                if b"data: {" in data:  # and not only a comment that keeps the connection alive
                    answer.arrivals_s.append(time.monotonic())
                tail = (tail + data)[-TAIL_BYTES:]
        answer.done_s = time.monotonic()
        usage = USAGE.search(tail)
        if response.status != 200 or usage is None or int(usage[1]) != ask.tokens:
            raise RuntimeError(f"{ask} was answered {response.status} … {tail.decode(errors='replace')}")
        answer.tokens = ask.tokens
        return answer

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer. Raises RuntimeError for an error."""
        return json.loads(await self.post_raw(path, body))

    async def post_raw(self, path: str, body: dict[str, Any]) -> bytes:
        """The answer's bytes. Raises RuntimeError for an error."""
        status, answer = await self.answered(path, body)
        if status != 200:
            raise RuntimeError(f"{path} was answered {status}: {answer[:ERROR_BYTES].decode(errors='replace')}")
        return answer

    async def answered(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and bytes, whatever they are."""
        async with self._session.post(path, json=body) as response:
            return response.status, await response.read()


@asynccontextmanager
async def clients(url: str, program: str = "bench") -> AsyncIterator[Clients]:
    """As many connections as there are questions at a time. To servers that tell programs apart they are `program`."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"User-Agent": program}
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=headers) as session:
        yield Clients(session)


async def together(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """All results, in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def closed_loop(all_clients: Clients, questions: Iterator[Ask], until_s: float) -> list[Answer]:
    """A client that asks again as soon as it is answered, and asks nothing after `until_s` (time.monotonic())."""
    answers = []
    while time.monotonic() < until_s:
        answers.append(await all_clients.chat(next(questions)))
    return answers
