"""One gRPC connection to a server that speaks KServe V2, by the messages that tritonclient brings.

Messages go over it as bytes, so that whoever has large ones makes and reads them in a thread. tritonclient's own
asyncio client does both in the event loop, and turns each tensor into numpy's form and back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]

__all__ = ["CallFailed", "KServeChannel", "Unreached", "service_pb2"]

SERVICE = "/inference.GRPCInferenceService/"
SECURE = "grpcs"
MAX_MESSAGE_BYTES = (1 << 31) - 1  # gRPC's own limit, and tritonclient's
OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # what may have had effects is never sent twice
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel would inherit the back-off of one that failed
)
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,  # a quota, or a message larger than the server takes
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
OTHER_STATUS = 500
READY = grpc.ChannelConnectivity.READY
FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
NOTICED_S = 0.1  # a request may hear of the end of its connection before the channel does
LEAVING_S = 600.0  # a server that shuts down takes no connections any more, but may still answer what it has


class Unreached(Exception):
    """No connection; nothing was sent. The text says why, for people."""


class CallFailed(Exception):
    """The server refused or failed. `lost`: the connection broke meanwhile.

    `status` is the nearest of HTTP's, `code` the name of gRPC's; `message` the server's, which may quote the request.
    """

    def __init__(self, status: int, code: str, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.lost = lost


class KServeChannel:
    """Connects when first used, and again after it was lost. Of one event loop."""

    def __init__(self, url: str, connect_timeout_s: float, proxy: str | None = None) -> None:
        """`proxy`: the URL of the one that it connects through, if any."""
        split = urlsplit(url)
        self._target = split.netloc
        self._secure = split.scheme == SECURE
        self._connect_timeout_s = connect_timeout_s
        self._options = (*OPTIONS, ("grpc.enable_http_proxy", int(proxy is not None)), ("grpc.http_proxy", proxy or ""))
        self._channel: grpc.aio.Channel | None = None
        self._connecting: asyncio.Task[grpc.aio.Channel] | None = None
        self._leaving: dict[grpc.aio.Channel, asyncio.Task[None]] = {}  # whose last requests still run

    async def call(self, method: str, request: bytes, headers: Mapping[str, str], timeout_s: float) -> bytes:
        """The answer to one request. Raises Unreached and CallFailed."""
        channel = await self._connected()
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        send = channel.unary_unary(SERVICE + method)
        try:
            answer: bytes = await send(request, metadata=metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            lost = error.code() is grpc.StatusCode.UNAVAILABLE and await _is_lost(channel)
            status, code = STATUSES.get(error.code(), OTHER_STATUS), error.code().name
            raise CallFailed(status, code, str(error.details() or code), lost=lost) from None
        return answer

    async def close(self) -> None:
        """Requests that run are cut off."""
        if self._connecting is not None:
            self._connecting.cancel()
        tasks = [task for task in (self._connecting, *self._leaving.values()) if task is not None]
        channels = [*self._leaving, *([self._channel] if self._channel is not None else [])]
        self._channel = None
        for channel in channels:
            await channel.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self) -> grpc.aio.Channel:
        """A channel of which a moment ago the connection stood."""
        if self._channel is not None and _is_ready(self._channel):
            return self._channel
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._on_connected)
        return await asyncio.shield(self._connecting)  # several wait for one connection, and any of them may leave

    def _on_connected(self, task: asyncio.Task[grpc.aio.Channel]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # was told to whoever waited, if anybody still did

    async def _connect(self) -> grpc.aio.Channel:
        channel = self._channel = self._channel or self._open()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                while (state := channel.get_state(try_to_connect=True)) is not READY:
                    if state in FAILED:
                        raise Unreached(f"no connection to {self._target}")
                    await channel.wait_for_state_change(state)
        except (TimeoutError, Unreached) as error:
            self._leave(channel)
            late = isinstance(error, TimeoutError)
            raise Unreached(f"no connection to {self._target} in time" if late else str(error)) from None
        return channel

    def _leave(self, channel: grpc.aio.Channel) -> None:
        """The next request opens a fresh one, which connects at once, and not only after a back-off."""
        self._channel = None
        self._leaving[channel] = task = asyncio.create_task(channel.close(grace=LEAVING_S))
        task.add_done_callback(lambda _: self._leaving.pop(channel, None))

    def _open(self) -> grpc.aio.Channel:
        if self._secure:
            return grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(), options=self._options)
        return grpc.aio.insecure_channel(self._target, options=self._options)


def _is_ready(channel: grpc.aio.Channel) -> bool:
    return bool(channel.get_state() is READY)


async def _is_lost(channel: grpc.aio.Channel) -> bool:
    """Whether the server's UNAVAILABLE is that of a connection that broke, which gRPC says of both alike."""
    try:
        async with asyncio.timeout(NOTICED_S):
            if _is_ready(channel):
                await channel.wait_for_state_change(READY)
    except TimeoutError:
        return False
    return True
