"""The data plane: a plain ASGI endpoint between the client and an engine, byte for byte.

It reads `model` and `stream` of the request and nothing of the answer. FastAPI is not on this path: its routing,
validation and middleware cost more than all that happens here.
"""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import aiohttp
import orjson

from app.asgi import Bodies, Exchange
from app.default_model import default_model
from app.errors import Header, render_event
from app.foreign import EVENT_STREAM, FIRST_ERROR, is_failure, read_checked, read_up_to
from app.request_body import RequestBody, parse_body, read_document
from app.request_headers import request_headers
from app.routes import Route, check_task, meant
from app.sending import AnswerCutOff, EngineUnreachable, NotServed, Sender, who
from app.state import AppState
from app.upstream import BROKEN, Upstreams
from app.waiting import Told, Wait
from models.errors import EngineGone, RoundhouseError
from models.manager import Lease
from models.types import ModelSpec
from utils.logging import logger
from utils.openai_compat import close_open_event, error_event

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


class DataPlane:
    """Answers the routes of `app.routes` from the engines that the manager leases."""

    def __init__(self, state: AppState, upstreams: Upstreams, bodies: Bodies) -> None:
        self._state = state
        self._manager = state.manager
        self._upstreams = upstreams
        self._bodies = bodies
        self._sender = Sender(state)

    async def answer(self, exchange: Exchange, route: Route) -> None:
        """Raises RoundhouseError while nothing was sent, ClientGone, or AnswerCutOff."""
        raw = await exchange.read_body(self._bodies)
        document, outside = await read_document(raw)
        route = meant(route, document)
        exchange.protocol = route.protocol_of(document)
        names_none = exchange.protocol == "tei"  # in this protocol no request has a model
        needed = not (names_none or self._state.settings.default_model)
        body = parse_body(raw, document, outside=outside, model_needed=needed)
        spec = self._spec_of(body, route)
        if body.model is None and not names_none:
            body = body.naming(spec.id)
        exchange.model = spec.id
        self._manager.check(spec)
        check_task(spec, route)
        wait = self._wait_of(exchange, route, body, spec)
        try:
            with exchange.watch_client(wait.grown_long):
                await self._sender.send(exchange, spec, wait, partial(self._relay, exchange, route, body))
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
            text = partial(self._sender.texts.of, spec)
            told = Told(exchange, route.path, body.model, settings.progress_text, text)
        return Wait(exchange, told, interval_s=settings.sse_comment_s, limit_s=settings.wait_timeout_s)

    async def _relay(self, exchange: Exchange, route: Route, body: RequestBody, lease: Lease) -> None:
        upstream = self._upstreams.get(lease.endpoint)
        upstream.running += 1
        response: aiohttp.ClientResponse | None = None
        try:
            headers = {"Content-Type": "application/json"}
            headers |= request_headers(exchange, lease, REQUEST_HEADERS, self._state.name)
            response = await upstream.post(route.path, body.with_model(lease.served_name), headers)
            await self._pass_on(exchange, route, response, lease)
        finally:
            upstream.running -= 1
            if response is not None:
                response.close()  # of no effect once the answer was read to its end; else it tells the engine to stop

    async def _pass_on(self, exchange: Exchange, route: Route, response: aiohttp.ClientResponse, lease: Lease) -> None:
        """As `_send_answer`; notes in the lease how the request ends, where that is known already."""
        first = b""
        if is_failure(response.status):
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
        gone = EngineGone(f"{who(lease)} ended while it answered; what came before is incomplete.")
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
        raise EngineGone(f"{who(lease)} answered with status {response.status} and no stream.")
    await exchange.body(error_event(route.protocol, told), False)
    raise NotServed


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
