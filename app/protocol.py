"""uvicorn's HTTP protocol with what it lacks.

Limits of size and time for headers, a limit for clients that do not read, and answers to clients that offer HTTP/2
(h2c, as the JDK's does by default), whose bodies the parser would drop. WebSockets go on to `app.websocket.transport`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import InvalidRequest, RequestError, render

UPGRADE_HEADERS = frozenset((b"upgrade", b"http2-settings", b"connection"))
LINGER_S = 5.0  # how long the rest of a refused body is read and dropped, so that the client gets to read why


class HeadersTooLarge(RequestError):
    status, code = 431, "headers_too_large"


class SlowHeaders(RequestError):
    status, code = 408, "request_timeout"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    max_header_bytes: int
    header_timeout_s: float
    write_timeout_s: float


def guarded_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`; uvicorn makes one instance per connection."""

    class GuardedProtocol(_GuardedProtocol):
        _limits = limits

    return GuardedProtocol


class _GuardedProtocol(HttpToolsProtocol):
    _limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # also before the first byte of a connection
        self._head_bytes = 0
        self._framing_bytes = 0  # received since anything of a body: chunk extensions, trailers
        self._upgrade = False
        self._answered: RequestResponseCycle | None = None  # the request that is, or was last, in the app's hands
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream transport, as uvicorn says itself
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        cycle = self._answered
        if cycle is not None and cycle is not self.cycle and not cycle.response_complete:
            cycle.disconnected = True  # uvicorn tells only the newest of pipelined requests
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if not self._in_head:
            if self._framing_bytes > self._limits.max_header_bytes:
                self._refuse_headers()
            elif self.cycle.response_complete and self._linger_timer is None:
                self._arm_keep_alive()  # what came was no request: empty lines, or the end of a refused body
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse_headers()
        elif self._head_timer is None:  # the first part of another request on this connection
            self._arm_head_timer()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._should_upgrade() and self.parser.get_method() == b"GET" and not self._answers():
                self._open_websocket(rest)
            else:
                self._decline_upgrade(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _open_websocket(self, rest: bytes) -> None:
        """Hands the connection over; its protocol reads the handshake anew."""
        if self._head_larger_than_allowed():
            self._refuse_headers()
            return
        if rest:  # that protocol would take it for something else
            self._refuse(InvalidRequest("Data came before the WebSocket handshake was answered."))
            return
        self._end_head()
        self.scope["method"] = "GET"
        self.handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if not getattr(protocol, "handshake_initiated", False):
            self._refuse(InvalidRequest("This is no well-formed WebSocket handshake."))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Takes the request as if it had offered no other protocol; the parser would take its body for one in that."""
        self._upgrade = False
        head = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        head += [name + b": " + value for name, value in self.headers if name not in UPGRADE_HEADERS]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            head.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers):
            self._upgrade = True
            return
        self._end_head()
        if self._head_larger_than_allowed():
            self._refuse_headers()
            return
        super().on_headers_complete()
        self.headers = []  # for trailers: in the list that the request has, they would pass for its headers

    def _end_head(self) -> None:
        self._in_head = False
        self._framing_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_larger_than_allowed(self) -> bool:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        return size > self._limits.max_header_bytes

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        self._framing_bytes = 0
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        if not self.transport.is_closing():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, _without_chunks(cycle, app) if old else app)

    def on_response_complete(self) -> None:
        cycle = self._answered
        super().on_response_complete()
        if cycle is not None and cycle.more_body and self._linger_timer is None and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _arm_keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg.removesuffix(".") + "; it is not well-formed HTTP/1.1."))

    def _arm_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._head_too_slow)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes == 0:
            self.transport.close()
            return
        self._refuse(SlowHeaders(f"The headers did not arrive within {self._limits.header_timeout_s:g} s."))

    def _refuse_headers(self) -> None:
        self._refuse(HeadersTooLarge(f"The headers are larger than {self._limits.max_header_bytes} bytes."))

    def _refuse(self, error: RequestError) -> None:
        if self.transport.is_closing():
            return
        answer = render(error, "openai")
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in answer.headers)
        self.transport.write(
            b"HTTP/1.1 %d Refused\r\n" % answer.status + lines + b"connection: close\r\n\r\n" + answer.body
        )
        self.transport.close()


def _without_chunks(cycle: RequestResponseCycle, app: Any) -> Any:
    """`app` for a client of HTTP/1.0, which knows no chunks: an answer of unknown length ends with the connection."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        length_told = False

        async def send_whole(message: Any) -> None:
            nonlocal length_told
            if message["type"] == "http.response.start":
                length_told = any(name.lower() == b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = None if length_told else False
            elif not length_told:
                cycle.expected_content_length = len(message["body"])  # of this part; uvicorn checks that it adds up
            await send(message)

        await app(scope, receive, send_whole)

    return answer
