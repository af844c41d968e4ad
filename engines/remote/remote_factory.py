"""What the factories of all servers elsewhere share: what each server has, which is asked, and how they are.

Their models take no memory here and are never started or stopped. Each server is asked every few seconds what it has,
and has a circuit breaker of its own. What they said last is kept in a file, so that a server that is down when
Roundhouse starts is one that is down, and not one without models.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from engines.base import Endpoint, EngineContext, Verdict
from engines.remote.breaker import CircuitState
from engines.remote.kept_lists import KeptLists
from engines.remote.remote_engine import RemoteEngine
from engines.remote.servers import API, Key, Server, Servers
from models.types import ModelSpec

log = logging.getLogger(__name__)

ASK_S = 10.0  # so often is each server asked what it has …
ASK_DOWN_S = 5.0  # … and one that did not answer
FIRST_S = 1.0  # for a server of which nothing is known to say what it has, before anybody is told anything

L = TypeVar("L")  # what a server tells of one model
Tell = Callable[[Sequence[ModelSpec]], None]


class NoList(Exception):
    """A server did not say what it has; the text says why, as a phrase."""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model by our id."""

    name: str  # the servers'
    servers: tuple[Server, ...]  # those that have it


class RemoteFactory(Generic[L]):
    """All models of one engine that is declared with a `kind`. Its subclasses know how servers of that kind are asked.

    They have `listing`, the class of what is told of one model, `_ask` and `_spec`, and `_open` and `_shut`, between
    which they are asked.
    """

    kind: ClassVar[str]
    listing: ClassVar[type[Any]]
    remote = True

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        declared = context.declared
        self.name = context.name
        self._mapped, self._prefix = dict(declared.models), declared.prefix
        self._servers = Servers(context.name, declared)
        self._key = Key.read(declared)
        self._headers = self._key.headers()
        self._ask_s, self._ask_down_s = ask_s, ask_down_s
        self._kept: KeptLists[L] = KeptLists(context.cache_dir, self.kind, context.name, self.listing)
        kept = self._kept.read()
        self._lists: dict[Server, dict[str, L]] = {s: kept[s.url] for s in self._servers.all if s.url in kept}
        self._models: dict[str, RemoteModel] = {}
        self._specs: list[ModelSpec] = []
        self._tell: Tell | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # -- what subclasses know --------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Before the first `_ask`, in the event loop."""
        raise NotImplementedError

    async def _ask(self, server: Server) -> dict[str, L]:
        """What it has, by its names. Raises NoList; takes a few seconds at most."""
        raise NotImplementedError

    async def _shut(self) -> None:
        """After the last, also without `_open`."""
        raise NotImplementedError

    def _spec(self, model_id: str, name: str, listing: L | None) -> ModelSpec:
        """`listing`: what the first of its servers tells of it; None where the configuration alone names it."""
        raise NotImplementedError

    def _new(self) -> Iterable[Server]:
        """Those that are waited for at start, so that the first requests are not told that there is no such model."""
        return [server for server in self._servers.all if server not in self._lists]

    # -- what the seam asks ----------------------------------------------------------------------------------------

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.id in self._models:
            return Verdict(True, f"it is served by {self._hosts(spec.id)}")
        return Verdict(False, f"the servers of the engine '{self.name}' have no model of this id")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        model = self._models.get(spec.id)
        if model is None:
            return ()
        name = "" if model.name == spec.id else f", as '{model.name}'"
        return (f"engine: {self.name}: it is served elsewhere, by {self._hosts(spec.id)}{name}",)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return 0

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> RemoteEngine:
        return RemoteEngine(self, spec.id)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    def endpoint(self, model_id: str) -> Endpoint:
        """Raises EngineUnavailable."""
        self._key.check(self.name)
        model = self._models.get(model_id)
        name, among = (model.name, model.servers) if model else (model_id, self._servers.all)
        server = self._servers.choose(among)
        return Endpoint(
            base_url=server.url.removesuffix(API),
            api_path=API if server.url.endswith(API) else "",
            proxy=server.proxy,
            headers=self._headers,
            model=name,
            ends_with_us=False,
            watcher=server.breaker.request(),
        )

    def healthy(self, model_id: str) -> bool:
        model = self._models.get(model_id)
        return model is not None and any(s.breaker.state is CircuitState.CLOSED for s in model.servers)

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

    async def start(self) -> None:
        self._renew()
        if self._key.missing is not None:
            log.error("the engine %s cannot be used: %s", self.name, self._key.missing)
            return
        self._open()
        new = self._new()
        self._tasks = [asyncio.create_task(self._ask_for_ever(server)) for server in self._servers.all]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(server.asked.wait() for server in new)), FIRST_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._shut()

    # -- what there is ---------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, server: Server) -> None:
        while True:
            try:
                self._take(server, await self._ask(server))
            except NoList as error:
                self._asked(server, str(error))
            except Exception:  # the top of a task: it must go on asking
                log.exception("%s: the models of %s cannot be taken in", self.name, server.host)
            await self._pause(server)

    def _take(self, server: Server, listed: dict[str, L]) -> None:
        self._asked(server, None)
        if listed != self._lists.get(server):
            self._lists[server] = listed
            self._renew()
            self._kept.write({server.url: each for server, each in self._lists.items()})

    def _renew(self) -> None:
        """Works out what there is, and tells it where it has changed."""
        listed = dict.fromkeys(name for names in self._lists.values() for name in names)
        ids = self._mapped or {self._prefix + name: name for name in listed}
        self._models = {model_id: RemoteModel(name, self._having(name)) for model_id, name in ids.items()}
        self._publish([self._spec(model_id, name, self._listing(model_id)) for model_id, name in ids.items()])

    def _having(self, name: str) -> tuple[Server, ...]:
        """Those that list it; else those that never said what they have; else all, as not every server lists all."""
        servers = self._servers.all
        listing = tuple(server for server in servers if name in self._lists.get(server, ()))
        return listing or tuple(server for server in servers if server not in self._lists) or servers

    def _listing(self, model_id: str) -> L | None:
        model = self._models[model_id]
        lists = (self._lists.get(server, {}) for server in model.servers)
        return next((listed[model.name] for listed in lists if model.name in listed), None)

    def _hosts(self, model_id: str) -> str:
        return ", ".join(server.host for server in self._models[model_id].servers)

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
