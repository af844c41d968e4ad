"""Models of servers elsewhere that speak OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, another Roundhouse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import aiohttp

from engines.base import EngineContext
from engines.remote.listing import Listing, ask
from engines.remote.remote_factory import ASK_DOWN_S, ASK_S, RemoteFactory
from engines.remote.servers import Server
from models.discovery.evidence import task_by_name
from models.types import ModelSpec

KEEP_ALIVE_S = 3.0


class OpenAIFactory(RemoteFactory[Listing]):
    """All models of one engine that is declared with `kind: openai`."""

    kind = "openai"
    listing = Listing

    def __init__(self, context: EngineContext, *, ask_s: float = ASK_S, ask_down_s: float = ASK_DOWN_S) -> None:
        super().__init__(context, ask_s=ask_s, ask_down_s=ask_down_s)
        self._headers = self._headers | {"Accept-Encoding": "identity"}
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> None:
        connector = aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )

    async def _ask(self, server: Server) -> dict[str, Listing]:
        assert self._session is not None
        listed = await ask(self._session, server.url, self._headers, server.proxy)
        before = self._lists.get(server, {})  # some say the time of the question
        return {
            name: replace(one, created_s=before[name].created_s) if name in before else one
            for name, one in listed.items()
        }

    async def _shut(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _new(self) -> Iterable[Server]:
        return () if self._mapped else super()._new()  # their names say enough

    def _spec(self, model_id: str, name: str, listing: Listing | None) -> ModelSpec:
        how = "it lists it"
        if listing is None:
            listing, how = Listing(task_by_name(name), False), "the configuration names it"
        by = "as it says itself" if listing.task_told else "by its name; set `task` for it where that is wrong"
        return ModelSpec(
            id=model_id,
            path=Path(),
            task=listing.task,
            engine=self.name,
            chat_template=listing.task.value == "chat",
            max_model_len=listing.max_model_len,
            created_s=listing.created_s,
            fingerprint=f"{self.name}:{name}",
            reasons=(f"a server of the engine {self.name}: {how}", f"{listing.task.value}: {by}"),
        )


def create_factory(context: EngineContext) -> OpenAIFactory:
    return OpenAIFactory(context)
