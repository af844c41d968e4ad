"""Servers elsewhere that are only to be had through the proxy of a company: a real one, on a loopback port."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp.connector
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engines.base import Declaration
from engines.remote.proxies import proxy_for
from tests.app.elsewhere import CHAT, copy_stream, elsewhere
from tests.app.kserve_server import kserve_server
from tests.app.serving import Served, serving
from tests.app.test_kserve import INFER, request

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
USER, PASSWORD = "me", "geheim"
ALLOWED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class Proxy:
    """Knows the way to `ports`, by name; what it was asked is in `asked`, each as `METHOD target`."""

    ports: dict[str, int] = field(default_factory=dict)
    port: int = 0
    asked: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.decode().split("\r\n", 1)[0].split(" ")
            self.asked.add(f"{method} {target}")
            if f"proxy-authorization: {ALLOWED}".lower() not in head.decode().lower():
                writer.write(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
                writer.close()
                return
            name = target.partition("://")[2].partition("/")[0] or target
            there, back = await asyncio.open_connection("127.0.0.1", self.ports[name.partition(":")[0]])
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:  # once; the server here does not mind what the target looks like, so the path alone goes on
                path = target.partition(name)[2]
                back.write(head.replace(target.encode(), path.encode(), 1))
            await asyncio.gather(copy_stream(reader, back), copy_stream(there, writer))


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    one = Proxy()
    async with await asyncio.start_server(one.serve, "127.0.0.1", 0) as listening:
        one.port = listening.sockets[0].getsockname()[1]
        yield one


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key and certificate of far.test, which clients of this process trust for one test."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("far.test")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path / "far.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption()))
    trusting = ssl.create_default_context(cafile=str(path))
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", trusting)
    return path


@asynccontextmanager
async def with_tls(port: int, certificate: Path) -> AsyncIterator[int]:
    """The port at which what is at `port` speaks TLS."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy_stream(reader, back), copy_stream(there, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with await asyncio.start_server(carry, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


def box(url: str, **more: Any) -> Declaration:
    return Declaration("openai", (url,), **more)


async def shown(served: Served) -> str:
    return (await served.client.get("/health")).text


async def test_servers_far_away_are_asked_through_the_proxies_of_the_environment_and_near_ones_are_not(
    proxy: Proxy, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    async with elsewhere() as far, elsewhere() as near, kserve_server() as triton:
        async with with_tls(far.port, certificate) as tls_port:
            proxy.ports |= {"far.test": tls_port, "plain.test": far.port, "triton.test": triton.port}
            declared = {
                "tls": box("https://far.test/v1", prefix="tls/"),
                "plain": box("http://plain.test/v1", prefix="plain/"),
                "near": box(near.api, prefix="near/"),
                "triton": Declaration("triton", ("grpc://triton.test:80",)),
            }
            async with serving(elsewhere=declared) as served:
                for model in ("tls/demo/chat", "plain/demo/chat", "near/demo/chat"):
                    assert (await served.chat(model)).content == CHAT
                assert (await served.post(INFER, request())).status_code == 200
                assert (await served.chat("other")).status_code == 200  # an engine of ours
        assert proxy.asked == {
            "CONNECT far.test:443",
            "GET http://plain.test/v1/models",
            "POST http://plain.test/v1/chat/completions",
            "CONNECT triton.test:80",
        }
        assert [asked.path for asked in far.asked] == ["/v1/chat/completions"] * 2
        assert "proxy-authorization" not in far.asked[0].headers  # the one by TLS


async def test_a_proxy_that_does_not_let_us_through_is_told_without_its_password(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url.replace(PASSWORD, "falsch"))
    async with serving((), elsewhere={"tls": box("https://far.test/v1", models={"far": "far"})}) as served:
        refused = await served.chat("far")
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert "its proxy (HTTPS_PROXY) answered with status 407" in refused.json()["error"]["message"]
        told = await shown(served)
    assert '"failures":1' in told
    assert "falsch" not in refused.text + told + "".join(capfd.readouterr())


async def test_a_proxy_that_is_down_is_told_as_such(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://me:geheim@127.0.0.1:1")
    async with serving((), elsewhere={"far": box("http://far.test/v1", models={"far": "far"})}) as served:
        refused = await served.chat("far")
        assert refused.status_code == 503
        assert "no connection to its proxy 127.0.0.1:1: Connection refused" in refused.json()["error"]["message"]
        assert PASSWORD not in refused.text + await shown(served)


@pytest.mark.parametrize(
    ("url", "no_proxy", "through"),
    [
        ("https://far.test", "", True),
        ("http://10.1.2.3:8000/v1", "", True),
        ("grpcs://far.test:443", "", True),
        ("http://localhost:8000", "", False),
        ("http://127.0.0.9:8000", "", False),
        ("http://[::1]:8000", "", False),
        ("https://far.test", "far.test", False),
        ("https://a.far.test/v1", "near.test, .far.test", False),
        ("https://notfar.test", "far.test", True),
        ("http://10.1.2.3:8000/v1", "10.0.0.0/8", False),
        ("http://11.1.2.3:8000/v1", "10.0.0.0/8", True),
        ("https://far.test", "*", False),
    ],
)
def test_no_proxy_and_this_machine_are_asked_directly(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, url: str, no_proxy: str, through: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.test:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_for(url) == ("http://proxy.test:3128" if through else None)


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("socks5://proxy.test:1080", "https://far.test/v1"),
        ("http://proxy.test:none", "https://far.test/v1"),
        ("https://proxy.test:443", "grpcs://far.test"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_in_the_log(
    monkeypatch: pytest.MonkeyPatch, proxy: Proxy, caplog: pytest.LogCaptureFixture, named: str, url: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", named)
    assert proxy_for(url) is None
    assert "far.test is asked directly" in caplog.text
