"""Models of servers elsewhere that speak OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, another Roundhouse.

They take no memory here and are never started or stopped. Each server is asked every few seconds what it has, and has a
circuit breaker of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from engines.base import Endpoint, EngineContext, Verdict
from engines.remote.breaker import CircuitState
from engines.remote.listing import KeptLists, Listed, Listing, NoList, ask
from engines.remote.remote_factory import ASK_DOWN_S, ASK_S, RemoteFactory
from engines.remote.servers import API, Server
from models.discovery.evidence import task_by_name
from models.types import ModelSpec

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 3.0


@dataclass(frozen=True, slots=True)
class _Model:
    """A model by our id."""

    name: str  # the servers'
    servers: tuple[Server, ...]  # those that have it


class OpenAIFactory(RemoteFactory):
    """All models of one engine that is declared with `kind: openai`."""

    kind = "openai"

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        super().__init__(context, ask_s=ask_s, ask_down_s=ask_down_s)
        self._headers = self._key.headers() | {"Accept-Encoding": "identity"}
        self._kept = KeptLists(context.cache_dir, context.name)
        kept = self._kept.read(context.declared.urls)
        self._lists: dict[Server, Listed] = {s: kept[s.url] for s in self._servers.all if s.url in kept}
        self._models: dict[str, _Model] = {}
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

    async def start(self) -> None:
        self._renew()
        if not self._has_key():
            return
        connector = aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )
        new = [server for server in self._servers.all if server not in self._lists and not self._mapped]
        await self._begin(self._ask_for_ever, new)

    async def close(self) -> None:
        await super().close()
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

    # -- what there is ---------------------------------------------------------------------------------------------

    async def _ask_for_ever(self, server: Server) -> None:
        assert self._session is not None
        while True:
            try:
                self._take(server, await ask(self._session, server.url, self._headers, server.proxy))
            except NoList as error:
                self._asked(server, str(error))
            except Exception:  # the top of a task: it must go on asking
                log.exception("%s: the models of %s cannot be taken in", self.name, server.host)
            await self._pause(server)

    def _take(self, server: Server, listed: Listed) -> None:
        self._asked(server, None)
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
        self._publish([self._spec(model_id, model) for model_id, model in self._models.items()])

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
            how = "it lists it"
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


def create_factory(context: EngineContext) -> OpenAIFactory:
    return OpenAIFactory(context)
