"""One connection: reads its messages, runs its sessions, and remembers its adapter."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.asgi import Bodies, ClientGone, Exchange, Send
from app.auth import KeyRing
from app.default_model import default_model
from app.errors import InvalidRequest, RequestError, Unauthorized, internal_error
from app.routes import ROUTES
from app.state import AppState
from app.websocket import messages
from app.websocket.messages import Auth, Cancel, Generate, Incoming, LoadAdapter, SessionNotFound, SessionRunning
from app.websocket.session import Post, Session
from models.errors import Busy, RoundhouseError
from utils.logging import logger

MAX_TASKS = 64  # sessions and changes of the adapter at once, on one connection
ROUTE = ROUTES["/v1/chat/completions"]
CLOSE_UNAUTHORIZED = 4401
AUTH_MAX_CHARS = 1 << 14  # strangers have nothing longer to say that would be worth the time to parse it


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a `load_adapter`: the adapter that answers from then on, and why it is not the one asked for."""

    adapter: str | None
    error: RoundhouseError | None = None


class Connection:
    """`handshake` is accepted already; `send` goes to the client and waits while that does not read."""

    def __init__(
        self, handshake: Exchange, send: Send, post: Post, state: AppState, keys: KeyRing, bodies: Bodies
    ) -> None:
        self._handshake = handshake
        self._send = send
        self._post = post
        self._state = state
        self._keys = keys
        self._bodies = bodies
        self._adapter: str | None = None
        self._change: asyncio.Task[Change] | None = None  # the last one that was asked for
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Until the client leaves or the server ends; nothing of it goes on afterwards."""
        try:
            while True:
                await self._take(await self._next())
        except ClientGone:
            pass
        finally:
            for session in self._sessions.values():
                session.cancel()
            if self._change is not None:
                self._change.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def await_key(self, limit_s: float) -> bool:
        """Whether the first message has an accepted key. If not, the client is told and the connection closed."""
        try:
            async with asyncio.timeout(limit_s):
                text = await self._next()
            message = messages.read_message(messages.read_document(text)) if len(text) <= AUTH_MAX_CHARS else None
            if not isinstance(message, Auth):
                text = 'The first message must be {"type": "auth", "key": …}, as the handshake had no API key.'
                raise Unauthorized(text)
            self._keys.check({b"x-api-key": message.key.encode()})
            return True
        except TimeoutError:
            await self._refuse(Unauthorized(f"No API key came within {limit_s:g} s."))
        except RequestError as error:
            await self._refuse(error)
        except ClientGone:
            pass
        return False

    async def _refuse(self, error: RequestError) -> None:
        with suppress(ClientGone, OSError):
            await self._tell(messages.error(error.message, error.code, None))
            await self._send({"type": "websocket.close", "code": CLOSE_UNAUTHORIZED, "reason": error.code})

    async def _next(self) -> str:
        """Raises ClientGone."""
        while (message := await self._handshake.receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            if isinstance(text, str):
                return text
            error = InvalidRequest("Binary messages are not taken; send JSON as text.")
            await self._tell(messages.error(error.message, error.code, None))
        raise ClientGone

    async def _tell(self, text: str) -> None:
        """Raises ClientGone."""
        try:
            await self._send({"type": "websocket.send", "text": text})
        except OSError:  # uvicorn's word for it
            raise ClientGone from None

    async def _take(self, text: str) -> None:
        session_id = None
        try:
            document = messages.read_document(text)
            session_id = messages.session_of(document)
            await self._act(messages.read_message(document), len(text))
        except RoundhouseError as error:
            await self._tell(messages.error(error.message, error.code, session_id))

    async def _act(self, message: Incoming, size_chars: int) -> None:
        match message:
            case Generate():
                self._begin_session(message, size_chars)
            case LoadAdapter(adapter_path=path):
                self._change = self._spawn(self._change_adapter(path, self._change))
            case Cancel(session_id=session_id):
                if session_id not in self._sessions:
                    raise SessionNotFound(f"No session {session_id[:80]!r} runs here now.", param="session_id")
                self._sessions[session_id].cancel()
            case Auth(key=key):
                self._keys.check({b"x-api-key": key.encode()})
            case _:
                await self._tell(messages.pong())

    # -- sessions --------------------------------------------------------------------------------------------------

    def _begin_session(self, request: Generate, size_chars: int) -> None:
        if request.session_id in self._sessions:
            raise SessionRunning(
                f"The session {request.session_id[:80]!r} runs already, and goes on. Wait for its end, or give this "
                "one another session_id.",
                param="session_id",
            )
        changing = None if self._change is None or self._change.done() else self._change
        model_of = partial(self._model_of, request.model, self._adapter, changing)
        session = Session(request, self._handshake, next(self._numbers), model_of, self._tell)
        self._bodies.take(size_chars)  # before its body is: it may wait long for the adapter
        try:
            running = self._spawn(self._run_session(session))
        except Busy:
            self._let_go(size_chars)
            raise
        running.add_done_callback(lambda _: self._let_go(size_chars))
        self._sessions[session.id] = session

    def _let_go(self, size_chars: int) -> None:
        self._bodies.held_bytes -= size_chars

    async def _run_session(self, session: Session) -> None:
        try:
            last = await session.run(self._post)
        except Exception:
            error = self._internal()
            last = messages.error(error.message, error.code, session.id)
        del self._sessions[session.id]  # before its client knows, who may use the id again at once
        with suppress(ClientGone):
            await self._tell(last)

    async def _model_of(self, named: str | None, adapter: str | None, changing: asyncio.Task[Change] | None) -> str:
        """What was asked for before the session comes first: it does not begin with an adapter that is about to go."""
        if named is not None:
            return named
        if changing is not None:
            change = await asyncio.shield(changing)
            if change.error is not None:
                raise change.error
            adapter = change.adapter
        if adapter is not None:
            return adapter
        return default_model(self._state.manager, ROUTE, self._state.settings.default_model).id

    # -- the adapter -----------------------------------------------------------------------------------------------

    async def _change_adapter(self, path: str | None, before: asyncio.Task[Change] | None) -> Change:
        if before is not None:
            try:
                await asyncio.wait({before})
            except asyncio.CancelledError:
                before.cancel()
                raise
        try:
            self._adapter = None if path is None else await self._load(path)
            change = Change(self._adapter)
            told = messages.adapter_unloaded() if path is None else messages.adapter_loaded(path)
        except Exception as fault:
            error = fault if isinstance(fault, RoundhouseError) else self._internal()
            change, told = Change(self._adapter, error), messages.error(error.message, error.code, None)
        with suppress(ClientGone):
            await self._tell(told)
        return change

    async def _load(self, path: str) -> str:
        adapter = await self._state.adapter_paths.resolve(path)
        limit_s = self._state.settings.wait_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._state.manager.load(adapter)
        except TimeoutError:
            raise Busy(f"The adapter '{adapter.id}' was not loaded within {limit_s:g} s (wait_timeout_s).") from None
        return adapter.id

    def _internal(self) -> RoundhouseError:
        """At the top of a task, in an exception's handler: whatever it was, the connection goes on."""
        logger.exception("{}: internal error", self._handshake.request_id)
        return internal_error(self._handshake.request_id)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        if len(self._tasks) >= MAX_TASKS:
            work.close()
            raise Busy(f"{MAX_TASKS} sessions run on this connection already. Wait for one to end, or open another.")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
