"""A server elsewhere that speaks KServe V2 by gRPC, in this process, which can be as broken as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

PREFIX = "/inference.GRPCInferenceService/"
ANSWER_S = 5.0
FP32_PAIRS = ("x", "FP32", (-1, 2))


def sums(request: Any) -> Any:
    """As a model that adds up the pairs of `x`, and gives them as raw."""
    import numpy as np

    pairs = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, 2)
    answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="7", id=request.id)
    answer.outputs.add(name="sum", datatype="FP32", shape=[len(pairs)])
    answer.raw_output_contents.append(pairs.sum(axis=1).astype(np.float32).tobytes())
    return answer


@dataclass(eq=False)
class KServeServer:
    """`models` are the names that it lists, all of pairs; `status` refuses requests so, as `said`; `answer` may
    return bytes.

    While `may_answer` is not set, requests wait.
    """

    models: Sequence[str] = ("adder",)
    takes: tuple[tuple[str, str, tuple[int, ...]], ...] = (FP32_PAIRS,)
    index_status: grpc.StatusCode | None = None
    status: grpc.StatusCode | None = None
    said: str = "the model says no"
    answer: Callable[[Any], Any] = sums
    port: int = 0
    asked: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of the last request
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client has gone away from its request
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    _server: Any = None

    def __post_init__(self) -> None:
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def index(self, raw: bytes, context: Any) -> bytes:
        if self.index_status is not None:
            await context.abort(self.index_status, "no")
        told = service_pb2.RepositoryIndexResponse()
        for name in self.models:
            told.models.add(name=name, version="7", state="READY")
        told.models.add(name="gone", version="1", state="UNAVAILABLE")
        return bytes(told.SerializeToString())

    async def metadata(self, raw: bytes, context: Any) -> bytes:
        name = service_pb2.ModelMetadataRequest.FromString(raw).name
        if name not in self.models:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        told = service_pb2.ModelMetadataResponse(name=name, versions=["7"], platform="python")
        for input_name, datatype, shape in self.takes:
            told.inputs.add(name=input_name, datatype=datatype, shape=shape)
        told.outputs.add(name="sum", datatype="FP32", shape=[-1])
        return bytes(told.SerializeToString())

    async def infer(self, raw: bytes, context: Any) -> bytes:
        self.asked.append(service_pb2.ModelInferRequest.FromString(raw))
        self.headers = dict(context.invocation_metadata())
        self.arrived.set()
        try:
            await asyncio.wait_for(self.may_answer.wait(), ANSWER_S)
        except asyncio.CancelledError:
            self.left.set()
            raise
        if self.status is not None:
            await context.abort(self.status, self.said)
        answer = self.answer(self.asked[-1])
        return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, server: KServeServer) -> None:
        self._methods = {
            "RepositoryIndex": server.index,
            "ModelMetadata": server.metadata,
            "ModelInfer": server.infer,
        }

    def service(self, call: Any) -> Any:
        method = self._methods.get(call.method.removeprefix(PREFIX))
        return grpc.unary_unary_rpc_method_handler(method) if method else None


@asynccontextmanager
async def kserve_server(**options: Any) -> AsyncIterator[KServeServer]:
    server = KServeServer(**options)
    await server.start()
    try:
        yield server
    finally:
        server.may_answer.set()
        await server.stop()


@asynccontextmanager
async def breakable(server: KServeServer) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The URL of a way to `server`, and what breaks every connection on it, as the end of a machine does."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        writers.extend((writer, back))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    def cut() -> None:
        way.close()
        for writer in writers:
            writer.transport.abort()

    way = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"grpc://127.0.0.1:{way.sockets[0].getsockname()[1]}", cut
    finally:
        cut()
