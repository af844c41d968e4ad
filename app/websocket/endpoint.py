"""Takes WebSocket connections at /ws and /v1/ws, so many at a time and no more."""

from __future__ import annotations

from app.asgi import Bodies, Exchange, Message, Send
from app.auth import KeyRing
from app.errors import RequestError
from app.state import AppState
from app.websocket.connection import Connection
from app.websocket.session import Post
from models.errors import Busy, ShuttingDown

PATHS = frozenset({"/ws", "/v1/ws"})
MAX_CONNECTIONS = 1000
MAX_STRANGERS = 100  # connections whose client has not shown its key yet
RETRY_S = 10.0
SWITCHING = 101  # HTTP's status of an accepted handshake


class UpgradeRequired(RequestError):
    status, code = 426, "upgrade_required"
    headers = ((b"upgrade", b"websocket"), (b"connection", b"close"))


class WebSockets:
    """Every open connection."""

    def __init__(self, state: AppState, keys: KeyRing, bodies: Bodies) -> None:
        self._state = state
        self._keys = keys
        self._bodies = bodies
        self._connections = 0
        self._strangers = 0

    async def serve(self, handshake: Exchange, send: Send, post: Post, *, known: bool) -> None:
        """Returns when the connection is over. `known`: the client is one who may use everything.

        `post` answers a chat request as the gate does, errors included. Raises Busy and ShuttingDown before anything
        was sent.
        """
        if self._state.phase == "stopping":
            raise ShuttingDown("Roundhouse is shutting down.", retry_after_s=RETRY_S)
        if self._connections >= MAX_CONNECTIONS or (not known and self._strangers >= MAX_STRANGERS):
            raise Busy("Too many WebSocket connections are open already.", retry_after_s=RETRY_S)
        self._connections += 1
        try:
            await handshake.receive()  # websocket.connect
            await send({"type": "websocket.accept", "headers": handshake.extra})
            handshake.status = SWITCHING
            connection = Connection(handshake, send, post, self._state, self._keys, self._bodies)
            if known or await self._let_in(connection):
                _trust(handshake)
                await connection.run()
        finally:
            self._connections -= 1

    async def _let_in(self, connection: Connection) -> bool:
        self._strangers += 1
        try:
            return await connection.await_key(self._state.settings.header_timeout_s)
        finally:
            self._strangers -= 1


def _trust(handshake: Exchange) -> None:
    """Lets the transport hold as much of its messages as of those of others (`app.websocket.transport`)."""
    if ours := handshake.scope["extensions"].get("roundhouse"):
        ours["trust"]()


def as_refusal(send: Send) -> Send:
    """A `send` for the answer to a handshake that is not accepted: ASGI has names of its own for its parts."""

    async def send_refusal(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_refusal
