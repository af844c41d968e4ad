"""The data plane: a plain ASGI endpoint between the client and an engine, byte for byte.

It reads `model` and `stream` of the request and nothing of the answer. FastAPI is not on this path: its routing,
validation and middleware cost more than all that happens here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import NoReturn

import aiohttp
import orjson

from app.asgi import Bodies, ClientGone, Exchange
from app.default_model import default_model
from app.errors import Header, render_event
from app.foreign import EVENT_STREAM, FIRST_ERROR, FIRST_FAILURE, NoAnswer, read_checked, read_up_to, why_unreached
from app.request_body import RequestBody, parse_body, parse_document
from app.routes import Route, check_task
from app.state import AppState
from app.upstream import BROKEN, NEVER_REACHED, UNREACHABLE, Upstreams
from app.waiting import Told, Wait, WaitTexts
from engines.base import Outcome
from models.errors import Busy, EngineGone, RoundhouseError, Unavailable
from models.manager import Lease
from models.types import ModelSpec
from utils.logging import logger
from utils.openai_compat import close_open_event, error_event

RETRY_PAUSE_S = 0.2  # for the manager to hear of the end of an engine, before a fresh lease is asked for
ATTEMPTS = 2
UNREACHED_RETRY_S = 5.0  # for clients whose server elsewhere could not be reached, while its circuit is closed
ERROR_BYTES = 1 << 16  # of an engine's error that are read to be told in an event

# What engines get of a request's headers: nothing that names a person or a key, nothing that steers an engine.
REQUEST_HEADERS = (
    (b"content-type", "Content-Type"),
    (b"accept", "Accept"),
    (b"user-agent", "User-Agent"),
    (b"traceparent", "traceparent"),
    (b"tracestate", "tracestate"),
    (b"anthropic-version", "anthropic-version"),
    (b"anthropic-beta", "anthropic-beta"),
)
# What clients do not get of an answer's headers: those of the hop, and those that are ours to give.
DROPPED_HEADERS = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"server",
        b"date",
        b"set-cookie",
        b"x-request-id",
        b"vary",
        b"alt-svc",
        b"strict-transport-security",
        b"openai-organization",
        b"openai-project",
    )
)


class EngineUnreachable(EngineGone):
    """The engine gave no answer at all, and can have done nothing that lasts; nothing was sent to the client yet."""

    told: RoundhouseError | None = None  # to the client, once this is not tried again


class AnswerCutOff(Exception):
    """The answer broke off when part of it was already sent. The client can tell, as far as its form allows."""


class NotServed(Exception):
    """The client was told of an error by the engine: the request has ended, but it was not served."""


class DataPlane:
    """Answers the routes of `app.routes` from the engines that the manager leases."""

    def __init__(self, state: AppState, upstreams: Upstreams, bodies: Bodies) -> None:
        self._state = state
        self._manager = state.manager
        self._upstreams = upstreams
        self._bodies = bodies
        self._texts = WaitTexts(state.manager)

    async def answer(self, exchange: Exchange, route: Route) -> None:
        """Raises RoundhouseError while nothing was sent, ClientGone, or AnswerCutOff."""
        raw = await exchange.read_body(self._bodies)
        document = parse_document(raw)
        exchange.protocol = route.protocol_of(document)
        body = parse_body(raw, document, model_needed=exchange.protocol != "tei")
        spec = self._spec_of(body, route)
        exchange.model = spec.id
        self._manager.check(spec)
        check_task(spec, route)
        wait = self._wait_of(exchange, route, body, spec)
        try:
            with exchange.watch_client(wait.grown_long):
                await self._answer_from_engine(exchange, route, body, spec, wait)
        except NotServed:
            return
        except RoundhouseError as error:
            if not exchange.status:
                raise
            await exchange.body(render_event(error, route.protocol, exchange.request_id), False)

    def _spec_of(self, body: RequestBody, route: Route) -> ModelSpec:
        if body.model is None:
            return default_model(self._manager, route, self._state.settings.default_model)
        return self._manager.catalog.resolve(body.model)

    def _wait_of(self, exchange: Exchange, route: Route, body: RequestBody, spec: ModelSpec) -> Wait:
        settings = self._state.settings
        told: Told | None = None
        if body.stream and body.model and route.streams and exchange.listens:
            text = partial(self._texts.of, spec)
            told = Told(exchange, route.path, body.model, settings.progress_text, text)
        return Wait(exchange, told, interval_s=settings.sse_comment_s, limit_s=settings.wait_timeout_s)

    async def _answer_from_engine(
        self, exchange: Exchange, route: Route, body: RequestBody, spec: ModelSpec, wait: Wait
    ) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            asked_s = time.monotonic()
            try:
                with wait:
                    async with self._manager.lease(spec) as lease:
                        wait.end()
                        self._state.metrics.waited(spec.id, time.monotonic() - asked_s)
                        await self._relay(exchange, route, body, lease)
                return
            except EngineUnreachable as error:
                logger.warning("{}: the engine of {} gave no answer: {}", exchange.request_id, spec.id, error)
                if attempt == ATTEMPTS:
                    raise (error.told or _ended_before(spec)) from None
                if error.told is None:  # of servers elsewhere another may have it, at once
                    await asyncio.sleep(RETRY_PAUSE_S)
            except TimeoutError:
                raise self._waited_too_long(spec, self._state.settings.wait_timeout_s) from None

    def _waited_too_long(self, spec: ModelSpec, limit_s: float) -> Busy:
        text = f"The model '{spec.id}' was not ready within {limit_s:g} s (wait_timeout_s)"
        return Busy(f"{text}: {self._texts.of(spec)}.", retry_after_s=self._expected_wait_s(spec))

    def _expected_wait_s(self, spec: ModelSpec) -> float | None:
        try:
            return self._manager.expected_wait_s(self._manager.catalog.base_of(spec).id)
        except RoundhouseError:  # it was removed meanwhile
            return None

    async def _relay(self, exchange: Exchange, route: Route, body: RequestBody, lease: Lease) -> None:
        upstream = self._upstreams.get(lease.endpoint)
        upstream.running += 1
        response: aiohttp.ClientResponse | None = None
        try:
            headers = _request_headers(exchange, lease.endpoint.headers.items())
            response = await upstream.post(route.path, body.with_model(lease.served_name), headers)
            await self._pass_on(exchange, route, response, lease)
        except (ClientGone, asyncio.CancelledError):
            lease.outcome = Outcome.ABANDONED
            raise
        except NEVER_REACHED as error:
            raise _unreached(lease, why_unreached(error)) from error
        except TimeoutError:
            raise _failed(lease, f"sent nothing for {self._state.settings.upstream_idle_timeout_s:g} s") from None
        except UNREACHABLE as error:
            if lease.endpoint.ends_with_us:
                raise _unreached(lease, f"{type(error).__name__}: {error}") from error
            raise _failed(lease, "closed the connection before the end of its answer") from error
        except aiohttp.ClientError as error:
            raise _failed(lease, "gave an answer that is not HTTP") from error
        except AnswerCutOff:
            lease.fails("it broke off its answer")
            raise
        except EngineGone as error:
            lease.fails(error.why if isinstance(error, NoAnswer) else error.message)
            raise
        finally:
            upstream.running -= 1
            if response is not None:
                response.close()  # of no effect once the answer was read to its end; else it tells the engine to stop

    async def _pass_on(self, exchange: Exchange, route: Route, response: aiohttp.ClientResponse, lease: Lease) -> None:
        """As `_send_answer`; notes in the lease how the request ends, where that is known already."""
        first = b""
        if response.status >= FIRST_FAILURE:
            lease.fails(f"status {response.status}")
        elif response.status >= FIRST_ERROR:
            lease.answers()
        if not lease.endpoint.ends_with_us:
            first = await read_checked(response, lease.spec, route.protocol)
        if response.status < FIRST_ERROR:
            lease.answers()
        await self._send_answer(exchange, route, response, lease, first)

    async def _send_answer(
        self, exchange: Exchange, route: Route, response: aiohttp.ClientResponse, lease: Lease, first: bytes
    ) -> None:
        """`first` was read already. Raises AnswerCutOff, or NotServed once an error of the engine was passed on."""
        last_words = lease.endpoint.last_words
        streams = response.status == 200 and response.content_type == EVENT_STREAM
        if exchange.status and not streams:  # comments are out: the client reads an event stream already
            await _tell_in_event(exchange, route, response, lease, first)
        headers, left = _response_headers(response)
        content = response.content
        tail = b""
        begun = False
        while True:
            try:
                chunk = first if first and not begun else await content.readany()
            except BROKEN as error:
                if not begun:
                    raise
                await _break_off(exchange, route, response, lease, tail, error)
            if any(words in chunk for words in last_words):
                dying = EngineUnreachable("it is about to end, and says so")
                if not begun:
                    raise dying
                await _break_off(exchange, route, response, lease, tail, dying)
            if not begun:
                begun = True
                if not exchange.status:
                    await exchange.start(response.status, headers)
            left -= len(chunk)
            if not chunk or left == 0:
                break
            tail = chunk
            await exchange.body(chunk, True)
        await exchange.body(chunk, False)
        if response.status >= FIRST_ERROR:
            raise NotServed


async def _break_off(
    exchange: Exchange, route: Route, response: aiohttp.ClientResponse, lease: Lease, tail: bytes, error: BaseException
) -> NoReturn:
    """Ends an answer that the engine left unfinished, so that the client can tell."""
    logger.warning("{}: the engine of {} broke off: {!r}", exchange.request_id, exchange.model, error)
    if response.content_type == EVENT_STREAM:
        gone = EngineGone(f"{_who(lease)} ended while it answered; what came before is incomplete.")
        event = render_event(gone, route.protocol, exchange.request_id)
        await exchange.body(close_open_event(tail) + event, False)
    raise AnswerCutOff


async def _tell_in_event(
    exchange: Exchange, route: Route, response: aiohttp.ClientResponse, lease: Lease, first: bytes
) -> NoReturn:
    """An engine's answer that is no event stream, most likely an error, to a client that reads one."""
    raw = first or await read_up_to(response.content, ERROR_BYTES)
    if any(words in raw for words in lease.endpoint.last_words):
        raise EngineUnreachable("it is about to end, and says so")
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict) or "error" not in told:
        raise EngineGone(f"{_who(lease)} answered with status {response.status} and no stream.")
    await exchange.body(error_event(route.protocol, told), False)
    raise NotServed


def _who(lease: Lease) -> str:
    return f"The {'engine' if lease.endpoint.ends_with_us else 'server'} of '{lease.spec.id}'"


def _failed(lease: Lease, what: str) -> EngineGone:
    lease.fails(f"it {what}")
    return EngineGone(f"{_who(lease)} {what}.")


def _unreached(lease: Lease, why: str) -> EngineUnreachable:
    lease.fails(why)
    error = EngineUnreachable(why)
    if not lease.endpoint.ends_with_us:
        told = f"{_who(lease)} ({lease.spec.engine}) cannot be reached: {why}."
        error.told = Unavailable(told, param="model", retry_after_s=UNREACHED_RETRY_S)
    return error


def _ended_before(spec: ModelSpec) -> EngineGone:
    return EngineGone(
        f"The engine of '{spec.id}' ended before it answered. It is started again with the next request for it."
    )


def _request_headers(exchange: Exchange, own: Iterable[tuple[str, str]]) -> dict[str, str]:
    given = exchange.headers
    headers = {"Content-Type": "application/json", "X-Request-Id": exchange.request_id}
    for key, name in REQUEST_HEADERS:
        value = given.get(key)
        if value is not None and value.isascii():
            headers[name] = value.decode("ascii")
    headers.update(own)
    return headers


def _response_headers(response: aiohttp.ClientResponse) -> tuple[list[Header], int]:
    """What the client gets of the answer's headers, and the length of its body (-1 where not known)."""
    kept: list[Header] = []
    length = -1
    for raw_name, value in response.raw_headers:
        name = raw_name.lower()
        if name in DROPPED_HEADERS or name.startswith(b"access-control-"):
            continue
        if name == b"content-length":
            length = int(value)
        kept.append((name, value))
    return kept, length
