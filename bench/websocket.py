"""Chat over WebSockets beside the same requests as server-sent events, at one model that is ready.

- One client: from a request to the first token, and to the first SSE chunk, in turn.
- A crowd: so many connections with a session each at once, and as many SSE requests; until the last one is answered.
- One who reads nothing: what it is sent by sessions without end must hold up nobody. Another client's first token
  beside it, and beside one who reads everything, in turn.

    python -m bench.websocket [--runs 100] [--connections 200] [--unread 16]

Last line: `first_token_added_ms= crowd_ratio= crowd_failures= unread_ratio=` (each by its baseline in this run).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from bench import _report
from bench._load import together
from bench._servers import Server, demo_models, roundhouse, scratch_folder
from demo.facts import ENDLESS_QUESTION, QWEN3, WHICH_MODEL

WARM_UP = 5
ROUNDS, ASKED_BESIDE = 5, 10
TIMEOUT_S = 300.0
TOO_SMALL_BYTES = 4096  # what a client that reads nothing takes all the same
REQUEST = {"model": QWEN3.id, "messages": [{"role": "user", "content": WHICH_MODEL}], "temperature": 0}
ENDLESS = {**REQUEST, "messages": [{"role": "user", "content": ENDLESS_QUESTION}]}

First = Callable[[], Awaitable[float]]


async def over_http(client: aiohttp.ClientSession) -> float:
    """Seconds to the first SSE chunk. Raises RuntimeError for a wrong answer."""
    began = time.perf_counter()
    first_s = 0.0
    content = ""
    async with client.post("/v1/chat/completions", json=REQUEST | {"stream": True}) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first_s = first_s or time.perf_counter() - began
                choices = json.loads(line[len(b"data: ") :])["choices"]
                content += (choices[0]["delta"].get("content") or "") if choices else ""
    return checked(first_s, content)


async def over_socket(opened: aiohttp.ClientWebSocketResponse) -> float:
    """Seconds to the first token. Raises RuntimeError for a wrong answer."""
    began = time.perf_counter()
    first_s = 0.0
    await opened.send_json({"type": "generate", "session_id": "s", **REQUEST})
    while (told := await opened.receive_json())["type"] == "token":
        first_s = first_s or time.perf_counter() - began
    return checked(first_s, told.get("content"))


def checked(first_s: float, content: str | None) -> float:
    if content != QWEN3.answers[WHICH_MODEL]:
        raise RuntimeError(f"answered {content!r}")
    return first_s


async def one_by_one(client: aiohttp.ClientSession, runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first token, and to the first SSE chunk."""
    async with client.ws_connect("/ws") as opened:
        pairs = [(await over_socket(opened), await over_http(client)) for _ in range(WARM_UP + runs)][WARM_UP:]
    return [pair[0] * 1000 for pair in pairs], [pair[1] * 1000 for pair in pairs]


async def crowd(firsts: list[First]) -> tuple[float, int]:
    """Seconds until the last one of `firsts` has its answer, and how many have none."""
    began = time.perf_counter()
    told = await asyncio.gather(*(first() for first in firsts), return_exceptions=True)
    return time.perf_counter() - began, sum(isinstance(one, BaseException) for one in told)


async def crowds(client: aiohttp.ClientSession, connections: int) -> tuple[float, float, int]:
    """Seconds over WebSockets and over HTTP, and how many sessions had no right answer."""
    opened = await together(client.ws_connect("/ws") for _ in range(connections))
    sockets: list[First] = [lambda one=one: over_socket(one) for one in opened]  # type: ignore[misc]
    plain: list[First] = [lambda: over_http(client)] * connections
    await crowd(plain)  # so that both find connections that are open
    socket_s, failures = await crowd(sockets)
    http_s, _ = await crowd(plain)
    await together(one.close() for one in opened)
    return socket_s, http_s, failures


@asynccontextmanager
async def endless(server: Server, sessions: int, *, read: bool) -> AsyncIterator[None]:
    """One connection with answers that do not end, which are read, or not."""

    def small(address: Any) -> socket.socket:
        made = socket.socket(address[0], address[1], address[2])
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TOO_SMALL_BYTES)
        return made

    connector = aiohttp.TCPConnector(socket_factory=small)
    async with (
        aiohttp.ClientSession(server.url, connector=connector) as session,
        session.ws_connect("/ws") as opened,
    ):
        for number in range(sessions):
            await opened.send_json({"type": "generate", "session_id": str(number), **ENDLESS})
        await opened.receive()
        if not read:
            opened._response.connection.transport.pause_reading()  # type: ignore[union-attr]
        reader = asyncio.create_task(read_all(opened)) if read else None
        yield
        if reader is not None:
            reader.cancel()
        opened._response.connection.transport.abort()  # type: ignore[union-attr]


async def read_all(opened: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in opened:
        pass


async def beside(server: Server, client: aiohttp.ClientSession, sessions: int, *, read: bool) -> list[float]:
    """Milliseconds to another client's first tokens."""
    async with endless(server, sessions, read=read), client.ws_connect("/ws") as opened:
        return [await over_socket(opened) * 1000 for _ in range(ASKED_BESIDE)]


async def slow_reader(server: Server, client: aiohttp.ClientSession, sessions: int) -> tuple[float, float]:
    """Median milliseconds beside one who reads nothing, and beside one who reads."""
    unread: list[float] = []
    read: list[float] = []
    await beside(server, client, sessions, read=True)
    for _ in range(ROUNDS):
        unread += await beside(server, client, sessions, read=False)
        read += await beside(server, client, sessions, read=True)
    return statistics.median(unread), statistics.median(read)


async def measure(server: Server, runs: int, connections: int, unread: int) -> None:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client,
        asyncio.timeout(2 * TIMEOUT_S),
    ):
        token_ms, chunk_ms = await one_by_one(client, runs)
        socket_s, http_s, failures = await crowds(client, connections)
        unread_ms, read_ms = await slow_reader(server, client, unread)
    rows = [
        ("first token by WebSocket, ms", *_report.summary(token_ms)),
        ("first chunk by SSE, ms", *_report.summary(chunk_ms)),
    ]
    _report.print_table("One client", ("", "min", "median", "max"), rows)
    print(f"\n{connections} at once, seconds: {socket_s:.2f} by WebSockets ({failures} failed), {http_s:.2f} by SSE")
    print(f"first token beside {unread} endless sessions, ms: {unread_ms:.1f} not read, {read_ms:.1f} read")
    _report.print_figures(
        {
            "first_token_added_ms": statistics.median(token_ms) - statistics.median(chunk_ms),
            "crowd_ratio": socket_s / http_s,
            "crowd_failures": failures,
            "unread_ratio": unread_ms / read_ms,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="requests of the one client, each way")
    parser.add_argument("--connections", type=int, default=200, help="of the crowd")
    parser.add_argument("--unread", type=int, default=16, help="sessions of the one who reads nothing")
    arguments = parser.parse_args()
    models = demo_models()
    with scratch_folder() as scratch, roundhouse(models, scratch) as server:
        server.wait_warm(("vllm",))
        server.first_token_s(QWEN3.id, WHICH_MODEL)
        asyncio.run(measure(server, arguments.runs, arguments.connections, arguments.unread))


if __name__ == "__main__":
    main()
