"""An ASGI app that is made in the background, so that the server answers /health before FastAPI is imported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from app.asgi import Receive, Scope, Send

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class LazyApp:
    """Calls `make` once, in a thread; whoever comes before it is done waits."""

    def __init__(self, make: Callable[[], Asgi]) -> None:
        self._make = make
        self._made: asyncio.Task[Asgi] | None = None

    def begin(self) -> asyncio.Task[Asgi]:
        if self._made is None:
            self._made = asyncio.create_task(asyncio.to_thread(self._make))
        return self._made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        made = self.begin()
        app = made.result() if made.done() else await asyncio.shield(made)
        await app(scope, receive, send)
