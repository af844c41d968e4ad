"""Requests to servers elsewhere, through the whole app: what they get of them, and what of their faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.engine_config import EngineConfig
from engines.base import Declaration
from tests.app.elsewhere import CHAT, EVENT, Elsewhere, elsewhere, http, stream
from tests.app.serving import Served, serving

PATIENCE_S = 10
FAILURES = 3
OPEN_S = 0.1
FAR = "box/demo/chat"
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def remote(
    *servers: Elsewhere, breaker_open_s: float = OPEN_S, declared: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """An app with the models of `servers` under the prefix box/, beside its own."""
    urls = tuple(server.api for server in servers)
    box: dict[str, Any] = {"prefix": "box/", "breaker_failures": FAILURES, "breaker_open_s": breaker_open_s} | (
        declared or {}
    )
    async with serving(elsewhere={"box": Declaration("openai", urls, **box)}, **settings) as served:
        yield served


@pytest.fixture
async def server() -> AsyncIterator[Elsewhere]:
    async with elsewhere() as one:
        yield one


@pytest.fixture
async def served(server: Elsewhere) -> AsyncIterator[Served]:
    async with remote(server) as one:
        yield one


def circuit(served: Served, number: int = 0) -> dict[str, Any]:
    shown: dict[str, Any] = served.roundhouse.state.manager.factories["box"].state()["servers"][number]
    return shown


async def until_state(served: Served, state: str, number: int = 0) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while circuit(served, number)["state"] != state:  # noqa: ASYNC110 - it changes by the clock alone
            await asyncio.sleep(0.005)


async def fail(served: Served, times: int) -> None:
    for _ in range(times):
        assert (await served.chat(FAR)).status_code >= 500


async def test_a_request_goes_there_under_the_servers_name_and_its_answer_comes_back_as_it_was(
    served: Served, server: Elsewhere
) -> None:
    answer = await served.chat(FAR, messages=[], temperature=0.5)
    assert (answer.status_code, answer.content) == (200, CHAT)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.json == {"model": "demo/chat", "messages": [], "temperature": 0.5}


async def test_a_stream_comes_as_it_is_sent(served: Served, server: Elsewhere) -> None:
    server.answer = stream(EVENT, DONE)
    answer = await served.chat(FAR, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.content == EVENT + DONE


async def test_their_models_are_listed_beside_ours_and_told_apart(served: Served) -> None:
    listed = {entry["id"]: entry for entry in (await served.client.get("/v1/models")).json()["data"]}
    assert (listed[FAR]["state"], listed[FAR]["served_elsewhere"]) == ("ready", True)
    assert not listed["org/chatty"]["served_elsewhere"]
    detail = (await served.client.get(f"/v1/models/{FAR}")).json()
    assert any("it is served elsewhere, by 127.0.0.1" in reason for reason in detail["reasons"])


# As clients of OpenAI's API take a base URL: what a user configures, and where its server is asked then.
BASES = {
    "": "/v1",  # http://gpu-box:8000
    "/v1/": "/v1",
    "/": "",  # https://llm.example.com/
    "/api/v1": "/api/v1",  # https://openrouter.ai/api/v1
    "/openai/v1/": "/openai/v1",  # https://api.groq.com/openai/v1, https://….openai.azure.com/openai/v1/
    "/v1beta/openai/": "/v1beta/openai",  # https://generativelanguage.googleapis.com/v1beta/openai/
    "/inference": "/inference",  # https://models.github.ai/inference
}


async def test_an_api_is_asked_where_the_url_says_and_at_v1_where_it_says_nothing(server: Elsewhere) -> None:
    declared = {}
    for number, configured in enumerate(BASES):
        config = EngineConfig(kind="openai", url=server.url + configured, prefix=f"{number}/")
        declared[f"box{number}"] = config.declaration(allow_install=False, install_timeout_s=1)
    async with serving((), elsewhere=declared) as served:
        for number in range(len(BASES)):
            assert (await served.chat(f"{number}/demo/chat")).status_code == 200
        beside = [
            (await served.post("/tokenize", {"model": f"{number}/demo/chat"})).status_code for number in (1, 4, 5)
        ]
    assert beside == [200, 200, 200]
    *asked, own, gate, literal = [asked.path for asked in server.asked]
    assert asked == [base + "/chat/completions" for base in BASES.values()]
    assert server.listed_at == {base + "/models" for base in BASES.values()}
    assert (own, gate, literal) == ("/tokenize", "/openai/tokenize", "/v1beta/openai/tokenize")


async def test_keys_are_not_mixed_up(server: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_KEY", "sk-the-servers")
    async with remote(server, declared={"api_key_env": "BOX_KEY"}, api_key="sk-our-clients") as served:
        headers = {"authorization": "Bearer sk-our-clients"}
        assert (await served.chat(FAR)).status_code == 401
        assert (await served.post("/v1/chat/completions", {"model": FAR}, headers=headers)).status_code == 200
        (asked,) = server.asked
        assert asked.headers["authorization"] == "Bearer sk-the-servers"
        assert "sk-our-clients" not in str(asked)
        assert "x-roundhouse-client" not in asked.headers
        hidden, shown = await served.client.get("/health"), await served.client.get("/health", headers=headers)
    assert "sk-the-servers" not in shown.text
    assert str(server.port) in shown.text
    assert str(server.port) not in hidden.text


async def test_a_model_is_configured_as_those_of_the_folder_are(server: Elsewhere) -> None:
    models = {FAR: {"aliases": ["far"], "task": "embed", "concurrency": 7}}
    async with remote(server, models=models) as served:
        assert (await served.chat("far")).json()["error"]["code"] == "wrong_model_task"
        assert (await served.post("/v1/embeddings", {"model": "far", "input": "x"})).status_code == 200


async def test_of_an_id_that_both_have_the_folder_s_is_used_unless_the_configuration_names_the_other(
    server: Elsewhere,
) -> None:
    server.models = ["other"]
    for engine, expected in ((None, 0), ("box", 1)):
        async with remote(server, declared={"prefix": ""}, models={"other": {"engine": engine}}) as served:
            assert (await served.chat("other")).status_code == 200
        assert len(server.asked) == expected


# -- the circuit breaker ---------------------------------------------------------------------------------------------


async def test_a_server_that_is_gone_opens_its_circuit_and_from_then_on_requests_fail_at_once(
    server: Elsewhere,
) -> None:
    async with remote(server, breaker_open_s=60) as served:
        await server.kill()
        first = await served.chat(FAR)
        assert (first.status_code, first.json()["error"]["code"]) == (503, "engine_unavailable")
        assert f"no connection to 127.0.0.1:{server.port}: Connection refused" in first.json()["error"]["message"]
        assert circuit(served)["failures"] == 1
        await fail(served, FAILURES - 1)
        await server.start()  # it is back, and would answer: that it is not asked is why they fail at once
        refused = await served.chat(FAR)
        assert server.asked == []
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (503, "engine_unavailable")
        assert 55 < int(refused.headers["retry-after"]) <= 60
        assert f"127.0.0.1:{server.port} failed {FAILURES} times in a row" in error["message"]
        assert "is tried again in" in error["message"]
        assert (await served.chat("other")).status_code == 200
        engine = (await served.client.get("/health")).json()["engines"]["box"]
        metrics = (await served.client.get("/metrics")).text
    (told,) = engine["servers"]
    assert (engine["state"], told["state"], told["failures"]) == ("unavailable", "open", FAILURES)
    assert 55 < told["retry_after_s"] <= 60
    labels = f'engine="box",server="127.0.0.1:{server.port}"'
    assert f'roundhouse_server_state{{{labels},state="open"}} 1.0' in metrics
    assert f"roundhouse_server_running{{{labels}}} 0.0" in metrics


async def test_back_again_it_is_in_use_after_one_trial_while_which_others_are_refused(
    served: Served, server: Elsewhere
) -> None:
    await server.kill()
    await fail(served, FAILURES)
    server.may_answer.clear()
    await server.start()
    await until_state(served, "half_open")
    trial = asyncio.create_task(served.chat(FAR))
    await asyncio.wait_for(server.arrived.wait(), PATIENCE_S)
    refused = await served.chat(FAR)
    assert (refused.status_code, len(server.asked)) == (503, 1)
    assert "it is being tried with one request now" in refused.json()["error"]["message"]
    server.may_answer.set()
    assert (await trial).status_code == 200
    assert (await served.chat(FAR)).status_code == 200
    assert circuit(served)["state"] == "closed"


async def test_a_trial_whose_client_leaves_frees_its_place(served: Served, server: Elsewhere) -> None:
    await server.kill()
    await fail(served, FAILURES)
    server.may_answer.clear()
    await server.start()
    await until_state(served, "half_open")
    with pytest.raises(httpx.ReadTimeout):
        await served.post("/v1/chat/completions", {"model": FAR}, timeout=0.2)
    async with asyncio.timeout(PATIENCE_S):
        while circuit(served)["running"]:  # noqa: ASYNC110 - the server notices its client's end by itself
            await asyncio.sleep(0.005)
    server.may_answer.set()
    assert (await served.chat(FAR)).status_code == 200


async def test_the_end_of_a_long_answer_is_not_waited_for_by_those_after_the_trial(
    served: Served, server: Elsewhere
) -> None:
    await server.kill()
    await fail(served, FAILURES)
    server.answer, server.endless = stream(EVENT, ends=False), True
    await server.start()
    await until_state(served, "half_open")
    body = {"model": FAR, "stream": True}
    async with served.client.stream("POST", "/v1/chat/completions", json=body) as trial:
        assert await anext(trial.aiter_bytes()) == EVENT
        server.answer, server.endless = http(CHAT), False
        assert (await served.chat(FAR)).status_code == 200


async def test_with_another_server_nobody_notices_that_one_is_gone(server: Elsewhere) -> None:
    async with elsewhere() as other, remote(server, other, declared={"breaker_failures": 100}) as served:
        await server.kill()
        answers = [await served.chat(FAR) for _ in range(FAILURES + 2)]
        assert [answer.status_code for answer in answers] == [200] * (FAILURES + 2)
        assert len(other.asked) == FAILURES + 2
        await other.kill()
        before = [circuit(served, number)["failures"] for number in (0, 1)]
        assert (await served.chat(FAR)).status_code == 503
        assert [circuit(served, number)["failures"] for number in (0, 1)] == [before[0] + 1, before[1] + 1]


async def test_the_server_with_the_fewest_running_requests_is_asked(server: Elsewhere) -> None:
    async with elsewhere() as other, remote(server, other) as served:
        server.may_answer.clear()
        busy = asyncio.create_task(served.chat(FAR))
        await asyncio.wait_for(server.arrived.wait(), PATIENCE_S)
        assert (await served.chat(FAR)).status_code == 200
        assert (await served.chat(FAR)).status_code == 200
        assert (len(server.asked), len(other.asked)) == (1, 2)
        server.may_answer.set()
        await busy


async def test_refusals_do_not_open_the_circuit_and_errors_of_the_server_do(server: Elsewhere) -> None:
    async with remote(server, breaker_open_s=60) as served:
        server.answer = http(b'{"error": {"message": "too long"}}', 400)
        for _ in range(FAILURES + 1):
            answer = await served.chat(FAR)
            assert (answer.status_code, answer.json()) == (400, {"error": {"message": "too long"}})
        assert circuit(served)["failures"] == 0
        server.answer = http(b'{"error": {"message": "oh no"}}', 500)
        for _ in range(FAILURES):
            assert (await served.chat(FAR)).json() == {"error": {"message": "oh no"}}
        assert circuit(served)["state"] == "open"


# -- what is sent twice, and what is not -----------------------------------------------------------------------------


async def test_a_request_that_a_server_has_read_is_never_sent_again(served: Served, server: Elsewhere) -> None:
    server.answer = None
    answer = await served.chat(FAR)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
    assert len(server.asked) == 1
    assert circuit(served)["failures"] == 1


async def test_not_even_to_another_server(server: Elsewhere) -> None:
    async with elsewhere(answer=None) as other, remote(server, other) as served:
        server.answer = None
        assert (await served.chat(FAR)).status_code == 502
        assert len(server.asked) + len(other.asked) == 1


# -- servers that answer anything ------------------------------------------------------------------------------------

HALF = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + b'content-length: 999\r\n\r\n{"half": '
GARBAGE = {
    "is not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no JSON: '<html> Welcome": http(b"<html>\n Welcome</html>", kind="text/html"),
    "status 502 and no JSON": http(b"<h1>Bad gateway</h1>", 502, "text/html"),
    "status 302": http(b"", 302, headers={"location": "http://127.0.0.1:1/"}),
    "before the end of its answer": HALF,
    "no JSON": http(b'{"trunc'),
    "control characters": http(CHAT, headers={"x-odd": "\1"}),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_is_no_answer_becomes_an_error_in_the_client_s_protocol(server: Elsewhere, path: str) -> None:
    async with remote(server, declared={"breaker_failures": 100}) as served:
        for count, (why, server.answer) in enumerate(GARBAGE.items(), 1):
            answer = await served.post(path, {"model": FAR, "messages": []})
            assert answer.status_code == 502
            assert "location" not in answer.headers
            assert why in answer.json()["error"]["message"]
            assert answer.json().get("type") == ("error" if path == "/v1/messages" else None)
            assert circuit(served)["failures"] == count
            assert "<" not in circuit(served)["error"]  # what this client was to get is nobody else's to read
        assert (await served.chat("other")).status_code == 200


@pytest.mark.parametrize("body", [b'{"detail": "Not Found"}', b"404 page not found"])
async def test_a_route_that_the_server_has_not_is_said_to_be_missing_there(
    served: Served, server: Elsewhere, body: bytes
) -> None:
    server.answer = http(body, 404)
    answer = await served.chat(FAR)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "answered with status 404" in answer.json()["error"]["message"]
    assert circuit(served)["failures"] == 0


async def test_a_server_that_refuses_our_key_says_nothing_of_it_to_clients(served: Served, server: Elsewhere) -> None:
    server.answer = http(b'{"error": {"message": "Incorrect API key provided: sk-abc"}}', 401)
    answer = await served.chat(FAR)
    assert answer.status_code == 503
    assert "api_key_env of box" in answer.json()["error"]["message"]
    assert "sk-abc" not in answer.text


async def test_a_proxy_that_refuses_us_is_nothing_that_clients_could_answer(served: Served, server: Elsewhere) -> None:
    server.answer = http(b'{"error": "log in"}', 407, headers={"proxy-authenticate": "Basic"})
    answer = await served.chat(FAR)
    assert (answer.status_code, "HTTP_PROXY" in answer.json()["error"]["message"]) == (503, True)


async def test_a_stream_that_breaks_off_ends_with_an_error_event(served: Served, server: Elsewhere) -> None:
    server.answer = stream(EVENT, ends=False)
    received = (await served.chat(FAR, stream=True)).content
    assert received.startswith(EVENT)
    error = json.loads(received.removeprefix(EVENT).removeprefix(b"data: "))["error"]
    assert "The server of" in error["message"]
    assert circuit(served)["failures"] == 1


@pytest.mark.parametrize("begins", [False, True])
async def test_a_server_that_falls_silent_is_given_up(server: Elsewhere, begins: bool) -> None:
    server.answer, server.endless = HALF, True
    if not begins:
        server.may_answer.clear()
    async with remote(server, upstream_idle_timeout_s=0.2) as served:
        answer = await served.chat(FAR)
        assert answer.status_code == 502
        assert "sent nothing for 0.2 s" in answer.json()["error"]["message"]
        assert circuit(served)["failures"] == 1


async def test_an_answer_too_long_to_be_looked_at_first_comes_whole(served: Served, server: Elsewhere) -> None:
    body = json.dumps({"data": "x" * (3 << 20)}).encode()
    server.answer = http(body)
    assert (await served.chat(FAR)).content == body


async def test_what_names_the_servers_account_is_kept_from_clients(served: Served, server: Elsewhere) -> None:
    secret = {"openai-organization": "acme", "set-cookie": "a=b", "strict-transport-security": "max-age=9"}
    server.answer = http(CHAT, headers=secret | {"x-ratelimit-remaining": "7"})
    headers = (await served.chat(FAR)).headers
    assert not secret.keys() & headers.keys()
    assert headers["x-ratelimit-remaining"] == "7"


async def test_without_its_key_an_engine_s_models_say_which_variable_is_missing(
    server: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BOX_KEY", raising=False)
    declared = {"api_key_env": "BOX_KEY", "models": {"mine": "demo/chat"}}
    async with remote(server, declared=declared) as served:
        answer = await served.chat("mine")
    assert answer.status_code == 503
    assert "BOX_KEY" in answer.json()["error"]["message"]
