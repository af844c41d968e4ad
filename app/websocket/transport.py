"""uvicorn's WebSocket protocol with what it lacks: bounds, in memory and time, for messages on their way in and out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

MESSAGES_HELD = 8  # times the largest message: of those that have not arrived whole, all connections together
PING_INTERVAL_S = 20.0
LINGER_S = 1.0  # how long what still comes is read and dropped, so that the client gets to read why it was refused


@dataclass(slots=True)
class Held:
    """Bytes of unfinished messages."""

    limit_bytes: int
    count_bytes: int = 0


@dataclass(slots=True)
class MessageLimits:
    max_bytes: int
    read_timeout_s: float
    """For the whole of a message to arrive."""
    write_timeout_s: float
    """For a client to take something of what is ready for it, and to answer a ping."""
    strangers: Held = field(init=False)
    """Of clients that have not shown their key yet: they cannot use up what others need."""
    known: Held = field(init=False)

    def __post_init__(self) -> None:
        self.strangers, self.known = Held(self.max_bytes), Held(MESSAGES_HELD * self.max_bytes)


def guarded_websocket(limits: MessageLimits) -> type[WebSocketsSansIOProtocol]:
    """The protocol class for `uvicorn.Config(ws=…)`; uvicorn makes one instance per connection."""

    class GuardedWebSocket(_GuardedWebSocket):
        _limits = limits

    return GuardedWebSocket


class _GuardedWebSocket(WebSocketsSansIOProtocol):
    _limits: MessageLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = self._limits.strangers
        self._held_bytes = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._late_pong = b""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), "roundhouse": {"trust": self._trust}}

    def _trust(self) -> None:
        self._hold(0)
        self._held = self._limits.known
        self._hold(self._unfinished_bytes())

    def connection_lost(self, exc: Exception | None) -> None:
        self._hold(0)
        for timer in (self._read_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.close_sent and self.initial_response is None:
            raise ClientDisconnected  # by our refusal of what it sent; uvicorn would call it a fault of the app
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # by a refusal; uvicorn would log it as a fault of ours

    # -- in --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.close_sent and self.conn.parser_exc is not None:
            return  # refused already: read, and dropped
        super().data_received(data)
        if self.close_sent:
            return
        held_bytes = self._unfinished_bytes()
        self._hold(held_bytes)
        if self._held.count_bytes > self._held.limit_bytes:
            self._fail(CloseCode.TRY_AGAIN_LATER, "too many large messages at once")
        elif not held_bytes:
            self._stop_read_timer()  # what came in parts was a ping, a pong
        elif self._read_timer is None:
            self._read_timer = self.loop.call_later(self._limits.read_timeout_s, self._read_too_slow)

    def _unfinished_bytes(self) -> int:
        return len(self.conn.reader.buffer) + sum(len(part) for part in self.frames)

    def _hold(self, count_bytes: int) -> None:
        self._held.count_bytes += count_bytes - self._held_bytes
        self._held_bytes = count_bytes

    def handle_cont(self, event: Frame) -> None:
        """A message in very many small fragments takes no more memory than any other."""
        if not isinstance(self.frames[0], bytearray):
            self.frames[0] = bytearray(self.frames[0])  # type: ignore[call-overload]
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        self._stop_read_timer()
        if not self.close_sent and self.curr_msg_data_type == "text" and not _is_utf8(self.frames[0]):
            self._fail(CloseCode.INVALID_DATA, "the message is not UTF-8")  # uvicorn would log it as a fault of ours
            return
        super().send_receive_event_to_app()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _read_too_slow(self) -> None:
        self._read_timer = None
        if self.read_paused:  # by us
            self._read_timer = self.loop.call_later(self._limits.read_timeout_s, self._read_too_slow)
        elif not self.close_sent:
            self._fail(CloseCode.POLICY_VIOLATION, "the message did not arrive in time")

    # -- out -------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        if self._late_pong:
            pong, self._late_pong = self._late_pong, b""
            self.transport.write(pong)

    def handle_ping(self) -> None:
        """One who sends pings and reads no pongs must not pile them up; the last one answers for all."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self._late_pong = b"".join(self.conn.data_to_send())

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # what is not sent yet would keep a dead connection open

    # -- the end ---------------------------------------------------------------------------------------------------

    def handle_parser_exception(self) -> None:
        """Of a message that is too large, or no WebSocket's; the close frame is written already."""
        self._linger()

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self._linger()

    def _linger(self) -> None:
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.frames = []
        self._hold(0)
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)  # else uvicorn closes with the app


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
