"""Tells a streaming client what it waits for while its model is not ready, which also keeps the connection alive.

Nothing is sent within the first second, so that a quick load leaves the engine's answer, its status included,
untouched. Once something is out, the status is 200 and whatever goes wrong is told in an error event.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from app.asgi import Exchange
from app.errors import Header
from models.errors import RoundhouseError
from models.manager import ModelManager
from models.scheduling.forecast import Forecast
from models.scheduling.outlook import LEAST_WAIT_S
from models.types import ModelSpec, State
from utils.openai_compat import ProgressText, chat_progress, completion_progress

FIRST_S = 1.0  # until the first word to a client
FRESH_S = 0.25  # how long a text is good for all who wait for the same model
SHOWN = 3  # names in one text
HEADERS: list[Header] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]

# Streams in which a text of ours can stand: those that are no sequences with a fixed beginning.
CHUNKS: Mapping[str, Callable[[str, int, str, ProgressText, str], bytes]] = {
    "/v1/chat/completions": chat_progress,
    "/v1/completions": completion_progress,
}


class WaitTexts:
    """What clients wait for, and for about how long; found out once for all who wait for the same model."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager
        self._told: dict[str, tuple[float, str]] = {}  # by model: good until, text

    def of(self, spec: ModelSpec) -> str:
        """One line."""
        now = time.monotonic()
        until, text = self._told.get(spec.id, (0.0, ""))
        if now >= until:
            try:
                what = self._manager.preparing(spec) or waits_for(self._manager.forecast(spec))
                text = f"waiting for {spec.id}: {what}"
            except RoundhouseError:  # it was removed meanwhile; the wait is about to end with that error
                text = f"waiting for {spec.id}"
            text = text.replace("\r", " ").replace("\n", " ")
            self._told[spec.id] = (now + FRESH_S, text)
        return text


def waits_for(forecast: Forecast) -> str:
    """`its turn after org/b, about 40 s`: what a request for that model waits for, and how long."""
    match forecast.state:
        case State.LOADING | State.WAKING:
            what = str(forecast.state)
            if forecast.wait_s <= LEAST_WAIT_S:  # what was measured before is over, and says nothing of the rest
                return f"{what}, for longer than it usually takes"
        case State.READY:
            what = "a free place"
        case _:
            busy = [eviction.model_id for eviction in forecast.evictions if eviction.running]
            what = f"its turn{_after(forecast.ahead or busy)}"
    return f"{what}, about {max(1, math.ceil(forecast.wait_s))} s"


def _after(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" after {', '.join(names[:SHOWN])}{more}"


class Told:
    """What one client is told at a time: a comment, and the same as a chunk of its answer where that is wished for."""

    def __init__(self, exchange: Exchange, path: str, model: str, kind: ProgressText, text: Callable[[], str]) -> None:
        self._text = text
        self._chunk = CHUNKS.get(path)
        self._kind = kind
        self._model = model
        self._id = exchange.request_id
        self._created_s = int(time.time())

    def __call__(self) -> bytes:
        text = self._text()
        comment = b": " + text.encode() + b"\n\n"
        if self._chunk is None or self._kind == "off":
            return comment
        return comment + self._chunk(self._id, self._created_s, self._model, self._kind, text + "\n")


class Wait:
    """`with` around the wait of one client, ended by `end()`: it is told what for, or leaves when it takes too long.

    `told` gives what a streaming client gets every `interval_s`; without it, the block raises TimeoutError after
    `limit_s`, which begin anew each time that it is entered. Nothing is armed before `grown_long`: most waits are none,
    and a timer for each would cost.
    """

    def __init__(
        self, exchange: Exchange, told: Callable[[], bytes] | None, *, interval_s: float, limit_s: float
    ) -> None:
        self._exchange = exchange
        self._told = told
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._until_s = 0.0
        self._waiting = self._long = self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiter = asyncio.current_task()

    def grown_long(self) -> None:
        """The request is taking more than a moment, for whatever reason."""
        self._long = True
        if self._waiting:
            self._arm()

    def end(self) -> None:
        """To be called before anything else is sent; nothing is half out, since each comment is one message."""
        self._waiting = False
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> Wait:
        self._waiting = True
        self._until_s = self._loop.time() + self._limit_s
        if self._long:
            self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._expired and kind is asyncio.CancelledError and self._waiter is not None:
            self._waiter.uncancel()
            raise TimeoutError from None

    def _arm(self) -> None:
        if self._told is None:
            self._timer = self._loop.call_at(self._until_s, self._expire)
        else:
            self._timer = self._loop.call_later(min(FIRST_S, self._interval_s), self._begin, self._told)

    def _expire(self) -> None:
        if self._waiter is not None:
            self._expired = True
            self._waiter.cancel()

    def _begin(self, told: Callable[[], bytes]) -> None:
        self._task = self._loop.create_task(self._tell(told))

    async def _tell(self, told: Callable[[], bytes]) -> None:
        if not self._exchange.status:
            await self._exchange.start(200, HEADERS)
        while True:
            await self._exchange.body(told(), True)
            await asyncio.sleep(self._interval_s)
