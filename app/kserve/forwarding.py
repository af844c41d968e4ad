"""Sends a KServe V2 request to the server of a lease, by gRPC or by HTTP, and its answer to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import aiohttp

from app.asgi import Exchange
from app.errors import Header, InvalidRequest, NotFound, RequestError
from app.foreign import FIRST_ERROR, FIRST_FAILURE, UNAUTHORIZED, NoAnswer, check_head, is_failure, read_checked
from app.request_headers import request_headers
from app.sending import CUT_OFF, AnswerCutOff, NotServed, failed, unreached, who
from app.upstream import BROKEN, Upstream, Upstreams
from models.errors import RoundhouseError, Unavailable
from models.manager import Lease

if TYPE_CHECKING:
    from app.kserve.infer_request import InferRequest
    from utils.kserve_grpc import CallFailed

T = TypeVar("T")

LARGE_BYTES = 1 << 20  # beyond, what is computed on them is computed in a thread
KEY_RETRY_S = 60.0  # until somebody has changed the key
BUSY_RETRY_S = 1.0
NOT_FOUND, TOO_MUCH, NOT_IMPLEMENTED, BUSY = 404, 429, 501, 503
# What the server gets of a request's headers, and the client of an answer's.
REQUEST_HEADERS = (
    (b"content-type", "Content-Type"),
    (b"content-encoding", "Content-Encoding"),
    (b"accept-encoding", "Accept-Encoding"),
    (b"inference-header-content-length", "Inference-Header-Content-Length"),
    (b"traceparent", "traceparent"),
    (b"tracestate", "tracestate"),
)
ANSWER_HEADERS = frozenset(
    (b"content-type", b"content-length", b"content-encoding", b"inference-header-content-length")
)
INFERENCE_HEADER = "Inference-Header-Content-Length"


class Unsupported(RequestError):
    status, code = NOT_IMPLEMENTED, "not_supported"


class TooMuch(RequestError):
    status, code = TOO_MUCH, "too_much"


async def off_loop(size_bytes: int, work: Callable[[], T]) -> T:
    """Runs `work` on so many bytes where it holds up nobody."""
    return await asyncio.to_thread(work) if size_bytes > LARGE_BYTES else work()


class Forwarding:
    """To whatever server a lease names."""

    def __init__(self, upstreams: Upstreams, timeout_s: float, name: str) -> None:
        """`name`: of this Roundhouse, for other servers."""
        self._upstreams = upstreams
        self._timeout_s = timeout_s
        self._name = name

    async def infer(self, exchange: Exchange, lease: Lease, request: InferRequest, body: bytes, version: str) -> None:
        """`body` is the request as it came. Raises what `Sender.send` takes from a relay."""
        if lease.endpoint.base_url.startswith("grpc"):
            await self._infer_by_grpc(exchange, lease, request, version)
        else:
            path = _path(lease.served_name, version, "/infer")
            await self._by_http(exchange, lease, path, body)

    async def ready(self, exchange: Exchange, lease: Lease, version: str) -> bool:
        """Whether the server has the model loaded. Raises as `infer`."""
        if lease.endpoint.base_url.startswith("grpc"):
            return await self._ready_by_grpc(lease, version)
        upstream = self._upstreams.get(lease.endpoint)
        headers = request_headers(exchange, lease, (), self._name)
        response = await upstream.get(_path(lease.served_name, version, "/ready"), headers)
        response.close()
        _note(lease, response.status if response.status != BUSY else NOT_FOUND)  # that says it of the model
        return response.status == 200

    async def _by_http(self, exchange: Exchange, lease: Lease, path: str, body: bytes) -> None:
        upstream: Upstream = self._upstreams.get(lease.endpoint)
        upstream.running += 1
        response: aiohttp.ClientResponse | None = None
        try:
            response = await upstream.post(
                path, body, request_headers(exchange, lease, REQUEST_HEADERS, self._name), known=False
            )
            await _pass_on(exchange, lease, response)
        finally:
            upstream.running -= 1
            if response is not None:
                response.close()

    async def _infer_by_grpc(self, exchange: Exchange, lease: Lease, request: InferRequest, version: str) -> None:
        from app.kserve import grpc_messages  # brings grpc, which only those need who have such a server

        encoded = await off_loop(exchange.body_bytes, lambda: grpc_messages.encode(request, lease.served_name, version))
        raw = await self._call(lease, "ModelInfer", encoded)
        headers, parts = await off_loop(len(raw), lambda: grpc_messages.decode(raw, request, lease.spec.id))
        await exchange.start(200, headers)
        for part in parts[:-1]:
            await exchange.body(part, True)
        await exchange.body(parts[-1], False)

    async def _ready_by_grpc(self, lease: Lease, version: str) -> bool:
        from utils.kserve_grpc import service_pb2

        asked = service_pb2.ModelReadyRequest(name=lease.served_name, version=version)
        raw = await self._call(lease, "ModelReady", asked.SerializeToString())
        return bool(service_pb2.ModelReadyResponse.FromString(raw).ready)

    async def _call(self, lease: Lease, method: str, encoded: bytes) -> bytes:
        from utils.kserve_grpc import CallFailed, Unreached

        channel = self._upstreams.channel(lease.endpoint)
        try:
            raw = await channel.call(method, encoded, lease.endpoint.headers, self._timeout_s)
        except Unreached as error:
            raise unreached(lease, str(error)) from None
        except CallFailed as error:
            if error.lost:
                raise failed(lease, CUT_OFF) from None
            _note(lease, error.status)
            raise _refusal(lease, error) from None
        lease.answers()
        return raw


def _note(lease: Lease, status: int) -> None:
    if is_failure(status) and status != NOT_IMPLEMENTED:
        lease.fails(f"status {status}")
    else:
        lease.answers()


def _refusal(lease: Lease, error: CallFailed) -> RoundhouseError:
    """What a gRPC server said, as the nearest of our errors."""
    status, text = error.status, f"{who(lease)} answered: {error.message}"
    if status == UNAUTHORIZED:  # what it says of our key is not for clients
        refused = f"{who(lease)} refuses the key that it was given, or wants one. See api_key_env of "
        return Unavailable(f"{refused}{lease.spec.engine}.", retry_after_s=KEY_RETRY_S)
    if status == NOT_FOUND:
        return NotFound(text)
    if status == NOT_IMPLEMENTED:
        return Unsupported(text)
    if status == TOO_MUCH:
        return TooMuch(text)
    if status == BUSY:
        return Unavailable(text, retry_after_s=BUSY_RETRY_S)
    if status < FIRST_FAILURE:
        return InvalidRequest(text)
    return NoAnswer(f"{who(lease)} answered", f"it answered with {error.code}", f": {error.message.rstrip('.')}")


async def _pass_on(exchange: Exchange, lease: Lease, response: aiohttp.ClientResponse) -> None:
    """Raises AnswerCutOff, NotServed once an error was passed on, and what `read_checked` raises for no answer."""
    first = b""
    if response.status >= FIRST_ERROR:
        _note(lease, response.status)
    if response.status != 200 or INFERENCE_HEADER not in response.headers:
        first = await read_checked(response, lease.spec, "kserve")
    else:
        check_head(response, lease.spec)
    if response.status < FIRST_ERROR:
        lease.answers()
    length = -1
    headers: list[Header] = []
    for raw_name, value in response.raw_headers:
        if (name := raw_name.lower()) in ANSWER_HEADERS:
            headers.append((name, value))
            length = int(value) if name == b"content-length" else length
    await exchange.start(response.status, headers)
    chunk = first or await _next(response)
    while chunk:
        length -= len(chunk)
        if length == 0:
            break
        await exchange.body(chunk, True)
        chunk = await _next(response)
    await exchange.body(chunk, False)
    if response.status >= FIRST_ERROR:
        raise NotServed


async def _next(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readany()
    except BROKEN as error:
        raise AnswerCutOff from error


def _path(name: str, version: str, action: str) -> str:
    return f"/v2/models/{quote(name)}{f'/versions/{quote(version)}' if version else ''}{action}"
