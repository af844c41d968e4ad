"""Models of servers elsewhere that speak OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, another Roundhouse.

They take no memory here and are never started or stopped. Each server is asked every few seconds what it has, and has a
circuit breaker of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from engines.base import Endpoint, EngineContext, Verdict
from engines.remote.breaker import CircuitState
from engines.remote.listing import KeptLists, Listed, Listing, NoList, ask
from engines.remote.remote_engine import RemoteEngine
from engines.remote.servers import API, Key, Server, Servers
from models.discovery.evidence import task_by_name
from models.types import ModelSpec

log = logging.getLogger(__name__)

ASK_S = 10.0  # so often is each server asked what it has …
ASK_DOWN_S = 5.0  # … and one that did not answer
FIRST_S = 1.0  # for a server of which nothing is known to say what it has, before anybody is told anything
KEEP_ALIVE_S = 3.0

Tell = Callable[[Sequence[ModelSpec]], None]


@dataclass(frozen=True, slots=True)
class _Model:
    """A model by our id."""

    name: str  # the servers'
    servers: tuple[Server, ...]  # those that have it


class OpenAIFactory:
    """All models of one engine that is declared with `kind: openai`."""

    remote = True

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        declared = context.declared
        self.name = context.name
        self._mapped, self._prefix = dict(declared.models), declared.prefix
        self._servers = Servers(context.name, declared)
        self._key = Key.read(declared)
        self._headers = self._key.headers() | {"Accept-Encoding": "identity"}
        self._ask_s, self._ask_down_s = ask_s, ask_down_s
        self._kept = KeptLists(context.cache_dir, context.name)
        kept = self._kept.read(declared.urls)
        self._lists: dict[Server, Listed] = {s: kept[s.url] for s in self._servers.all if s.url in kept}
        self._models: dict[str, _Model] = {}
        self._specs: list[ModelSpec] = []
        self._tell: Tell | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    # -- what the seam asks ----------------------------------------------------------------------------------------

    def accepts(self, spec: ModelSpec) -> Verdict:
        if spec.id in self._models:
            return Verdict(True, f"it is served by {self._hosts(self._models[spec.id].servers)}")
        return Verdict(False, f"the servers of the engine '{self.name}' have no model of this id")

    def reasons(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> Sequence[str]:
        model = self._models.get(spec.id)
        if model is None:
            return ()
        name = "" if model.name == spec.id else f", as '{model.name}'"
        return (f"engine: {self.name}: it is served elsewhere, by {self._hosts(model.servers)}{name}",)

    def estimate_bytes(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> int:
        return 0

    def create(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> RemoteEngine:
        return RemoteEngine(self, spec.id)

    def sleep_levels(self, spec: ModelSpec, adapters: Sequence[ModelSpec] = ()) -> tuple[int, ...]:
        return ()

    def follow(self, tell: Tell) -> None:
        self._tell = tell

    async def start(self) -> None:
        self._renew()
        if self._key.missing is not None:
            log.error("the engine %s cannot be used: %s", self.name, self._key.missing)
            return
        connector = aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )
        self._tasks = [asyncio.create_task(self._ask_for_ever(server)) for server in self._servers.all]
        new = [server.asked.wait() for server in self._servers.all if server not in self._lists and not self._mapped]
        with contextlib.suppress(TimeoutError):  # else the first requests would be told that there is no such model
            await asyncio.wait_for(asyncio.gather(*new), FIRST_S)

    def state(self) -> Mapping[str, Any]:
        usable = any(server.breaker.state is not CircuitState.OPEN for server in self._servers.all)
        told: dict[str, Any] = {
            "state": "ready" if usable and not self._key.missing else "unavailable",
            "kind": "openai",
            "models": len(self._models),
            "servers": self._servers.state(),
        }
        return told | ({"error": self._key.missing} if self._key.missing else {})

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # -- requests --------------------------------------------------------------------------------------------------

    def endpoint(self, model_id: str) -> Endpoint:
        """Raises EngineUnavailable."""
        self._key.check(self.name)
        model = self._models.get(model_id)
        name, among = (model.name, model.servers) if model else (model_id, self._servers.all)
        server = self._servers.choose(among)
        return Endpoint(
            base_url=_base(server.url),
            headers=self._headers,
            model=name,
            ends_with_us=False,
            watcher=server.breaker.request(),
        )

    def healthy(self, model_id: str) -> bool:
        model = self._models.get(model_id)
        return model is not None and any(s.breaker.state is CircuitState.CLOSED for s in model.servers)

    # -- what there is ---------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, server: Server) -> None:
        assert self._session is not None
        while True:
            try:
                self._take(server, await ask(self._session, _base(server.url), self._headers))
                server.breaker.hears()
            except NoList as error:
                self._note_silence(server, str(error))
            except Exception:  # the top of a task: it must go on asking
                log.exception("%s: the models of %s cannot be taken in", self.name, server.host)
            server.asked.set()
            await asyncio.sleep(self._ask_s if server.asked_error is None else self._ask_down_s)

    def _note_silence(self, server: Server, why: str) -> None:
        """Told once, not every few seconds; what was known of it stands."""
        if server.asked_error != why:
            log.warning("%s: %s does not say which models it has: %s", self.name, server.host, why)
            server.asked_error = why

    def _take(self, server: Server, listed: Listed) -> None:
        if server.asked_error is not None:
            log.info("%s: %s says again which models it has", self.name, server.host)
            server.asked_error = None
        before = self._lists.get(server)
        if before is not None:  # some say the time of the question
            listed = {
                name: Listing(one.task, one.task_told, one.max_model_len, before[name].created_s)
                if name in before
                else one
                for name, one in listed.items()
            }
        if listed == before:
            return
        self._lists[server] = listed
        self._renew()
        self._kept.write({server.url: each for server, each in self._lists.items()})

    def _renew(self) -> None:
        """Works out what there is, and tells it where it has changed."""
        ids = self._mapped or {self._prefix + name: name for name in self._names()}
        self._models = {model_id: _Model(name, self._having(name)) for model_id, name in ids.items()}
        specs = [self._spec(model_id, model) for model_id, model in self._models.items()]
        if specs != self._specs and self._tell is not None:
            self._specs = specs
            self._tell(specs)

    def _names(self) -> list[str]:
        """Every name that some server lists."""
        return list(dict.fromkeys(name for listed in self._lists.values() for name in listed))

    def _having(self, name: str) -> tuple[Server, ...]:
        """Those that list it; else those that never said what they have; else all, as not every server lists all."""
        servers = self._servers.all
        listing = tuple(server for server in servers if name in self._lists.get(server, ()))
        return listing or tuple(server for server in servers if server not in self._lists) or servers

    def _spec(self, model_id: str, model: _Model) -> ModelSpec:
        lists = (self._lists.get(server, {}) for server in model.servers)
        listing = next((listed[model.name] for listed in lists if model.name in listed), None)
        if listing is None:
            listing, how = Listing(task_by_name(model.name), False), "the configuration names it"
        else:
            how = "GET /v1/models lists it"
        by = "as it says itself" if listing.task_told else "by its name; set `task` for it where that is wrong"
        return ModelSpec(
            id=model_id,
            path=Path(),
            task=listing.task,
            engine=self.name,
            chat_template=listing.task.value == "chat",
            max_model_len=listing.max_model_len,
            created_s=listing.created_s,
            fingerprint=f"{self.name}:{model.name}",
            reasons=(f"a server of the engine {self.name}: {how}", f"{listing.task.value}: {by}"),
        )

    def _hosts(self, servers: Sequence[Server]) -> str:
        return ", ".join(server.host for server in servers)


def _base(url: str) -> str:
    return url.removesuffix(API)


def create_factory(context: EngineContext) -> OpenAIFactory:
    return OpenAIFactory(context)
