"""HTTP clients to the engines: one pool of connections per endpoint."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from engines.base import Endpoint

if TYPE_CHECKING:
    from utils.kserve_grpc import KServeChannel

KEEP_ALIVE_S = 3.0  # vLLM closes idle connections after 5 s; ours must go first
LARGE_BODY_BYTES = 1 << 20  # beyond this, aiohttp wants a file-like object rather than bytes
READ_BUFFER_BYTES = 1 << 16
API = "/v1"  # in the routes

# No byte of the request left us; ClientHttpProxyError: its proxy has not connected us.
NEVER_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
# An engine that cannot be reached, or that closed the connection before its answer's end.
UNREACHABLE = (aiohttp.ClientConnectionError, ConnectionError, aiohttp.ClientPayloadError)
BROKEN = (*UNREACHABLE, aiohttp.ClientResponseError, TimeoutError)


class Upstream:
    """The connections to one endpoint."""

    def __init__(self, endpoint: Endpoint, timeout: aiohttp.ClientTimeout) -> None:
        self.endpoint = endpoint
        connector: aiohttp.BaseConnector = (
            aiohttp.UnixConnector(str(endpoint.uds), limit=0, keepalive_timeout=KEEP_ALIVE_S)
            if endpoint.uds
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            read_bufsize=READ_BUFFER_BYTES,
            trust_env=False,  # engines on this machine are never asked through a proxy
            proxy=endpoint.proxy,
        )
        self._urls: dict[str, URL] = {}
        self.running = 0

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], *, known: bool = True
    ) -> aiohttp.ClientResponse:
        """Sends the request; returns when the answer's headers are there. Never follows a redirect.

        `known`: the path is one of few, and not made of what clients say.
        """
        url = self._urls.get(path)
        if url is None:
            url = self._url(path)
            if known:
                self._urls[path] = url
        data = body if len(body) <= LARGE_BODY_BYTES else io.BytesIO(body)
        return await self._session.post(url, data=data, headers=headers, allow_redirects=False)

    async def get(self, path: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """As `post`."""
        return await self._session.get(self._url(path), headers=headers, allow_redirects=False)

    def _url(self, path: str) -> URL:
        if path.startswith(API + "/"):
            path = self.endpoint.api_path + path.removeprefix(API)
        return URL(self.endpoint.base_url + path, encoded=True)

    async def close(self) -> None:
        await self._session.close()


class Upstreams:
    """Finds the pool of an endpoint; forgets those whose socket is gone."""

    def __init__(self, connect_timeout_s: float, idle_timeout_s: float) -> None:
        # `connect`: looking the name up and TLS included.
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_read=idle_timeout_s)
        self._connect_timeout_s = connect_timeout_s
        self._pools: dict[tuple[object, str, str], Upstream] = {}
        self._channels: dict[str, KServeChannel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, endpoint: Endpoint) -> Upstream:
        key = (endpoint.uds, endpoint.base_url, endpoint.api_path)
        pool = self._pools.get(key)
        if pool is None:
            self._forget_gone()
            pool = self._pools[key] = Upstream(endpoint, self._timeout)
        return pool

    def channel(self, endpoint: Endpoint) -> KServeChannel:
        """To a server that is asked by gRPC."""
        channel = self._channels.get(endpoint.base_url)
        if channel is None:
            from utils.kserve_grpc import KServeChannel  # brings grpc, which only those need who have such a server

            channel = self._channels[endpoint.base_url] = KServeChannel(
                endpoint.base_url, self._connect_timeout_s, endpoint.proxy
            )
        return channel

    def _forget_gone(self) -> None:
        for key, pool in list(self._pools.items()):
            uds = pool.endpoint.uds
            if uds is not None and pool.running == 0 and not uds.exists():
                task = asyncio.ensure_future(self._pools.pop(key).close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for pool in list(self._pools.values()):
            await pool.close()
        self._pools.clear()
        for channel in list(self._channels.values()):
            await channel.close()
        self._channels.clear()
        if self._closing:
            await asyncio.gather(*self._closing)
