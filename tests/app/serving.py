"""The whole app on a loopback port, in this process, with fake engines and a list of models in place of a folder."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx

from app.config import Settings
from app.lifecycle import OnChange
from app.main import Roundhouse, build
from app.server import DrainingServer, bind, server_config
from engines.base import Declaration, EngineFactory
from engines.registry import KINDS, Engines
from models.types import Availability, ModelOverrides, ModelSpec, Task
from tests.app.fake_engine import FakeFactory, context_in

STARTED_S = 5.0
STOPPED_S = 10.0


def spec(model_id: str, task: Task = Task.CHAT, **values: Any) -> ModelSpec:
    return ModelSpec(id=model_id, path=Path("/nowhere") / model_id, task=task, engine="fake", **values)


MODELS = (
    spec("org/chatty", aliases=("gpt-4o",), chat_template=True, reasons=("config.json: has a chat template",)),
    spec("other", chat_template=True),
    spec("base", Task.COMPLETION),
    spec("minilm", Task.EMBED),
    spec("cross", Task.RERANK),
    spec("half", availability=Availability.INCOMPLETE, reasons=("model-00002-of-00002.safetensors is missing",)),
    spec("pirate", Task.ADAPTER, parent="org/chatty"),
)


class ListScanner:
    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        self.specs = list(specs)
        self.overrides: Mapping[str, ModelOverrides] = {}

    def scan(self) -> list[ModelSpec]:
        return [replace(spec, overrides=self.overrides.get(spec.id, spec.overrides)) for spec in self.specs]

    def set_overrides(self, overrides: Mapping[str, ModelOverrides]) -> None:
        self.overrides = overrides


class ListWatcher:
    """In place of a watched folder: what a test puts into the scanner's list is found by `rescan`."""

    def __init__(self, scanner: ListScanner, on_change: OnChange) -> None:
        self._scanner = scanner
        self._on_change = on_change

    async def start(self) -> list[ModelSpec]:
        return self._scanner.scan()

    async def rescan(self) -> list[ModelSpec]:
        self._on_change(self._scanner.scan())
        return self._scanner.scan()

    async def stop(self) -> None: ...


@dataclass
class Served:
    """A running app: `client` is an HTTP client to it, `engines` tells what reached the engines."""

    roundhouse: Roundhouse
    engines: FakeFactory
    scanner: ListScanner
    server: DrainingServer
    task: asyncio.Task[None]
    port: int
    client: httpx.AsyncClient

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **options)

    async def chat(self, model: str = "org/chatty", **body: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", {"model": model, **body})


@contextlib.asynccontextmanager
async def serving(
    specs: Iterable[ModelSpec] = MODELS, *, elsewhere: Mapping[str, Declaration] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """`elsewhere`: engines whose servers are elsewhere, by name."""
    with tempfile.TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:  # $TMPDIR may be too long for sockets
        given = {"models_dir": Path(folder) / "models", "state_dir": Path(folder) / "state", "port": 0}
        options = Settings(**{**given, "memory_budget_bytes": 1 << 40, "shutdown_timeout_s": 2.0, **settings})
        factory, scanner = FakeFactory(context_in(Path(folder))), ListScanner(specs)
        roundhouse = build(
            options,
            Path(folder),
            engines=Engines({"fake": factory, **_elsewhere(Path(folder), elsewhere or {})}, {}),
            scanner=scanner,
            make_watcher=partial(ListWatcher, scanner),
        )
        listener = bind(options)
        port = listener.getsockname()[1]
        server = DrainingServer(server_config(roundhouse.app, options), roundhouse.lifecycle)
        task = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10.0, trust_env=False) as client:
            served = Served(roundhouse, factory, scanner, server, task, port, client)
            try:
                await _ready(client)
                yield served
            finally:
                factory.may_load.set()
                factory.may_answer.set()
                await client.aclose()
                if not task.done():
                    server.stop()
                await asyncio.wait_for(task, STOPPED_S)


def _elsewhere(folder: Path, declared: Mapping[str, Declaration]) -> dict[str, EngineFactory]:
    found: dict[str, EngineFactory] = {}
    for name, declaration in declared.items():
        context = replace(context_in(folder), name=name, declared=declaration)
        found[name] = import_module(KINDS[declaration.kind or ""]).create_factory(context)
    return found


async def _ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(STARTED_S):
        while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110  # another task's progress
            await asyncio.sleep(0.01)
