"""A circuit breaker for each server elsewhere: after failures in a row it is left alone for a while, then tried once.

Own code, as the kept libraries (pybreaker, aiobreaker, circuitbreaker, purgatory) wrap a call or a block, where here a
lease begins and an answer ends far apart. Half open they let every call through or hold the others up, and they know no
request that ended without saying anything of the server.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from enum import StrEnum

from engines.base import Outcome

SHAKEN_S = 1.0
SLOW_TRIAL_S = 1.0  # an answer that does not stream begins when it is whole: nobody else should wait for that

Clock = Callable[[], float]


class CircuitState(StrEnum):
    CLOSED = "closed"  # requests go to the server
    OPEN = "open"  # none do
    HALF_OPEN = "half_open"  # one does, and says which of the two comes next


class Breaker:
    """Of one server. `max_failures` in a row open it for `open_s` seconds; `clock` is monotonic, in seconds.

    `admits` and the `begin` of a request's watcher are called without an await between them. Requests that began
    before it last changed say nothing any more of how the server is now.
    """

    def __init__(self, max_failures: int, open_s: float, clock: Clock = time.monotonic) -> None:
        self._max_failures = max_failures
        self._open_s = open_s
        self._clock = clock
        self._opened_s: float | None = None  # None: closed
        self._trial: _Request | None = None
        self._trial_s = 0.0  # when it began
        self._era = 0  # goes up with each opening and closing
        self.running = 0
        self.failures = 0  # in a row
        self.last_error = ""
        self._failed_s = -math.inf

    @property
    def shaken(self) -> bool:
        """It failed a moment ago: others go first, so that what is sent again does not come back to it."""
        return self._clock() - self._failed_s < SHAKEN_S

    @property
    def state(self) -> CircuitState:
        if self._opened_s is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self.retry_after_s > 0 else CircuitState.HALF_OPEN

    @property
    def retry_after_s(self) -> float:
        """Until a trial may be made; 0 where it may now, or need not."""
        if self._opened_s is None:
            return 0.0
        return max(0.0, self._opened_s + self._open_s - self._clock())

    def admits(self) -> bool:
        """Whether a request may begin now."""
        state = self.state
        return state is CircuitState.CLOSED or (state is CircuitState.HALF_OPEN and self._trial is None)

    def request(self) -> _Request:
        """The watcher of one request, which `admits` has allowed."""
        return _Request(self)

    def begin(self, request: _Request) -> int:
        """For `_Request`: the era in which it begins."""
        self.running += 1
        if self._opened_s is not None:
            self._trial = request
            self._trial_s = self._clock()
        return self._era

    def answers(self, request: _Request) -> int:
        """For `_Request`: its server has begun to answer. The era from now on.

        That ends a trial, so that nobody waits for the end of its answer; a single failure opens the circuit again
        until a request was answered to its end.
        """
        if self._trial is request:
            self._close()
            self.failures = self._max_failures - 1
            return self._era
        return request.era

    def hears(self) -> None:
        """The server has answered a question of our own: enough for a trial whose answer takes its time."""
        if self._trial is not None and self._clock() - self._trial_s >= SLOW_TRIAL_S:
            self._close()
            self.failures = self._max_failures - 1

    def end(self, request: _Request, outcome: Outcome, why: str) -> None:
        """For `_Request`."""
        self.running -= 1
        if request.era != self._era:
            return
        if outcome is Outcome.FAILED:
            self.failures += 1
            self._failed_s = self._clock()
            self.last_error = why
            if self._trial is request or self.failures >= self._max_failures:
                self._open()
        elif outcome is Outcome.ANSWERED:
            if self._trial is request:
                self._close()
            self.failures = 0
        if self._trial is request:
            self._trial = None

    def _open(self) -> None:
        self._opened_s = self._clock()
        self._era += 1

    def _close(self) -> None:
        self._opened_s = None
        self._trial = None
        self._era += 1


class _Request:
    """Watches one request (a RequestWatcher)."""

    __slots__ = ("_breaker", "era")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self.era = -1

    def begin(self) -> None:
        self.era = self._breaker.begin(self)

    def answers(self) -> None:
        self.era = self._breaker.answers(self)

    def end(self, outcome: Outcome, why: str = "") -> None:
        self._breaker.end(self, outcome, why)


def choose(breakers: Sequence[Breaker]) -> int | None:
    """The index of that server to which the next request goes; None where none takes any.

    One whose trial is due gets it: as long as others answer it would never come back otherwise. Else of the closed
    ones, and of those first that have not just failed, the one with the fewest running requests.
    """
    for index, breaker in enumerate(breakers):
        if breaker.state is CircuitState.HALF_OPEN and breaker.admits():
            return index
    closed = [index for index, breaker in enumerate(breakers) if breaker.state is CircuitState.CLOSED]
    return min(closed, key=lambda index: (breakers[index].shaken, breakers[index].running), default=None)
