"""The engine's HTTP server in this process, on loopback, with small models: what its API does needs no process."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from engines.base import EngineContext
from engines.runtime.retrieval import RetrievalModel
from engines.runtime.retrieval_service import RetrievalService
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_runtime import load_model
from engines.runtime.transformers_server import make_app
from engines.runtime.transformers_sleep import Residence
from engines.transformers_engine import create_factory
from tests.engines import retrieval_models as made

TEXTS = ["the locomotive stands on the track", "bread and water", "dog"]
QUERY = "where stands the locomotive"
LONG = "dog " * 3000  # over the length of every model of `serving_each_kind`
EACH_KIND = {
    "dense": made.make_prompted_embedder,
    "colbert": made.make_colbert,
    "splade": made.make_splade,
    "reranker": made.make_cross_encoder,
    "classifier": made.make_classifier,
}


@dataclass
class ServedModel:
    """A model behind its routes; `model` is the same one, to be asked directly."""

    model: RetrievalModel
    url: str
    session: aiohttp.ClientSession

    async def send(self, path: str, data: bytes) -> tuple[int, Any]:
        async with self.session.post(self.url + path, data=io.BytesIO(data)) as response:
            return response.status, await response.json()

    async def post(self, path: str, **body: Any) -> Any:
        status, answer = await self.send(path, json.dumps(body).encode())
        assert status == 200, answer
        return answer

    async def refusal(self, path: str, **body: Any) -> str:
        """The message of a request that is refused, in whatever shape its path has."""
        status, answer = await self.send(path, json.dumps(body).encode())
        assert 400 <= status < 500, answer
        return told(answer)


def told(answer: dict[str, Any]) -> str:
    """The message of an error in OpenAI's, Cohere's or TEI's shape."""
    if set(answer) <= {"id", "message"}:
        return str(answer["message"])
    if set(answer) == {"error", "error_type"}:
        return str(answer["error"])
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return f"{answer['error']['param']}: {answer['error']['message']}"


@asynccontextmanager
async def serving_model(path: Path) -> AsyncIterator[ServedModel]:
    """`path` judged by discovery and loaded as an engine loads it."""
    nowhere = Path("/nowhere")
    factory = create_factory(EngineContext(nowhere, nowhere, nowhere, "cpu", {"backend": "torch"}))
    args = TransformersArgs.model_validate(factory._args(made.judged(path)).model_dump(mode="json"))
    model = load_model(str(path), args)
    service = RetrievalService(model, path.name, args)
    server = TestServer(make_app(service, Residence(model.weights, service.between_passes)))
    try:
        await server.start_server()
        async with aiohttp.ClientSession() as session:
            yield ServedModel(model, str(server.make_url("")).rstrip("/"), session)
    finally:
        await server.close()
        service.close()


@asynccontextmanager
async def serving_each_kind(folder: Path) -> AsyncIterator[dict[str, ServedModel]]:
    """A small model of each kind, made in `folder`."""
    async with AsyncExitStack() as stack:
        models = {}
        for name, make in EACH_KIND.items():
            models[name] = await stack.enter_async_context(serving_model(make(folder / name)))
        yield models
