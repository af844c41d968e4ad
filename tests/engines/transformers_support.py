"""What the tests of the transformers engine share: real engines of the real launcher, and a client."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from engines.base import Engine, EngineContext
from engines.transformers_engine import TransformersFactory, create_factory
from models.types import ModelSpec, Task
from utils import procfs

START_TIMEOUT_S = 100.0  # an import of torch and transformers with a load, on a busy machine
GRACE_S = 10.0


def spec_of(path: Path, task: Task = Task.EMBED, model_id: str = "", **fields: Any) -> ModelSpec:
    return ModelSpec(id=model_id or path.name, path=path, task=task, engine="transformers", **fields)


@asynccontextmanager
async def transformers_factory(**engine_args: Any) -> AsyncIterator[TransformersFactory]:
    """A started factory in a private folder; afterwards nothing of it may be left. Models run on torch, unmeasured."""
    before = set(procfs.descendants(os.getpid()))
    # pytest's own temporary folders have paths too long for a unix socket.
    with TemporaryDirectory(prefix="rh-", dir="/tmp") as folder:
        dirs = {name: Path(folder, name) for name in ("run", "log", "cache")}
        for path in dirs.values():
            path.mkdir(mode=0o700)
        context = EngineContext(
            dirs["run"], dirs["log"], dirs["cache"], "cpu", {"backend": "torch", "dtype": "float32"} | engine_args
        )
        factory = create_factory(context)
        await factory.start()
        try:
            yield factory
        finally:
            await factory.close()
        assert list(dirs["run"].iterdir()) == []
    assert set(procfs.descendants(os.getpid())) <= before


@asynccontextmanager
async def running_engine(factory: TransformersFactory, spec: ModelSpec) -> AsyncIterator[Engine]:
    """A ready engine; afterwards its whole tree is gone."""
    engine = factory.create(spec)
    await engine.start(START_TIMEOUT_S)
    try:
        yield engine
    finally:
        await engine.stop(GRACE_S)
        assert engine.memory_bytes() == 0


@asynccontextmanager
async def client_of(engine: Engine) -> AsyncIterator[Client]:
    connector = aiohttp.UnixConnector(path=str(engine.endpoint.uds))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        yield Client(session)


class Client:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(self, path: str, body: Any = None, data: bytes | None = None) -> tuple[int, dict[str, Any]]:
        file = io.BytesIO(json.dumps(body).encode() if data is None else data)  # aiohttp warns of long plain bytes
        async with self.session.post(f"http://engine{path}", data=file) as response:
            return response.status, await response.json()

    async def ok(self, path: str, **body: Any) -> dict[str, Any]:
        status, answer = await self.post(path, body)
        assert status == 200, answer
        return answer

    async def refused(self, path: str, **body: Any) -> dict[str, Any]:
        """The error of a request that gets 400."""
        status, answer = await self.post(path, body)
        assert status == 400, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"
        error: dict[str, Any] = answer["error"]
        return error
