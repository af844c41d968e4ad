"""uvicorn's HTTP protocol with the limits that it lacks: size and time of the headers, and clients that do not read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import InvalidRequest, RequestError, render

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

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.max_header_bytes:
            self._refuse_headers()
        elif self._head_timer is None:  # the first part of another request on this connection
            self._arm_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        limit = self._limits.max_header_bytes
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limit:
            self._refuse_headers()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and self.cycle.more_body and self._linger_timer is None:
            self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

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
