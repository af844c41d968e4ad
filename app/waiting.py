"""Keeps a streaming client's connection alive while its model loads: SSE comments that say what it waits for.

Nothing is sent within the first `interval_s`, so that a quick load leaves the engine's answer, its status included,
untouched. Once a comment is out, the status is 200 and whatever goes wrong is told in an error event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from app.asgi import Exchange
from app.errors import Header

HEADERS: list[Header] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class WaitingComments:
    """`with` around the wait, ended by `end()`. `describe` gives the text of each comment; without interval: none.

    Costs one timer where nobody waits long.
    """

    def __init__(self, exchange: Exchange, interval_s: float | None, describe: Callable[[], str]) -> None:
        self._exchange = exchange
        self._interval_s = interval_s
        self._describe = describe
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def end(self) -> None:
        """To be called before anything else is sent; no comment is half out, since a comment is one message."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> WaitingComments:
        if self._interval_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._start, self._interval_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self, interval_s: float) -> None:
        self._task = asyncio.create_task(self._run(interval_s))

    async def _run(self, interval_s: float) -> None:
        if not self._exchange.status:
            await self._exchange.start(200, HEADERS)
        while True:
            text = self._describe().replace("\r", " ").replace("\n", " ")
            await self._exchange.body(b": " + text.encode() + b"\n\n", True)
            await asyncio.sleep(interval_s)
