"""A server elsewhere on a loopback port, in this process, which can be as broken as a test wants it.

Raw on purpose: a web framework would not answer garbage, or close a connection in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

EVENT = b'data: {"choices": [{"delta": {"content": "Ahoy"}}]}\n\n'
CHAT = b'{"object": "chat.completion", "choices": [{"message": {"content": "Ahoy!"}}]}'
HEADER_LIMIT = 1 << 16


@dataclass
class Asked:
    """A request as the server got it."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(eq=False)
class Elsewhere:
    """`models` is what it lists, raw where it is bytes; `answer` what it sends to requests, `None` closes at once.

    While `may_answer` is not set, requests wait. With `endless`, the answer's last byte is never followed by its end.
    """

    models: Any = ("demo/chat",)
    answer: bytes | None = b""
    endless: bool = False
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    listed: int = 0  # how often it was asked for its models …
    listed_at: set[str] = field(default_factory=set)  # … and at which paths
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.answer = self.answer or http(CHAT)
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """What stands before `/chat/completions`, where it is in the usual place."""
        return f"{self.url}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=HEADER_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """As a process that dies: every connection breaks, and new ones are refused until the next `start`."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()
        self.may_answer.set()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                await self._serve_one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split()[1]
        if path.endswith("/models"):
            self.listed += 1
            self.listed_at.add(path)
            writer.write(self._list())
            return
        self.asked.append(Asked(path, headers, body))
        self.arrived.set()
        await self.may_answer.wait()
        if self.answer is None:
            raise ConnectionError
        writer.write(self.answer)
        await writer.drain()
        if self.endless:
            await asyncio.Event().wait()
        head_sent, _, body_sent = self.answer.partition(b"\r\n\r\n")
        if b"content-length: %d\r" % len(body_sent) not in head_sent + b"\r":
            raise ConnectionError  # its end is that of the connection, or it has none

    def _list(self) -> bytes:
        if isinstance(self.models, bytes):
            return self.models
        entries = [{"id": each} if isinstance(each, str) else each for each in self.models]
        return http(orjson.dumps({"object": "list", "data": entries}))


def http(
    body: bytes, status: int = 200, kind: str = "application/json", headers: Mapping[str, object] | None = None
) -> bytes:
    """A whole answer."""
    lines = {"content-type": kind, "content-length": len(body), **(headers or {})}
    return (
        f"HTTP/1.1 {status} X\r\n".encode()
        + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())
        + b"\r\n"
        + body
    )


def stream(*events: bytes, ends: bool = True) -> bytes:
    """An event stream in chunks, which without `ends` lacks its last chunk."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    return head + chunks + (b"0\r\n\r\n" if ends else b"")


@asynccontextmanager
async def elsewhere(**options: Any) -> AsyncIterator[Elsewhere]:
    server = Elsewhere(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def copy_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one of them ends; what carries connections needs one for each way."""
    with contextlib.suppress(OSError):
        while part := await reader.read(1 << 16):
            writer.write(part)
            await writer.drain()
    writer.close()
