"""What the factories of all servers elsewhere share: asking each server what it has, and telling of it.

Their models take no memory here and are never started or stopped. Each server is asked every few seconds what it has,
and has a circuit breaker of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from engines.base import Endpoint, EngineContext
from engines.remote.breaker import CircuitState
from engines.remote.remote_engine import RemoteEngine
from engines.remote.servers import Key, Server, Servers
from models.types import ModelSpec

log = logging.getLogger(__name__)

ASK_S = 10.0  # so often is each server asked what it has …
ASK_DOWN_S = 5.0  # … and one that did not answer
FIRST_S = 1.0  # for a server of which nothing is known to say what it has, before anybody is told anything

Tell = Callable[[Sequence[ModelSpec]], None]


class RemoteFactory:
    """All models of one engine that is declared with a `kind`. Its subclasses know how servers of that kind are asked.

    They call `_begin` in `start`, `_asked` after each question, and `_publish` with all models there are.
    """

    kind: ClassVar[str]
    remote = True

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        declared = context.declared
        self.name = context.name
        self._mapped, self._prefix = dict(declared.models), declared.prefix
        self._servers = Servers(context.name, declared)
        self._key = Key.read(declared)
        self._ask_s, self._ask_down_s = ask_s, ask_down_s
        self._specs: list[ModelSpec] = []
        self._tell: Tell | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return 0

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> RemoteEngine:
        return RemoteEngine(self, spec.id)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    def endpoint(self, model_id: str) -> Endpoint:
        """Raises EngineUnavailable."""
        raise NotImplementedError

    def healthy(self, model_id: str) -> bool:
        raise NotImplementedError

    def follow(self, tell: Tell) -> None:
        self._tell = tell

    def state(self) -> Mapping[str, Any]:
        usable = any(server.breaker.state is not CircuitState.OPEN for server in self._servers.all)
        told: dict[str, Any] = {
            "state": "ready" if usable and not self._key.missing else "unavailable",
            "kind": self.kind,
            "models": len(self._specs),
            "servers": self._servers.state(),
        }
        return told | ({"error": self._key.missing} if self._key.missing else {})

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _has_key(self) -> bool:
        if self._key.missing is not None:
            log.error("the engine %s cannot be used: %s", self.name, self._key.missing)
        return self._key.missing is None

    async def _begin(self, ask: Callable[[Server], Coroutine[Any, Any, None]], new: Iterable[Server]) -> None:
        """Asks every server from now on; returns when the `new` ones have answered, or after a moment."""
        self._tasks = [asyncio.create_task(ask(server)) for server in self._servers.all]
        with contextlib.suppress(TimeoutError):  # else the first requests would be told that there is no such model
            await asyncio.wait_for(asyncio.gather(*(server.asked.wait() for server in new)), FIRST_S)

    async def _pause(self, server: Server) -> None:
        """From one question to the next."""
        server.asked.set()
        await asyncio.sleep(self._ask_s if server.asked_error is None else self._ask_down_s)

    def _asked(self, server: Server, error: str | None) -> None:
        """`error`: why it does not say what it has; told once, not every time, and what was known of it stands."""
        if error is None:
            server.breaker.hears()
        if error is not None and server.asked_error != error:
            log.warning("%s: %s does not say which models it has: %s", self.name, server.host, error)
        elif error is None and server.asked_error is not None:
            log.info("%s: %s says again which models it has", self.name, server.host)
        server.asked_error = error

    def _publish(self, specs: list[ModelSpec]) -> None:
        """Tells what there is where it has changed."""
        if specs != self._specs:
            self._specs = specs
            if self._tell is not None:
                self._tell(specs)
