"""The outermost ASGI app: who may enter, where to, and what the log and the metrics say of it.

In this order: health is always open; Host check; CORS preflight; API key; Origin check; then the data plane by exact
path, the stream of events, or FastAPI for everything else. No path reaches an engine but those in `app.routes`.
WebSockets pass the same checks before they are accepted; each of their chat requests goes to the data plane, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from app import event_stream, health
from app.asgi import STATUS_CLIENT_GONE, Bodies, ClientGone, Exchange, Receive, Scope, Send, replay
from app.auth import HostCheck, KeyRing, OriginCheck, given_key
from app.errors import (
    MethodNotAllowed,
    NotFound,
    Rendered,
    RequestError,
    internal_error,
    is_kserve,
    protocol_of,
    render,
)
from app.event_stream import EventStream
from app.kserve.endpoint import KServe
from app.lazy import Asgi
from app.proxy import DataPlane
from app.routes import ROUTES, TEI_ROOT
from app.sending import AnswerCutOff
from app.state import AppState
from app.websocket import endpoint as websocket
from app.websocket.connection import ROUTE as CHAT_ROUTE
from app.websocket.endpoint import UpgradeRequired, WebSockets
from models.errors import RoundhouseError
from utils.access_log import AccessLog
from utils.logging import logger

Lifespan = Callable[[], AbstractAsyncContextManager[None]]
BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})
READING = frozenset({"GET", "HEAD"})
BROWSED = frozenset({TEI_ROOT, "/docs", "/openapi.json"})  # what browsers are sent to, which can only offer a password
LOGGED_PATH_BYTES = 200
OTHER_ROUTE = "other"  # the metrics' name for a path that is no route


@dataclass(frozen=True, slots=True)
class Access:
    """The checks at the gate."""

    keys: KeyRing
    hosts: HostCheck
    origins: OriginCheck


class Gate:
    """One callable per request; `control` is the FastAPI app with everything that needs no speed."""

    def __init__(
        self,
        *,
        access: Access,
        data_plane: DataPlane,
        kserve: KServe,
        events: EventStream,
        websockets: WebSockets,
        control: Asgi,
        state: AppState,
        lifespan: Lifespan,
        bodies: Bodies,
        access_log: AccessLog | None,
    ) -> None:
        self._access = access
        self._data_plane = data_plane
        self._kserve = kserve
        self._events = events
        self._websockets = websockets
        self._control = control
        self._state = state
        self._lifespan = lifespan
        self._bodies = bodies
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            handshake = Exchange({**scope, "method": "GET"}, receive, websocket.as_refusal(send))
            await self._attend(handshake, self._open_websocket(handshake, send))
            return
        exchange = Exchange(scope, receive, send)
        await self._attend(exchange, self._answer(exchange))

    async def _attend(self, exchange: Exchange, answering: Awaitable[None]) -> None:
        """Whatever comes of it, the client is told, and the log and the metrics."""
        try:
            await answering
        except RoundhouseError as error:
            await self._refuse(exchange, error)
        except (ClientGone, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not exchange.gone:
                raise
            exchange.status = STATUS_CLIENT_GONE
        except AnswerCutOff:
            pass  # returning without the end of the body makes the server close the connection
        except Exception:  # the top of a request: whatever happened, the server goes on
            logger.exception("{}: internal error", exchange.request_id)
            await self._refuse(exchange, internal_error(exchange.request_id))
        finally:
            self._bodies.held_bytes -= exchange.body_bytes
            self._record(exchange)

    async def _live(self, receive: Receive, send: Send) -> None:
        """ASGI's lifespan protocol."""
        await receive()
        async with self._lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        if self._access_log is not None:
            self._access_log.flush()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, exchange: Exchange) -> None:
        path, method, headers = exchange.path, exchange.method, exchange.headers
        if path in health.PATHS:
            await self._tell_health(exchange)
            return
        access = self._access
        access.hosts.check(headers.get(b"host"))
        if b"origin" in headers:
            exchange.extra += access.origins.headers_for(headers)
            if method == "OPTIONS" and (allowed := access.origins.preflight(headers)) is not None:
                exchange.extra = []
                await exchange.respond(Rendered(204, allowed, b""))
                return
        access.keys.check(headers, as_password=path in BROWSED and method in READING)
        access.origins.check(headers, method)
        await self._state.wait_scanned()
        if path in websocket.PATHS:
            raise UpgradeRequired(f"{path} is a WebSocket's address; open one there.")
        route = ROUTES.get(path)
        if route is None and is_kserve(path):
            await self._kserve.answer(exchange)
            return
        if (route is None and path != event_stream.PATH) or (path == TEI_ROOT and method in READING):
            await self._to_control(exchange)
            return
        exchange.route = path
        if route is None:
            await self._events.answer(exchange)
            return
        if method != "POST":
            raise MethodNotAllowed(method, path, "POST")
        await self._data_plane.answer(exchange, route)

    async def _open_websocket(self, handshake: Exchange, send: Send) -> None:
        """A key may also come as the first message, from clients that cannot send it as a header."""
        access, headers, path = self._access, handshake.headers, handshake.path
        access.hosts.check(headers.get(b"host"))
        known = access.keys.open or given_key(headers) is not None or path not in websocket.PATHS
        if known:
            access.keys.check(headers)
        access.origins.check(headers, "POST")
        if path not in websocket.PATHS:
            raise NotFound(f"There is no WebSocket at {path[:LOGGED_PATH_BYTES]!r}; it is at /ws, and at /v1/ws.")
        handshake.route = path
        await self._state.wait_scanned()
        await self._websockets.serve(handshake, send, self._post, known=known)

    async def _post(self, exchange: Exchange) -> None:
        """A chat request that came by a WebSocket."""
        await self._attend(exchange, self._data_plane.answer(exchange, CHAT_ROUTE))

    async def _tell_health(self, exchange: Exchange) -> None:
        exchange.route = exchange.path
        if exchange.method not in READING:
            raise MethodNotAllowed(exchange.method, exchange.path, "GET, HEAD")
        named = self._may_see_names(exchange)
        await exchange.respond(health.answer(self._state, exchange.path, exchange.request_id, named=named))

    def _may_see_names(self, exchange: Exchange) -> bool:
        """Whether every other route, too, would be open to who asks for the health."""
        try:
            self._access.hosts.check(exchange.headers.get(b"host"))
            self._access.keys.check(exchange.headers)
        except RequestError:
            return False
        return True

    async def _to_control(self, exchange: Exchange) -> None:
        receive = exchange.receive
        if exchange.method not in BODILESS:
            receive = replay(await exchange.read_body(self._bodies), receive)
        exchange.scope["request_id"] = exchange.request_id
        await self._control(exchange.scope, receive, exchange.forward)
        template = getattr(exchange.scope.get("route"), "path", None)
        exchange.route = template or OTHER_ROUTE

    async def _refuse(self, exchange: Exchange, error: RoundhouseError) -> None:
        if exchange.status:  # part of an answer is out already: only closing the connection is left
            return
        await exchange.respond(render(error, exchange.protocol or protocol_of(exchange.path), exchange.request_id))

    def _record(self, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started_s
        if exchange.status != websocket.SWITCHING:  # a connection's requests are counted, not the connection
            self._state.metrics.count(exchange.route or OTHER_ROUTE, exchange.model, exchange.status, seconds)
        if self._access_log is not None and exchange.path not in health.PATHS:
            # As it was sent: decoded, it may hold newlines.
            path = exchange.scope["raw_path"][:LOGGED_PATH_BYTES].decode("ascii", "replace")
            self._access_log.write(exchange.request_id, exchange.method, path, exchange.status, seconds, exchange.model)
