"""One HTTP exchange at the ASGI level: what every route needs, with few allocations."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from app.errors import Header, Rendered, SlowRequest, TooLarge
from models.errors import Busy
from utils.openai_compat import Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_ID_MAX = 128
WATCH_AFTER_S = 0.01
BODIES_RETRY_S = 5.0  # for some of the requests that hold large bodies to be answered
STATUS_CLIENT_GONE = 499  # nginx's number for it; only in the log and the metrics


class ClientGone(Exception):
    """The client closed the connection; nobody is left to be answered."""


@dataclass(slots=True)
class Bodies:
    """Bounds of requests' bodies: of each one, and of all that are held at the same time, waiting ones included."""

    max_bytes: int
    total_bytes: int
    timeout_s: float
    held_bytes: int = 0

    def take(self, count: int) -> None:
        """Raises Busy where there is no room for so many bytes more."""
        if self.held_bytes + count > self.total_bytes:
            raise Busy(
                f"The requests that are being answered hold {self.held_bytes >> 20} MiB of bodies already; no more "
                f"than {self.total_bytes >> 20} MiB are kept (a multiple of max_body_bytes). Try again later.",
                retry_after_s=BODIES_RETRY_S,
            )
        self.held_bytes += count


class Exchange:
    """A request and the answer to it. `extra` headers go into every answer; `finished` once its last byte is out."""

    __slots__ = (
        "body_bytes",
        "extra",
        "finished",
        "gone",
        "headers",
        "listens",
        "method",
        "model",
        "path",
        "protocol",
        "receive",
        "request_id",
        "route",
        "scope",
        "send",
        "started_s",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = _request_id(self.headers.get(b"x-request-id"))
        self.extra: list[Header] = [(b"x-request-id", self.request_id.encode())]
        self.started_s = time.perf_counter()
        self.status = 0  # of the answer that was begun
        self.route = ""  # as the metrics name it
        self.model = ""
        self.protocol: Protocol | None = None  # of the client, once its body was read; before, the path's
        self.body_bytes = 0  # taken of `Bodies`
        self.listens = True  # a stream of its answer may begin with comments on what it waits for
        self.finished = False
        self.gone = False

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self.status = status
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *self.extra]})

    async def body(self, chunk: bytes, more: bool) -> None:
        if not more:
            self.finished = True  # before the server wakes whoever waits for the disconnect
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def respond(self, answer: Rendered) -> None:
        await self.start(answer.status, answer.headers)
        await self.body(b"" if self.method == "HEAD" else answer.body, False)

    async def forward(self, message: Message) -> None:
        """A `send` for an inner ASGI app: adds our headers, notes the status."""
        if message["type"] == "http.response.start":
            await self.start(message["status"], message.get("headers", ()))
        else:
            await self.body(message.get("body", b""), message.get("more_body", False))

    async def read_body(self, bodies: Bodies) -> bytes:
        """The whole body. Raises TooLarge before more than `max_bytes` are kept, Busy, SlowRequest, ClientGone.

        Whoever answers gives `body_bytes` back to `bodies` in the end.
        """
        if int(self.headers.get(b"content-length", b"0")) > bodies.max_bytes:  # digits only: the parser saw to that
            raise _too_large(bodies.max_bytes)
        try:
            async with asyncio.timeout(bodies.timeout_s):
                return await self._read(bodies)
        except TimeoutError:
            raise SlowRequest(f"The request's body did not arrive within {bodies.timeout_s:g} s.") from None

    async def _read(self, bodies: Bodies) -> bytes:
        kept = bytearray()
        while (message := await self.receive())["type"] == "http.request":
            part, more = message.get("body", b""), message.get("more_body")
            size = len(kept) + len(part)
            if size > bodies.max_bytes:
                raise _too_large(bodies.max_bytes)
            bodies.take(len(part))
            self.body_bytes = size
            if not more and not kept:
                return bytes(part)
            kept += part
            if not more:
                return bytes(kept)
        raise ClientGone

    def watch_client(self, later: Callable[[], None] | None = None) -> ClientWatch:
        """`with` around the answering: ends it with ClientGone when the client closes the connection.

        `later` is called once that takes more than a moment.
        """
        return ClientWatch(self, later)


class ClientWatch:
    """Begins to watch only when an answer takes long enough to matter: a task for each quick one would cost a tenth."""

    __slots__ = ("_exchange", "_later", "_task", "_timer", "_watcher")

    def __init__(self, exchange: Exchange, later: Callable[[], None] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._exchange = exchange
        self._later = later
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._exchange.gone and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise ClientGone from None

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        if self._later is not None:
            self._later()

    async def _watch(self) -> None:
        exchange = self._exchange
        while (await exchange.receive())["type"] != "http.disconnect":
            pass
        if not exchange.finished:
            exchange.gone = True
            self._task.cancel()


def _request_id(given: bytes | None) -> str:
    if given is not None and 0 < len(given) <= REQUEST_ID_MAX and given.isascii():
        text = given.decode("ascii")
        if text.isprintable():
            return text
    return os.urandom(16).hex()


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {max_bytes} bytes (max_body_bytes).")


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` for an inner app whose body was read already."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
