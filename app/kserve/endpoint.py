"""KServe V2 at our address: /v2, /v2/models/{name}[/versions/{version}][/ready|/infer]. See app.kserve.forwarding."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from app.asgi import Bodies, Exchange
from app.errors import InvalidRequest, MethodNotAllowed, NotFound, Rendered
from app.kserve.forwarding import Forwarding, off_loop
from app.routes import TENSOR_ROUTES, check_task
from app.sending import NotServed, Sender
from app.state import AppState
from app.upstream import Upstreams
from app.waiting import Wait
from models.errors import Unavailable
from models.manager import Lease
from models.types import ModelSpec, Signature, State, Tensor
from utils.version import own_version

if TYPE_CHECKING:
    from app.kserve.infer_request import InferRequest

ROOT = "/v2"
MODEL_PATH = re.compile(r"/v2/models/(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<action>/ready|/infer)?")
VERSION_MAX = 100
NOT_READY_RETRY_S = 2.0
EXTENSIONS = ("binary_tensor_data", "classification", "parameters")


class KServe:
    """Answers these routes; whoever calls has checked key, Host and Origin."""

    def __init__(self, state: AppState, upstreams: Upstreams, bodies: Bodies) -> None:
        self._state = state
        self._manager = state.manager
        self._bodies = bodies
        self._sender = Sender(state)
        self._forwarding = Forwarding(upstreams, state.settings.upstream_idle_timeout_s, state.name)

    async def answer(self, exchange: Exchange) -> None:
        """Raises as `DataPlane.answer`."""
        path = exchange.path
        if path == ROOT:
            exchange.route = ROOT
            _expect(exchange, "GET")
            await exchange.respond(_json({"name": "roundhouse", "version": own_version(), "extensions": EXTENSIONS}))
            return
        found = MODEL_PATH.fullmatch(path)
        if found is None:
            raise NotFound(
                f"There is no route {path[:200]}; Cohere's are /v2/embed and /v2/rerank, and KServe's V2 is at "
                "/v2/models/{name}, /ready and /infer."
            )
        name, version, action = found["name"], found["version"] or "", found["action"] or ""
        exchange.route = f"/v2/models/{{name}}{action}"
        if action == "/infer":
            _expect(exchange, "POST")
            await self._infer(exchange, name, version)
            return
        _expect(exchange, "GET")
        spec = self._spec(exchange, name, version)
        if action:
            await self._tell_ready(exchange, spec, version)
        else:
            await exchange.respond(_json(_metadata(spec, version)))

    def _spec(self, exchange: Exchange, name: str, version: str) -> ModelSpec:
        spec = self._manager.catalog.resolve(name)
        exchange.model = spec.id
        self._manager.check(spec)
        check_task(spec, TENSOR_ROUTES[-1])
        versions = spec.signature.versions if spec.signature else ()
        if len(version) > VERSION_MAX or (version and versions and version not in versions):
            told = f"it has {', '.join(versions)}" if versions else "its server tells none of this name"
            raise NotFound(f"The model '{spec.id}' has no version {version[:VERSION_MAX]!r}; {told}.")
        return spec

    async def _infer(self, exchange: Exchange, name: str, version: str) -> None:
        body = await exchange.read_body(self._bodies)
        spec = self._spec(exchange, name, version)
        request = await self._parsed(exchange, body, spec)

        async def forward(lease: Lease) -> None:
            await self._forwarding.infer(exchange, lease, request, body, version)

        await self._send(exchange, spec, forward)

    async def _tell_ready(self, exchange: Exchange, spec: ModelSpec, version: str) -> None:
        """Loads nothing: models of our own engines are asked only where they are loaded."""
        state, ready = self._manager.status(spec.id).state, False
        if state is not State.READY:
            text = f"The model '{spec.id}' is not ready ({state}); a request to it loads it."
            raise Unavailable(text, param="model", retry_after_s=NOT_READY_RETRY_S)

        async def ask(lease: Lease) -> None:
            nonlocal ready
            ready = await self._forwarding.ready(exchange, lease, version)

        await self._send(exchange, spec, ask)
        if not ready:
            text = f"The server of '{spec.id}' says that it is not ready."
            raise Unavailable(text, retry_after_s=NOT_READY_RETRY_S)
        await exchange.respond(Rendered(200, [(b"content-length", b"0")], b""))

    async def _parsed(self, exchange: Exchange, body: bytes, spec: ModelSpec) -> InferRequest:
        from app.kserve.infer_request import read  # brings numpy, as whatever has such models does

        header_bytes = _length(exchange.headers.get(b"inference-header-content-length"))
        encoding = exchange.headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if encoding == "identity":
            return await off_loop(len(body), lambda: read(body, header_bytes, spec))
        whole = await self._unpacked(exchange, body, encoding)
        return await off_loop(len(whole), lambda: read(whole, header_bytes, spec))

    async def _unpacked(self, exchange: Exchange, body: bytes, encoding: str) -> bytes:
        """What a compressed body holds counts as body, too: each part as soon as it is there."""
        from app.kserve.infer_request import unpacked

        whole, parts = bytearray(), unpacked(body, encoding, self._bodies.max_bytes)
        while part := await asyncio.to_thread(next, parts, b""):
            self._bodies.take(len(part))
            exchange.body_bytes += len(part)
            whole += part
        return bytes(whole)

    async def _send(self, exchange: Exchange, spec: ModelSpec, relay: Callable[[Lease], Awaitable[None]]) -> None:
        settings = self._state.settings
        wait = Wait(exchange, None, interval_s=settings.sse_comment_s, limit_s=settings.wait_timeout_s)
        with suppress(NotServed), exchange.watch_client(wait.grown_long):
            await self._sender.send(exchange, spec, wait, relay)


def _expect(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        raise MethodNotAllowed(exchange.method, exchange.path[:200], method)


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > len(str(1 << 63)):
        raise InvalidRequest("Inference-Header-Content-Length must be a count of bytes.")
    return int(value)


def _metadata(spec: ModelSpec, version: str) -> dict[str, Any]:
    signature = spec.signature or Signature()
    return {
        "name": spec.id,
        "versions": (version,) if version else signature.versions,
        "platform": signature.platform,
        "inputs": _described(signature.inputs),
        "outputs": _described(signature.outputs),
    }


def _described(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in tensors]


def _json(document: Any) -> Rendered:
    body = orjson.dumps(document)
    return Rendered(200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body)
