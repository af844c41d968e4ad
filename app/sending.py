"""Sends one request to whatever engine a lease names, and once more where that is safe; says what went wrong.

The one place where what engines do wrong becomes an error for the client and the outcome of a lease, whatever protocol
the request is in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp

from app.asgi import ClientGone, Exchange
from app.foreign import NoAnswer, why_unreached
from app.request_headers import client_of
from app.state import AppState
from app.upstream import NEVER_REACHED, UNREACHABLE
from app.waiting import Wait, WaitTexts
from engines.base import Outcome
from models.errors import Busy, EngineGone, RoundhouseError, Unavailable
from models.manager import Lease
from models.types import ModelSpec
from utils.logging import logger

RETRY_PAUSE_S = 0.2  # for the manager to hear of the end of an engine, before a fresh lease is asked for
ATTEMPTS = 2
UNREACHED_RETRY_S = 5.0  # for clients whose server elsewhere could not be reached, while its circuit is closed
CUT_OFF = "closed the connection before the end of its answer"


class EngineUnreachable(EngineGone):
    """The engine gave no answer at all, and can have done nothing that lasts; nothing was sent to the client yet.

    `told`: to the client, once this is not tried again, and `server` its base URL; None for an engine of ours, which
    then has ended.
    """

    def __init__(self, why: str, told: RoundhouseError | None = None, server: str | None = None) -> None:
        super().__init__(why)
        self.told = told
        self.server = server


class AnswerCutOff(Exception):
    """The answer broke off when part of it was already sent. The client can tell, as far as its form allows."""


class NotServed(Exception):
    """The client was told of an error by the engine: the request has ended, but it was not served."""


class Sender:
    """To the engines that the manager leases."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._manager = state.manager
        self._metrics = state.metrics
        self.texts = WaitTexts(state.manager)

    async def send(
        self, exchange: Exchange, spec: ModelSpec, wait: Wait, relay: Callable[[Lease], Awaitable[None]]
    ) -> None:
        """`relay` sends the request by a lease and passes the answer on. It is called again if it got no answer.

        Not for the same server elsewhere: a moment later that is no nearer, and its circuit breaker would count one
        request twice. Raises RoundhouseError, ClientGone, and AnswerCutOff and NotServed as `relay` does.
        """
        before: EngineUnreachable | None = None
        for attempt in range(1, ATTEMPTS + 1):
            asked_s = time.monotonic()
            try:
                with wait:
                    async with self._manager.lease(spec, client_of(exchange)) as lease:
                        wait.end()
                        self._metrics.waited(spec.id, time.monotonic() - asked_s)
                        if before and before.told and before.server == lease.endpoint.base_url:
                            raise before.told
                        await self._relay(lease, relay)
                return
            except EngineUnreachable as error:
                logger.warning("{}: the engine of {} gave no answer: {}", exchange.request_id, spec.id, error)
                if attempt == ATTEMPTS:
                    raise (error.told or _ended_before(spec)) from None
                before = error
                if error.told is None:  # of servers elsewhere another may have it, at once
                    await asyncio.sleep(RETRY_PAUSE_S)
            except TimeoutError:
                raise self._waited_too_long(spec, self._state.settings.wait_timeout_s) from None

    async def _relay(self, lease: Lease, relay: Callable[[Lease], Awaitable[None]]) -> None:
        """Notes how the request ended, and says it in our errors."""
        try:
            await relay(lease)
        except (ClientGone, asyncio.CancelledError):
            lease.outcome = Outcome.ABANDONED
            raise
        except AnswerCutOff:
            lease.fails("it broke off its answer")
            raise
        except EngineGone as error:
            _note(lease, error)
            raise
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            gone = self._error_of(lease, error)
            _note(lease, gone)
            raise gone from error

    def _error_of(self, lease: Lease, error: aiohttp.ClientError | ConnectionError | TimeoutError) -> EngineGone:
        if isinstance(error, NEVER_REACHED):
            return unreached(lease, why_unreached(error))
        if isinstance(error, TimeoutError):
            return failed(lease, f"sent nothing for {self._state.settings.upstream_idle_timeout_s:g} s")
        if not isinstance(error, UNREACHABLE):
            return failed(lease, "gave an answer that is not HTTP")
        if lease.endpoint.ends_with_us:
            return unreached(lease, f"{type(error).__name__}: {error}")
        return failed(lease, CUT_OFF)

    def _waited_too_long(self, spec: ModelSpec, limit_s: float) -> Busy:
        text = f"The model '{spec.id}' was not ready within {limit_s:g} s (wait_timeout_s)"
        return Busy(f"{text}: {self.texts.of(spec)}.", retry_after_s=self._expected_wait_s(spec))

    def _expected_wait_s(self, spec: ModelSpec) -> float | None:
        try:
            return self._manager.expected_wait_s(self._manager.catalog.base_of(spec).id)
        except RoundhouseError:  # it was removed meanwhile
            return None


def who(lease: Lease) -> str:
    return f"The {'engine' if lease.endpoint.ends_with_us else 'server'} of '{lease.spec.id}'"


def failed(lease: Lease, what: str) -> NoAnswer:
    return NoAnswer(f"{who(lease)} {what}", f"it {what}")


def unreached(lease: Lease, why: str) -> EngineUnreachable:
    """Nothing of the request was read, or it was by an engine that has ended."""
    if lease.endpoint.ends_with_us:
        return EngineUnreachable(why)
    text = f"{who(lease)} ({lease.spec.engine}) cannot be reached: {why}."
    told = Unavailable(text, param="model", retry_after_s=UNREACHED_RETRY_S)
    return EngineUnreachable(why, told, lease.endpoint.base_url)


def _note(lease: Lease, error: EngineGone) -> None:
    lease.fails(error.why if isinstance(error, NoAnswer) else error.message)


def _ended_before(spec: ModelSpec) -> EngineGone:
    return EngineGone(
        f"The engine of '{spec.id}' ended before it answered. It is started again with the next request for it."
    )
