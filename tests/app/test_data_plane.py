"""Requests through the real server to engines on unix sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator

import anthropic
import httpx
import openai
import pytest

from app.routes import ROUTES
from models.types import Availability
from tests.app.serving import MODELS, Served, serving

EVENT = 'data: {"x": 1}\n\n'
WAIT_S = 5.0


async def test_an_answer_reaches_the_client_byte_for_byte(served: Served) -> None:
    answer = await served.chat(fake={"answer": '{"x":  1.50,\n"y":"ü"}', "status": 418})
    assert answer.status_code == 418
    assert answer.content == '{"x":  1.50,\n"y":"ü"}'.encode()
    assert answer.headers["x-engine"] == "1"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["org/chatty", "gpt-4o", "chatty", "ORG/Chatty", "GPT-4O"])
async def test_every_spelling_reaches_the_engine_as_the_served_name(served: Served, name: str) -> None:
    answer = await served.chat(name, big=2**70, fraction=0.1)
    assert answer.json()["model"] == "org/chatty"
    assert b"1180591620717411303424" in served.engines.seen[0].raw


async def test_an_adapter_is_served_by_its_base_under_its_own_name(served: Served) -> None:
    assert (await served.chat("pirate")).json()["model"] == "pirate"
    assert served.engines.loads == ["org/chatty"]


async def test_a_stream_arrives_as_it_is_made(served: Served) -> None:
    body = {"model": "other", "stream": True, "fake": {"stream": [EVENT], "hold_after": 1}}
    async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        parts = answer.aiter_raw()
        assert await asyncio.wait_for(anext(parts), WAIT_S) == EVENT.encode()
        served.engines.may_answer.set()
        assert [part async for part in parts] == []
    assert answer.headers["content-type"] == "text/event-stream"


async def test_a_large_body_passes_unchanged(served: Served) -> None:
    answer = await served.chat("other", padding="x" * 3_000_000)
    assert len(answer.json()["padding"]) == 3_000_000


async def test_engines_get_neither_keys_nor_cookies_nor_queries() -> None:
    async with serving(api_keys=("secret-key-1",)) as served:
        headers = {"authorization": "Bearer secret-key-1", "x-api-key": "secret-key-1", "cookie": "a=b"}
        headers |= {"user-agent": "me/1", "traceparent": "00-1", "x-request-id": "mine", "x-data-parallel-rank": "7"}
        answer = await served.post("/v1/chat/completions?steer=1", {"model": "other"}, headers=headers)
        assert answer.headers["x-request-id"] == "mine"
        seen = served.engines.seen[0]
        assert seen.path == "/v1/chat/completions"
        got = {name.lower(): value for name, value in seen.headers.items()}
        assert set(got) == {
            "host",
            "content-type",
            "content-length",
            "accept",
            "user-agent",
            "traceparent",
            "x-request-id",
            "x-roundhouse-client",
        }
        assert "secret" not in str(got)


async def test_engines_learn_which_requests_are_of_one_client_and_nothing_else_of_it() -> None:
    async with serving(api_keys=("secret-key-1", "secret-key-2")) as served:
        for key, agent in (("1", "me/1"), ("1", "me/1"), ("2", "me/1"), ("1", "you/1")):
            headers = {"authorization": f"Bearer secret-key-{key}", "user-agent": agent}
            assert (await served.post("/v1/chat/completions", {"model": "other"}, headers=headers)).status_code == 200
        first, second, *others = (seen.headers["X-Roundhouse-Client"] for seen in served.engines.seen)
        assert first == second
        assert len({first, *others}) == 3


@pytest.mark.parametrize("given", ["", "x" * 129, "tab\there", "ünïcode"])
async def test_an_unfit_request_id_is_replaced(served: Served, given: str) -> None:
    answer = await served.chat("other")
    answer = await served.client.get("/v1/models", headers=[(b"x-request-id", given.encode())])
    assert len(answer.headers["x-request-id"]) == 32


# Bad input (cases 20 and 22)

BAD_BODIES = {
    b"": "no body",
    b"{": "not valid JSON",
    b"[]": "an array",
    b"null": "null",
    b'"x"': "a string",
    b'{"model": NaN}': "not valid JSON",
    b'{"model": "other", "temperature": NaN}': "not valid JSON",
    b'{"model": "other", "x": "\xff"}': "not valid JSON",
    b'{"model": "other", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}": "not valid JSON",
    b"\x1f\x8b\x08": "not valid JSON",
}


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_malformed_body_is_refused_with_what_is_wrong(served: Served, body: bytes) -> None:
    answer = await served.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert BAD_BODIES[body] in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("value", [b"[],", b"{},", b'{"model":"x"},', b"0,"])
async def test_a_body_that_would_swell_when_it_is_parsed_is_refused(served: Served, value: bytes) -> None:
    body = b'{"model": "other", "x": [' + value * (10_000_000 // len(value)) + b"0]}"
    answer = await served.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "The body holds more than" in answer.json()["error"]["message"]


async def test_brackets_and_commas_within_texts_are_not_counted(served: Served) -> None:
    texts = ['[{,\\"' * 100] * 6_000
    body = {"model": "minilm", "input": texts}
    assert (await served.post("/v1/embeddings", body)).status_code == 200
    unended = b'{"model": "minilm", "input": "' + b'\\"[' * 1_000_000
    answer = await served.client.post("/v1/embeddings", content=unended)
    assert "not valid JSON" in answer.json()["error"]["message"]


async def test_a_long_list_of_tokens_and_a_large_text_pass(served: Served) -> None:
    assert (await served.post("/v1/embeddings", {"model": "minilm", "input": [7] * 1_000_000})).status_code == 200
    assert (await served.post("/v1/embeddings", {"model": "minilm", "input": "x, " * 1_000_000})).status_code == 200


@pytest.mark.parametrize("model", [None, 3, "", ["other"], {"id": "other"}, "x" * 5000])
async def test_a_model_that_is_no_name_is_refused_naming_the_field(served: Served, model: object) -> None:
    answer = await served.post("/v1/chat/completions", {"model": model})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_a_model_is_required(served: Served) -> None:
    answer = await served.post("/v1/embeddings", {"input": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


async def test_an_unknown_model_is_not_found_and_the_nearest_are_named(served: Served) -> None:
    answer = await served.chat("chaty")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "org/chatty" in answer.json()["error"]["message"]


async def test_an_incomplete_model_is_refused_with_the_reason(served: Served) -> None:
    error = (await served.chat("half")).json()["error"]
    assert error["code"] == "model_unusable"
    assert "model-00002-of-00002.safetensors is missing" in error["message"]


async def test_each_route_serves_its_kinds_of_model_and_names_the_right_routes_to_others(served: Served) -> None:
    for path, model in itertools.product(ROUTES, MODELS):
        if model.availability is not Availability.AVAILABLE:
            continue
        answer = await served.post(path, {"model": model.id})
        if ROUTES[path].serves(model):
            assert answer.status_code == 200
            assert served.engines.seen[-1].path == {"/": "/embed"}.get(path, path)
        else:
            assert answer.status_code == 400
            assert "served at /" in answer.text


async def test_a_body_over_the_limit_is_refused_before_it_is_all_read() -> None:
    async with serving(max_body_bytes=10_000) as served:
        sent = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 50_000_000:
                sent += 65_536
                yield b"x" * 65_536

        declared = await served.client.post("/v1/chat/completions", content=b"x" * 10_001)
        assert declared.status_code == 413
        chunked = await served.client.post("/v1/chat/completions", content=chunks())
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "request_too_large")
        control = await served.client.post("/v1/model/load", content=b"x" * 10_001)
        assert control.status_code == 413
        assert (await served.chat("other")).status_code == 200


# Clients that go away, engines that die (cases 1, 6, 7)


async def test_a_client_that_leaves_while_waiting_frees_its_place(served: Served) -> None:
    served.engines.may_load.clear()
    with pytest.raises(httpx.ReadTimeout):
        await served.post("/v1/chat/completions", {"model": "other"}, timeout=0.2)
    async with asyncio.timeout(WAIT_S):
        while served.roundhouse.state.manager.status("other").queued:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fake", [{"hold": 1}, {"stream": [EVENT], "hold_after": 1}, {"stream": [EVENT], "endless": 1}])
async def test_a_client_that_leaves_ends_its_request_at_the_engine_and_no_other(served: Served, fake: object) -> None:
    other = asyncio.create_task(served.chat("other", fake={"hold": 1}))
    await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
    served.engines.arrived.clear()
    leaving = asyncio.create_task(served.chat("other", fake=fake))
    await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
    leaving.cancel()
    seen = served.engines.seen[1]
    await asyncio.wait_for(seen.aborted.wait(), WAIT_S)
    assert served.roundhouse.state.manager.status("other").running == 1
    served.engines.may_answer.set()
    assert (await other).status_code == 200


async def test_a_stream_whose_engine_dies_ends_with_an_error_event(served: Served) -> None:
    answer = await served.chat("other", stream=True, fake={"stream": [EVENT, "data: {half"], "die_after": 1})
    events = answer.text.split("\n\n")
    assert events[0] + "\n\n" == EVENT
    assert json.loads(events[2].removeprefix("data: "))["error"]["code"] == "engine_error"


async def test_an_anthropic_stream_whose_engine_dies_ends_with_its_error_event(served: Served) -> None:
    body = {"model": "other", "stream": True, "fake": {"stream": ["event: ping\ndata: {}\n\n"], "die_after": 1}}
    answer = await served.post("/v1/messages", body)
    name, data = answer.text.split("\n\n")[1].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["type"] == "error"


async def test_a_responses_stream_whose_engine_dies_ends_with_its_error_event(served: Served) -> None:
    stream = ['event: response.created\ndata: {"type": "response.created"}\n\n']
    asked = {"model": "other", "stream": True, "fake": {"stream": stream, "die_after": 1}}
    answer = await served.post("/v1/responses", asked)
    name, data = answer.text.split("\n\n")[1].split("\n")
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert (event["type"], event["code"]) == ("error", "engine_error")
    assert event["message"] == event["error"]["message"]
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="x", max_retries=0) as client:
        extra = {"fake": asked["fake"]}
        events = await client.responses.create(model="other", input="x", stream=True, extra_body=extra)
        with pytest.raises(openai.APIError, match="ended while it answered"):
            _ = [one async for one in events]


async def test_a_request_whose_engine_dies_before_the_first_byte_of_a_stream_is_served_by_a_new_start(
    served: Served,
) -> None:
    answer = await served.chat("other", stream=True, fake={"stream": [EVENT], "die_once_before": 1})
    assert (answer.status_code, answer.text) == (200, EVENT)
    assert served.engines.loads == ["other", "other"]


async def test_what_an_engine_says_of_its_own_end_is_replaced_by_what_became_of_the_request(served: Served) -> None:
    stream = [EVENT, 'data: {"error": "I am dying"}\n\ndata: [DONE]\n\n']
    answer = await served.chat("other", stream=True, fake={"stream": stream, "apart": 1})
    assert answer.text.startswith(EVENT)
    assert "I am dying" not in answer.text
    assert json.loads(answer.text.split("\n\n")[1].removeprefix("data: "))["error"]["code"] == "engine_error"


async def test_a_request_whose_engine_says_that_it_ends_is_served_by_a_new_start(served: Served) -> None:
    answer = await served.chat("other", fake={"last_words_once": 1, "answer": "{}"})
    assert (answer.status_code, answer.text) == (200, "{}")
    assert served.engines.loads == ["other", "other"]


async def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(served: Served) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await served.chat("other", fake={"partial": ['{"half":'], "die_after": 1})


async def test_a_request_whose_engine_died_idle_is_served_by_a_new_start(served: Served) -> None:
    assert (await served.chat("other")).status_code == 200
    await served.engines.engines["other"].die()
    assert (await served.chat("other")).status_code == 200
    assert served.engines.loads == ["other", "other"]


async def test_a_request_that_kills_its_engine_twice_is_told_so(served: Served) -> None:
    answer = await served.chat("other", fake={"die": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
    assert (await served.chat("org/chatty")).status_code == 200


async def test_many_requests_for_a_cold_model_share_one_load_and_those_beyond_the_bound_are_refused() -> None:
    async with serving(max_queued_per_model=20, concurrency=5) as served:
        served.engines.may_load.clear()
        asked = [asyncio.create_task(served.chat("other")) for _ in range(60)]
        refused = 0
        for done in asyncio.as_completed(asked, timeout=WAIT_S):
            answer = await done
            refused += answer.status_code == 503
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
            if refused == 40:
                served.engines.may_load.set()
        assert served.engines.loads == ["other"]


async def test_those_who_wait_for_a_place_are_let_in_one_of_each_client_in_turn() -> None:
    async with serving(concurrency=1) as served:
        manager = served.roundhouse.state.manager
        asked: list[asyncio.Task[httpx.Response]] = []

        async def ask(agent: str, **fake: int) -> None:
            body = {"model": "other", "fake": fake, "name": f"{agent} {len(asked)}"}
            headers = {"user-agent": agent}
            asked.append(asyncio.create_task(served.post("/v1/chat/completions", body, headers=headers)))
            async with asyncio.timeout(WAIT_S):
                while (at := manager.status("other")).running + at.queued < len(asked):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        await ask("indexer", hold=1)
        for agent in ("indexer",) * 3 + ("editor",):
            await ask(agent)
        served.engines.may_answer.set()
        await asyncio.wait_for(asyncio.gather(*asked), WAIT_S)
        order = [json.loads(seen.raw)["name"] for seen in served.engines.seen]
        assert order == ["indexer 0", "indexer 1", "editor 4", "indexer 2", "indexer 3"]


# The protocols' own clients


async def test_openai_and_anthropic_clients_understand_our_errors(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}"
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nope", messages=[])
        assert unknown.value.code == "model_not_found"
        assert "org/chatty" in [model.id async for model in client.models.list()]
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as other:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await other.messages.create(model="nope", max_tokens=1, messages=[{"role": "user", "content": "x"}])
        assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
