"""Keys, Host, Origin and the allowlist of paths (cases 15, 16, 18, 19)."""

from __future__ import annotations

import asyncio

import pytest

from app.auth import HostCheck, KeyRing, OriginCheck, check_bind, is_loopback, split_host
from app.config import ConfigError
from app.errors import Forbidden
from app.routes import ROUTES
from tests.app.serving import Served, serving
from utils.logging import logger

KEY = "correct-horse-battery"
DATA_ROUTES = [
    *(("POST", path) for path in ROUTES),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/other"),
    ("POST", "/v1/model/load"),
    ("POST", "/v1/model/unload"),
    ("GET", "/v1/model/explain"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/no/such/route"),
]
HEALTH = ("/health", "/health/live", "/health/ready")


async def raw_request(port: int, target: str, method: str = "POST", head: str = "") -> tuple[int, bytes]:
    """A request whose target no client library has tidied; the status and the body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = "Host: localhost\r\nContent-Length: 2\r\nConnection: close\r\n"
    writer.write(f"{method} {target} HTTP/1.1\r\n{fields}{head}\r\n{{}}".encode())
    answer = await asyncio.wait_for(reader.read(), 5.0)
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


async def test_every_route_but_health_needs_a_key() -> None:
    async with serving(api_keys=("another-key", KEY)) as served:
        wrong = [None, "wrong-key-1234", KEY[:-1], KEY + "x", KEY.upper(), f"{KEY},another-key"]
        for number, (method, path) in enumerate(DATA_ROUTES):
            for key in wrong if number == 0 else wrong[:2]:  # one gate for all: nobody parses keys by route
                given = [{}] if key is None else [{"authorization": f"Bearer {key}"}, {"x-api-key": key}]
                for headers in given:
                    answer = await served.client.request(method, path, headers=headers, content=b"{}")
                    assert answer.status_code == 401, (method, path, headers)
                    assert "API key" in answer.text
                    assert KEY not in answer.text
            for headers in ({"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}):
                answer = await served.client.request(method, path, headers=headers, content=b"{}")
                assert answer.status_code != 401, (method, path)
        for path in HEALTH:
            assert (await served.client.get(path)).status_code == 200
            assert (await served.client.head(path)).content == b""


async def test_a_browser_is_asked_for_the_key_as_a_password_where_pages_are_read_and_nowhere_else() -> None:
    async with serving(api_keys=(KEY,)) as served:
        for path in ("/docs", "/openapi.json", "/"):
            refused = await served.client.get(path)
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert (await served.client.get(path, auth=("anybody", KEY), follow_redirects=True)).status_code == 200
            for wrong in ("Basic", "Basic !", "Basic eDp5", f"Basic {KEY}"):
                assert (await served.client.get(path, headers={"authorization": wrong})).status_code == 401
        for path in ("/v1/models", "/metrics", "/v1/events", "/docs/"):
            refused = await served.client.get(path, auth=("anybody", KEY))
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_browser_that_is_given_the_address_alone_comes_to_the_documentation() -> None:
    async with serving() as served:
        for method in ("GET", "HEAD"):
            answer = await served.client.request(method, "/")
            assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
        assert (await served.client.delete("/")).status_code == 405


async def test_anthropic_routes_refuse_in_anthropics_shape() -> None:
    async with serving(api_keys=(KEY,)) as served:
        answer = await served.post("/v1/messages", {"model": "other"})
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "authentication_error"


INTERNAL = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/engine/sleep",
    "/engine/wake",
    "/pause",
    "/resume",
    "/v1/load_lora_adapter",
    "/abort_requests",
]
SPELLINGS = [
    "{}",
    "/{}",
    "/v1/..{}",
    "/%2e%2e{}",
    "{}/",
    "{}?level=1",
    "{};x",
    "/v1/chat/completions/..{}",
    "http://x{}",
]


async def test_engines_own_routes_do_not_exist_however_they_are_spelled(served: Served) -> None:
    targets = [spelling.format(path) for path in INTERNAL for spelling in SPELLINGS]
    targets += ["/%73leep", "/%2573leep", "/SLEEP", "/v1/%6Coad_lora_adapter", "/v1/models/../sleep", "/invocations"]
    for target in targets:
        status, body = await raw_request(served.port, target)
        assert status in (404, 405), target  # 405 where `..` ends up inside GET /v1/models/{id}
        assert b'"error"' in body
        status, body = await raw_request(served.port, target, "GET")
        assert status == 404, target
    assert served.engines.seen == []
    assert served.engines.loads == []


async def test_a_wrong_method_is_refused_naming_the_right_one(served: Served) -> None:
    for path, method, allowed in [
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/models", "DELETE", "GET"),
        ("/v1/model/load", "GET", "POST"),
        ("/health", "POST", "GET, HEAD"),
    ]:
        answer = await served.client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_a_path_that_misses_a_route_by_a_base_url_is_told_the_route(served: Served) -> None:
    for path in ("/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"):
        message = (await served.post(path, {})).json()["error"]["message"]
        assert message == f"There is no route {path}; did you mean /v1/chat/completions?"
    assert "did you mean /v1/models?" in (await served.client.get("/models")).json()["error"]["message"]
    ollama = await served.post("/api/chat", {"model": "other"})
    assert (ollama.status_code, ollama.json()["error"]["code"]) == (404, "not_found")
    assert "OpenAI's API is at /v1" in ollama.json()["error"]["message"]


async def test_a_foreign_host_is_refused_on_loopback() -> None:
    async with serving(allowed_hosts=("my.host",)) as served:
        evil = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0")
        for host in evil:
            for method, path in DATA_ROUTES:
                answer = await served.client.request(method, path, headers={"host": host}, content=b"{}")
                assert answer.status_code == 403, (host, path)
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:80", "my.host", "MY.host:443"):
            assert (await served.client.get("/v1/models", headers={"host": host})).status_code == 200, host
    assert served.engines.seen == []


async def test_a_page_of_a_foreign_origin_changes_nothing(served: Served) -> None:
    port = served.port
    for origin in (
        "https://evil.example",
        "null",
        f"http://127.0.0.1:{port + 1}",
        "file://",
        f"http://x@127.0.0.1:{port}",
    ):
        for method, path in DATA_ROUTES:
            if method == "POST":
                answer = await served.post(path, {"model": "other"}, headers={"origin": origin})
                assert answer.status_code == 403, (origin, path)
    assert served.engines.loads == []
    assert (await served.chat("other")).status_code == 200
    own = await served.post("/v1/model/load", {"model": "other"}, headers={"origin": f"http://127.0.0.1:{port}"})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers


def test_where_no_key_is_asked_for_a_name_that_a_stranger_points_here_is_no_origin_of_ours() -> None:
    hosts = HostCheck("0.0.0.0", ("chat.example",))  # as in a container whose port is published to loopback
    anonymous, with_keys = OriginCheck((), hosts.names_us), OriginCheck(())
    for host in (
        b"localhost:8000",
        b"127.0.0.1:8000",
        b"[::1]:8000",
        b"192.168.1.5",
        b"roundhouse:8000",
        b"chat.example",
    ):
        anonymous.check({b"origin": b"http://" + host, b"host": host}, "POST")
    for host in (b"evil.example:8000", b"127.0.0.1.evil.example", b"localhost.evil.example:8000", b"evil.example."):
        headers = {b"origin": b"http://" + host, b"host": host}
        with pytest.raises(Forbidden):
            anonymous.check(headers, "POST")
        with_keys.check(headers, "POST")


async def test_a_configured_origin_may_use_every_route_and_no_other_may() -> None:
    async with serving(cors_origins=("https://chat.example",), api_keys=(KEY,)) as served:
        asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "authorization,content-type"
        for path in ("/v1/chat/completions", "/v1/models", "/v1/model/load"):
            preflight = await served.client.options(path, headers=asked)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            foreign = await served.client.options(path, headers=asked | {"origin": "https://evil.example"})
            assert foreign.status_code == 401
            assert "access-control-allow-origin" not in foreign.headers
        headers = {"origin": "https://chat.example", "authorization": f"Bearer {KEY}"}
        answer = await served.post("/v1/chat/completions", {"model": "other"}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        refused = await served.post("/v1/chat/completions", {}, headers=headers | {"authorization": "Bearer wrong"})
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"


async def test_keys_are_never_logged_nor_sent_upstream(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level=0, format="{message} {extra} {exception}")
    async with serving(api_keys=(KEY,)) as served:
        for headers in (
            {"authorization": f"Bearer {KEY}"},
            {"x-api-key": KEY},
            {"authorization": "Bearer typed-wrong"},
        ):
            await served.post("/v1/chat/completions?key=" + KEY, {"model": "other"}, headers=headers)
            await served.post("/v1/model/load", {"model": "nope"}, headers=headers)
        assert all(KEY not in str(seen) for seen in served.engines.seen)
    logger.remove(sink)
    output = "".join(lines) + capsys.readouterr().err
    assert "/v1/chat/completions" in output
    assert KEY not in output
    assert "typed-wrong" not in output


async def test_a_path_cannot_forge_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as served:
        await raw_request(served.port, "/x%0a2026-01-01%20forged")
    lines = [line for line in capsys.readouterr().err.splitlines() if "forged" in line]
    assert len(lines) == 1
    assert "/x%0a2026-01-01%20forged" in lines[0]


# The bind rule (case 17)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_without_a_key_only_loopback_is_bound(host: str) -> None:
    with pytest.raises(ConfigError, match="ROUNDHOUSE_API_KEY"):
        check_bind(host, KeyRing(()), allow_anonymous=False)
    check_bind(host, KeyRing((KEY,)), allow_anonymous=False)
    check_bind(host, KeyRing(()), allow_anonymous=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, KeyRing(()), allow_anonymous=False)


def test_hosts_are_split_from_their_ports() -> None:
    assert split_host(b"[::1]:80") == "::1"
    assert split_host(b"::1") == "::1"
    assert split_host(b"A.b:80") == "a.b"
