"""One session: a chat request that goes the way of every other, and whose answer is told in messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from app.asgi import Exchange, Message
from app.websocket import messages
from app.websocket.answer import Answer
from app.websocket.messages import Generate
from models.errors import RoundhouseError

# Of the handshake's headers, those that say something of each request.
PASSED_HEADERS = (b"user-agent", b"traceparent", b"tracestate")

ModelOf = Callable[[], Coroutine[None, None, str]]
Post = Callable[[Exchange], Awaitable[None]]
Tell = Callable[[str], Awaitable[None]]


class Session:
    """Ends with one `done` or `error`, whatever happens; `cancel` may be called at any time.

    `model_of` tells the model's id, once that is known, and raises RoundhouseError.
    """

    def __init__(self, request: Generate, handshake: Exchange, number: int, model_of: ModelOf, tell: Tell) -> None:
        self.id = request.session_id
        self._request = request
        self._model_of = model_of
        self._answer = Answer(self.id, tell)
        self._body: bytes | None = None
        self._cancelled = asyncio.Event()
        self._exchange = self._exchange_of(handshake, number)

    def cancel(self) -> None:
        """The session is left, as a client of HTTP leaves: by going away."""
        self._cancelled.set()

    async def run(self, post: Post) -> str:
        """The message that ends it. `post` answers a chat request as the gate does, errors included."""
        try:
            model = await self._await_model()
            if model is not None:
                self._body = self._request.chat_request(model)
                await post(self._exchange)
        except RoundhouseError as error:
            return messages.error(error.message, error.code, self.id)
        if self._cancelled.is_set() and not self._exchange.finished:
            return messages.error("The session was cancelled.", "cancelled", self.id)
        return self._answer.result()

    async def _await_model(self) -> str | None:
        """None: cancelled meanwhile."""
        found, cancelled = asyncio.create_task(self._model_of()), asyncio.create_task(self._cancelled.wait())
        try:
            either: set[asyncio.Task[Any]] = {found, cancelled}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return found.result() if found.done() else None
        finally:
            found.cancel()
            cancelled.cancel()

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._cancelled.wait()
        return {"type": "http.disconnect"}

    def _exchange_of(self, handshake: Exchange, number: int) -> Exchange:
        headers = [(name, handshake.headers[name]) for name in PASSED_HEADERS if name in handshake.headers]
        request_id = f"{handshake.request_id}.{number}".encode()
        scope = {
            **handshake.scope,
            "type": "http",
            "method": "POST",
            "headers": [*headers, (b"content-type", b"application/json"), (b"x-request-id", request_id)],
        }
        exchange = Exchange(scope, self._receive, self._answer.send)
        exchange.route = exchange.path
        exchange.listens = False
        return exchange
