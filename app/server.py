"""uvicorn with our signals: the first one drains, the second one hurries, and the exit code is 0."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.config import Config

from app.config import Settings
from app.lifecycle import Lifecycle
from app.protocol import ConnectionLimits, guarded_protocol
from app.websocket.transport import PING_INTERVAL_S, MessageLimits, guarded_websocket
from utils.logging import logger

BACKLOG = 2048
LAST_BYTES_S = 3  # for answers that are written but not sent yet when everything else has ended
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the last when its terminal closes


class DrainingServer(uvicorn.Server):
    """Keeps listening while it drains, so that /health/ready says so and new requests get a proper 503."""

    def __init__(self, config: Config, lifecycle: Lifecycle) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again at the end, so that the exit code is not 0."""
        loop = asyncio.get_running_loop()
        numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has it
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """What a signal does; the second one hurries."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(hurry=False))
        elif not self.force_exit:
            self.force_exit = True
            self._ending.cancel()
            self._ending = asyncio.create_task(self._end(hurry=True))

    async def _end(self, *, hurry: bool) -> None:
        try:
            await (self._lifecycle.hurry() if hurry else self._lifecycle.drain())
        except Exception:  # the top of a task: whatever failed, the server must end
            logger.exception("The shutdown did not go as it should")
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.force_exit = False  # uvicorn would leave the lifespan out, and with it our own cleaning up
        await super().shutdown(sockets)


def bind(settings: Settings) -> socket.socket:
    """A listening socket. Raises OSError (address in use, not ours, not permitted)."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.getaddrinfo(settings.host.strip("[]"), settings.port, family, socket.SOCK_STREAM)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def server_config(app: object, settings: Settings) -> Config:
    limits = ConnectionLimits(int(settings.max_header_bytes), settings.header_timeout_s, settings.write_timeout_s)
    max_message_bytes = int(settings.max_body_bytes)
    messages = MessageLimits(max_message_bytes, settings.request_read_timeout_s, settings.write_timeout_s)
    return Config(
        app,  # type: ignore[arg-type]  # ours are plain ASGI callables; uvicorn's types name its own TypedDicts
        http=guarded_protocol(limits),
        loop="uvloop",
        ws=guarded_websocket(messages),
        ws_max_size=max_message_bytes,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=settings.write_timeout_s,
        ws_per_message_deflate=False,  # messages are small, and many at once; compressing each costs more than it saves
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.connection_idle_s) or 1,
        timeout_graceful_shutdown=LAST_BYTES_S,
    )
