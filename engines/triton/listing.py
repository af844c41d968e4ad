"""What a server that speaks KServe V2 says it has: names, versions, inputs and outputs. By gRPC or by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from engines.remote.remote_factory import NoList
from models.types import Signature, Tensor
from utils.kserve_grpc import CallFailed, KServeChannel, Unreached, service_pb2

ASK_TIMEOUT_S = 5.0
ALL_TIMEOUT_S = 60.0
ASKED_AT_ONCE = 8
MAX_ANSWER_BYTES = 16 << 20
MAX_MODELS = 10_000
MAX_NAME = 512
LENGTHS = range(-1, 1 << 63)  # -1: any
NOT_FOUND = (400, 404)  # Triton's, by HTTP, and that of the protocol
INDEX = "/v2/repository/index"
INDEX_METHOD, METADATA_METHOD = "RepositoryIndex", "ModelMetadata"
UNLISTED = "it cannot list its models; name them under `models:` of its engine"


class NoSuchModel(Exception):
    pass


class Lists(Protocol):
    """Asks one server."""

    async def index(self) -> list[str]:
        """The names of the models that are ready. Raises NoList."""
        ...

    async def signature(self, name: str) -> Signature:
        """Raises NoSuchModel and NoList."""
        ...

    async def close(self) -> None: ...


def lists_at(url: str, headers: Mapping[str, str], proxy: str | None = None) -> Lists:
    """`proxy`: the URL of the one by which it is asked, if any."""
    return GrpcLists(url, headers, proxy) if url.startswith("grpc") else HttpLists(url, headers, proxy)


async def ask(server: Lists, names: Iterable[str] | None) -> dict[str, Signature]:
    """All that `server` has, or those of `names` that it has. Raises NoList."""
    try:
        async with asyncio.timeout(ALL_TIMEOUT_S):
            return await _ask(server, names)
    except TimeoutError:
        raise NoList(f"it does not tell of all its models within {ALL_TIMEOUT_S:g} s") from None


async def _ask(server: Lists, names: Iterable[str] | None) -> dict[str, Signature]:
    wanted = list(names) if names is not None else await server.index()
    if len(wanted) > MAX_MODELS:
        raise NoList(f"it lists {len(wanted)} models, more than {MAX_MODELS}")
    places = asyncio.Semaphore(ASKED_AT_ONCE)

    async def one(name: str) -> Signature:
        async with places:
            return await server.signature(name)

    # No TaskGroup: where one of its tasks fails at that moment, it forgets that it was cancelled itself.
    told = await asyncio.gather(*(one(name) for name in wanted), return_exceptions=True)
    found: dict[str, Signature] = {}
    for name, signature in zip(wanted, told, strict=True):
        if isinstance(signature, Signature):
            found[name] = signature
        elif not isinstance(signature, NoSuchModel):  # that one was unloaded meanwhile
            raise signature
    return found


class GrpcLists:
    def __init__(self, url: str, headers: Mapping[str, str], proxy: str | None) -> None:
        self._channel = KServeChannel(url, ASK_TIMEOUT_S, proxy)
        self._headers = headers

    async def index(self) -> list[str]:
        try:
            raw = await self._call(INDEX_METHOD, service_pb2.RepositoryIndexRequest())
        except CallFailed as error:
            raise NoList(UNLISTED if error.status == 501 else _why(error)) from None
        models = _decoded(service_pb2.RepositoryIndexResponse, raw).models
        return _ready((model.name, model.state) for model in models)

    async def signature(self, name: str) -> Signature:
        try:
            raw = await self._call(METADATA_METHOD, service_pb2.ModelMetadataRequest(name=name))
        except CallFailed as error:
            raise NoSuchModel if error.status in NOT_FOUND else NoList(_why(error)) from None
        told = _decoded(service_pb2.ModelMetadataResponse, raw)
        return Signature(_of_messages(told.inputs), _of_messages(told.outputs), tuple(told.versions), told.platform)

    async def _call(self, method: str, request: Any) -> bytes:
        try:
            return await self._channel.call(method, request.SerializeToString(), self._headers, ASK_TIMEOUT_S)
        except Unreached as error:
            raise NoList(str(error)) from None

    async def close(self) -> None:
        await self._channel.close()


class HttpLists:
    def __init__(self, url: str, headers: Mapping[str, str], proxy: str | None) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(ASK_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=proxy,
        )

    async def index(self) -> list[str]:
        status, told = await self._ask("POST", INDEX)
        if status in (404, 405):
            raise NoList(UNLISTED)
        if not isinstance(told, list) or not all(isinstance(model, dict) for model in told):
            raise NoList(f"what it answers at {INDEX} (status {status}) is no list of models")
        return _ready((model.get("name"), model.get("state", "READY")) for model in told)

    async def signature(self, name: str) -> Signature:
        path = f"/v2/models/{quote(name)}"
        status, told = await self._ask("GET", path)
        if status in NOT_FOUND:
            raise NoSuchModel
        try:
            if status != 200:
                raise ValueError
            return Signature(
                _of_json(told.get("inputs")),
                _of_json(told.get("outputs")),
                tuple(str(version) for version in told.get("versions") or ()),
                str(told.get("platform", "")),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            raise NoList(f"what it answers at {path} (status {status}) describes no model") from None

    async def _ask(self, method: str, path: str) -> tuple[int, Any]:
        """Status and document, None where that is no JSON."""
        try:
            async with self._session.request(method, self._url + path, allow_redirects=False) as response:
                raw = await _read(response.content)
                return response.status, orjson.loads(raw)
        except orjson.JSONDecodeError:
            return response.status, None
        except TimeoutError:
            raise NoList(f"it does not answer within {ASK_TIMEOUT_S:g} s") from None
        except aiohttp.ClientHttpProxyError as error:  # whose text has the proxy's password
            raise NoList(f"the proxy answered with status {error.status}") from None
        except aiohttp.ClientError as error:
            raise NoList(str(error) or type(error).__name__) from None

    async def close(self) -> None:
        await self._session.close()


def _why(error: CallFailed) -> str:
    """What it says of our key is for nobody."""
    return "it refuses the key that it was given, or wants one" if error.status == 401 else error.message


def _decoded(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise NoList("what it answers is no message of KServe V2") from None


async def _read(content: aiohttp.StreamReader) -> bytes:
    kept = bytearray()
    async for chunk in content.iter_any():
        kept += chunk
        if len(kept) > MAX_ANSWER_BYTES:
            raise NoList(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(kept)


def _ready(models: Iterable[tuple[Any, Any]]) -> list[str]:
    """Each name once, though a server lists each version."""
    names = (name for name, state in models if state in ("READY", "") and isinstance(name, str))
    return [name for name in dict.fromkeys(names) if 0 < len(name) <= MAX_NAME and name.isprintable()]


def _of_messages(tensors: Iterable[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def _of_json(tensors: Any) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(str(tensor["name"]), str(tensor["datatype"]), tuple(_length(length) for length in tensor["shape"]))
        for tensor in tensors or ()
    )


def _length(told: Any) -> int:
    """Some tell it as a string."""
    length = int(told)
    if length not in LENGTHS:
        raise ValueError
    return length
