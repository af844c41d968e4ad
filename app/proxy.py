"""The data plane: a plain ASGI endpoint between the client and an engine, byte for byte.

It reads `model` and `stream` of the request and nothing of the answer. FastAPI is not on this path: its routing,
validation and middleware cost more than all that happens here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import aiohttp
import orjson

from app.asgi import ClientGone, Exchange
from app.errors import Header, render_event
from app.request_body import RequestBody, parse_body
from app.routes import Route, check_task
from app.upstream import BROKEN, UNREACHABLE, Upstreams
from app.waiting import WaitingComments
from models.errors import EngineGone, RoundhouseError
from models.manager import Lease, ModelManager
from models.types import ModelSpec
from utils.logging import logger
from utils.openai_compat import close_open_event, error_event

RETRY_PAUSE_S = 0.2  # for the manager to hear of the end of an engine, before a fresh lease is asked for
ATTEMPTS = 2
EVENT_STREAM = "text/event-stream"
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
    )
)


class EngineUnreachable(Exception):
    """The engine gave no answer at all; nothing was sent to the client yet."""


class AnswerCutOff(Exception):
    """The answer broke off when part of it was already sent, in a form that has no place for an error."""


class DataPlane:
    """Answers the routes of `app.routes` from the engines that the manager leases."""

    def __init__(
        self,
        manager: ModelManager,
        upstreams: Upstreams,
        *,
        max_body_bytes: int,
        read_timeout_s: float,
        comment_interval_s: float,
    ) -> None:
        self._manager = manager
        self._upstreams = upstreams
        self._max_body_bytes = max_body_bytes
        self._read_timeout_s = read_timeout_s
        self._comment_interval_s = comment_interval_s

    async def answer(self, exchange: Exchange, route: Route) -> None:
        """Raises RoundhouseError while nothing was sent, ClientGone, or AnswerCutOff."""
        body = parse_body(await exchange.read_body(self._max_body_bytes, self._read_timeout_s))
        spec = self._manager.catalog.resolve(body.model)
        exchange.model = spec.id
        self._manager.check(spec)
        check_task(spec, route)
        task = asyncio.current_task()
        assert task is not None
        try:
            with exchange.watch_client(task):
                await self._answer_from_engine(exchange, route, body, spec)
        except RoundhouseError as error:
            if not exchange.status:
                raise
            await exchange.body(render_event(error, route.protocol, exchange.request_id), False)
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
            task.uncancel()
            raise ClientGone from None

    async def _answer_from_engine(self, exchange: Exchange, route: Route, body: RequestBody, spec: ModelSpec) -> None:
        interval_s = self._comment_interval_s if body.stream and route.streams else None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with WaitingComments(exchange, interval_s, partial(self._describe, spec)) as comments:
                    async with self._manager.lease(spec) as lease:
                        comments.end()
                        await self._relay(exchange, route, body, lease)
                return
            except EngineUnreachable as error:
                logger.warning("{}: the engine of {} gave no answer: {}", exchange.request_id, spec.id, error)
                if attempt == ATTEMPTS:
                    raise EngineGone(
                        f"The engine of '{spec.id}' ended before it answered. It is started again with the next "
                        "request for it."
                    ) from None
            await asyncio.sleep(RETRY_PAUSE_S)

    def _describe(self, spec: ModelSpec) -> str:
        """What a client waits for, in a comment."""
        try:
            status = self._manager.status(self._manager.catalog.base_of(spec).id)
        except RoundhouseError:  # it was removed meanwhile; the wait is about to end with that error
            return f"waiting for {spec.id}"
        expected = f", loading it took {status.load_s:.0f} s last time" if status.load_s is not None else ""
        return f"waiting for {spec.id}: {status.state}{expected}"

    async def _relay(self, exchange: Exchange, route: Route, body: RequestBody, lease: Lease) -> None:
        upstream = self._upstreams.get(lease.endpoint)
        upstream.running += 1
        response: aiohttp.ClientResponse | None = None
        try:
            headers = _request_headers(exchange, lease.endpoint.headers.items())
            response = await upstream.post(route.path, body.with_model(lease.served_name), headers)
            await self._send_answer(exchange, route, response)
        except TimeoutError:
            raise EngineGone(f"The engine of '{lease.spec.id}' sent nothing for too long.") from None
        except UNREACHABLE as error:
            raise EngineUnreachable(f"{type(error).__name__}: {error}") from error
        except aiohttp.ClientError as error:
            raise EngineGone(f"The engine of '{lease.spec.id}' gave an answer that is not HTTP.") from error
        finally:
            upstream.running -= 1
            if response is not None:
                response.close()  # of no effect once the answer was read to its end; else it tells the engine to stop

    async def _send_answer(self, exchange: Exchange, route: Route, response: aiohttp.ClientResponse) -> None:
        streams = response.status == 200 and response.content_type == EVENT_STREAM
        if exchange.status and not streams:  # comments are out: the client reads an event stream already
            return await _tell_in_event(exchange, route, response)
        headers, left = _response_headers(response)
        content = response.content
        tail = b""
        started = bool(exchange.status)
        while True:
            try:
                chunk = await content.readany()
            except BROKEN as error:
                if not started:
                    raise
                return await _break_off(exchange, route, response, tail, error)
            if not started:
                started = True
                await exchange.start(response.status, headers)
            left -= len(chunk)
            if not chunk or left == 0:
                return await exchange.body(chunk, False)
            tail = chunk
            await exchange.body(chunk, True)


async def _break_off(
    exchange: Exchange, route: Route, response: aiohttp.ClientResponse, tail: bytes, error: BaseException
) -> None:
    """Ends an answer that the engine left unfinished, so that the client can tell."""
    logger.warning("{}: the engine of {} broke off: {!r}", exchange.request_id, exchange.model, error)
    if response.content_type != EVENT_STREAM:
        raise AnswerCutOff
    gone = EngineGone(f"The engine of '{exchange.model}' ended while it answered; what came before is incomplete.")
    event = render_event(gone, route.protocol, exchange.request_id)
    await exchange.body(close_open_event(tail) + event, False)


async def _tell_in_event(exchange: Exchange, route: Route, response: aiohttp.ClientResponse) -> None:
    """An engine's answer that is no event stream, most likely an error, to a client that reads one."""
    try:
        told = orjson.loads(await _read_up_to(response.content, ERROR_BYTES))
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict) or "error" not in told:
        raise EngineGone(f"The engine of '{exchange.model}' answered with status {response.status} and no stream.")
    await exchange.body(error_event(route.protocol, told), False)


async def _read_up_to(content: aiohttp.StreamReader, limit: int) -> bytes:
    try:
        return await content.readexactly(limit)
    except asyncio.IncompleteReadError as all_there_is:
        return all_there_is.partial


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
