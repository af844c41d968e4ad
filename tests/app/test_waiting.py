"""Requests that wait: streaming ones are told what for, others for no longer than they may."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest

from app import waiting
from engines.base import EngineStartError
from models.scheduling.forecast import Forecast
from models.types import State
from tests.app.serving import Served, serving
from tests.app.test_protocol import until_idle

EVENT = 'data: {"x": 1}\n\n'
WAIT_S = 5.0


async def waits(served: Served, path: str = "/v1/chat/completions", **fake: object) -> str:
    """The answer to a streaming request whose model goes on loading when the first comment has come."""
    served.engines.may_load.clear()
    body = {"model": "other", "stream": True, "fake": fake}
    async with served.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        parts = answer.aiter_text()
        comment = await asyncio.wait_for(anext(parts), WAIT_S)
        assert comment.startswith(": waiting for other: loading")
        served.engines.may_load.set()
        told = comment + "".join([part async for part in parts])
    return "".join(line + "\n" for line in told.split("\n") if not line.startswith(":")).strip()


async def test_who_waits_for_an_engine_that_is_being_installed_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as served:
        manager = served.roundhouse.state.manager
        monkeypatch.setattr(manager, "preparing", lambda spec: "installing the environment")
        text = waiting.WaitTexts(manager).of(manager.catalog.resolve("other"))
        assert text == "waiting for other: installing the environment"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_comments_precede_the_stream(path: str) -> None:
    async with serving(sse_comment_s=0.05) as served:
        assert await waits(served, path, stream=[EVENT]) == EVENT.strip()


async def test_an_engines_error_after_a_comment_is_an_error_event() -> None:
    async with serving(sse_comment_s=0.05) as served:
        told = await waits(served, answer='{"error": {"message": "too long"}}', status=400)
        assert json.loads(told.removeprefix("data: ")) == {"error": {"message": "too long"}}


async def test_a_long_error_of_an_engine_after_a_comment_is_told_whole() -> None:
    async with serving(sse_comment_s=0.05) as served:
        told = await waits(served, "/v1/responses", partial=['{"error": {"message": "', "x" * 40_000, '"}}'])
        assert json.loads(told.removeprefix("event: error\ndata: "))["message"] == "x" * 40_000


async def test_a_failed_load_after_a_comment_is_an_error_event_in_the_clients_protocol() -> None:
    async with serving(sse_comment_s=0.05) as served:
        served.engines.load_errors["other"] = EngineStartError("truncated")
        told = await waits(served, "/v1/messages")
        assert told.startswith("event: error\ndata: ")
        assert "truncated" in told


async def test_without_stream_nothing_precedes_the_answer() -> None:
    async with serving(sse_comment_s=0.02) as served:
        served.engines.may_load.clear()
        asked = asyncio.create_task(served.chat("other", fake={"status": 400}))
        await asyncio.sleep(0.1)
        served.engines.may_load.set()
        assert (await asked).status_code == 400


async def test_the_openai_client_reads_over_comments_and_raises_what_is_told() -> None:
    async with serving(sse_comment_s=0.02) as served:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            served.engines.may_load.clear()
            extra = {"fake": {"answer": '{"error": {"message": "too long"}}', "status": 400}}
            asked = client.chat.completions.create(model="other", messages=[], stream=True, extra_body=extra)
            stream = await asyncio.wait_for(asked, WAIT_S)
            served.engines.may_load.set()
            with pytest.raises(openai.APIError, match="too long"):
                _ = [chunk async for chunk in stream]


async def test_the_first_comment_comes_soon_however_rare_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting.FIRST_S <= 1.0
    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    async with serving(sse_comment_s=3600) as served:
        assert await waits(served, stream=[EVENT]) == EVENT.strip()


async def test_a_comment_names_the_model_whose_turn_it_is() -> None:
    async with serving(sse_comment_s=0.05, memory_budget_bytes=1500) as served:
        busy = asyncio.create_task(served.chat("org/chatty", fake={"hold": 1}))
        await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
        body = {"model": "other", "stream": True, "fake": {"stream": [EVENT]}}
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            comment = await asyncio.wait_for(anext(answer.aiter_text()), WAIT_S)
            assert comment.startswith(": waiting for other: its turn after org/chatty, about ")
        served.engines.may_answer.set()
        assert (await busy).status_code == 200


@pytest.mark.parametrize(
    ("state", "wait_s", "told"),
    [
        (State.LOADING, 20.2, "loading, about 21 s"),
        (State.WAKING, 0.2, "waking, about 1 s"),
        (State.LOADING, 0.1, "loading, for longer than it usually takes"),
        (State.READY, 3.0, "a free place, about 3 s"),
        (State.COLD, 3.0, "its turn after a, b, c and 1 more, about 3 s"),
    ],
)
def test_what_is_waited_for_and_how_long_is_told_in_a_few_words(state: State, wait_s: float, told: str) -> None:
    forecast = Forecast("x", state, "loaded", "", wait_s, 0.0, wait_s, "", 0, "", 0, 0, ahead=("a", "b", "c", "d"))
    assert waiting.waits_for(forecast) == told


async def test_a_stream_that_nobody_has_a_byte_of_is_served_by_a_new_start_though_comments_are_out() -> None:
    async with serving(sse_comment_s=0.05) as served:
        assert await waits(served, stream=[EVENT], die_once_before=1) == EVENT.strip()
        assert served.engines.loads == ["other", "other"]


# Progress as text (progress_text)

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "other"}
ANSWER = [
    json.dumps(CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
    json.dumps(CHUNK | {"choices": [{"index": 0, "delta": {"content": "Hello"}}]}),
    json.dumps(CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    "[DONE]",
]


@pytest.mark.parametrize("kind", ["reasoning", "content"])
async def test_openai_s_own_helper_shows_progress_and_then_the_answer(kind: str) -> None:
    async with serving(sse_comment_s=0.05, progress_text=kind) as served:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            served.engines.may_load.clear()
            extra = {"fake": {"stream": [f"data: {chunk}\n\n" for chunk in ANSWER]}}
            asked = client.chat.completions.stream(model="OTHER", messages=[], extra_body=extra)
            async with asyncio.timeout(WAIT_S), asked as stream:
                chunks = [event.chunk async for event in stream if _loads_on(event, served)]
                final = (await stream.get_final_completion()).choices[0].message
        told = [chunk for chunk in chunks if chunk.id != CHUNK["id"]]
        assert len({chunk.id for chunk in told}) == 1
        assert {chunk.model for chunk in told} == {"OTHER"}
        assert chunks[-3:] == [chunk for chunk in chunks if chunk.id == CHUNK["id"]]
        progress = "".join(getattr(chunk.choices[0].delta, kind) for chunk in told)
        assert progress.startswith("waiting for other: loading, about ")
        assert final.role == "assistant"
        assert final.content == (progress if kind == "content" else "") + "Hello"


def _loads_on(event: object, served: Served) -> bool:
    """Lets the model load as soon as anything was told; whether `event` is a chunk as it came."""
    served.engines.may_load.set()
    return getattr(event, "type", "") == "chunk"


async def test_a_text_completion_has_progress_as_text_and_the_other_routes_have_comments_alone() -> None:
    async with serving(sse_comment_s=0.05, progress_text="content") as served:
        told = await waits(served, "/v1/completions", stream=[EVENT])
        chunk = json.loads(told.partition("\n\n")[0].removeprefix("data: "))
        assert chunk["object"] == "text_completion"
        assert chunk["choices"][0]["text"].startswith("waiting for other: loading")
        for path in ("/v1/responses", "/v1/messages"):
            await served.post("/v1/model/unload", {"model": "other"})
            assert await waits(served, path, stream=[EVENT]) == EVENT.strip()


async def test_reasoning_has_no_place_in_a_text_completion() -> None:
    async with serving(sse_comment_s=0.05, progress_text="reasoning") as served:
        assert await waits(served, "/v1/completions", stream=[EVENT]) == EVENT.strip()


async def test_anthropic_s_own_client_reads_over_comments() -> None:
    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "other", "usage": {}}
    events = [{"type": "message_start", "message": message}, {"type": "message_stop"}]
    stream = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
    async with serving(sse_comment_s=0.02) as served:
        url = f"http://127.0.0.1:{served.port}"
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
            served.engines.may_load.clear()
            asked = client.messages.create(
                model="other", max_tokens=1, messages=[], stream=True, extra_body={"fake": {"stream": stream}}
            )
            answer = await asyncio.wait_for(asked, WAIT_S)
            served.engines.may_load.set()
            assert [event.type async for event in answer] == ["message_start", "message_stop"]


# Without streaming


async def test_who_does_not_stream_waits_for_so_long_and_is_then_told_what_for_and_when_to_come_back() -> None:
    async with serving(wait_timeout_s=0.1) as served:
        served.engines.may_load.clear()
        answer = await served.chat("other")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert "within 0.1 s (wait_timeout_s): waiting for other: loading" in answer.json()["error"]["message"]
        await until_idle(served)
        served.engines.may_load.set()


async def test_the_limit_is_for_the_wait_and_not_for_the_answer() -> None:
    async with serving(wait_timeout_s=0.2) as served:
        await served.post("/v1/model/load", {"model": "other"})
        asked = asyncio.create_task(served.chat("other", fake={"hold": 1}))
        await asyncio.wait([asked], timeout=0.4)
        served.engines.may_answer.set()
        assert (await asked).status_code == 200


async def test_a_new_start_after_an_engine_that_computed_for_long_has_the_whole_limit_to_itself() -> None:
    async with serving(wait_timeout_s=2) as served:
        await served.post("/v1/model/load", {"model": "other"})
        asked = asyncio.create_task(served.chat("other", fake={"hold": 1, "partial": ["{}"], "die_once_before": 1}))
        await asyncio.wait([asked], timeout=2.2)
        served.engines.may_answer.set()
        assert (await asked).status_code == 200


async def test_a_stream_may_wait_for_longer() -> None:
    async with serving(wait_timeout_s=0.01, sse_comment_s=0.05) as served:
        assert await waits(served, stream=[EVENT]) == EVENT.strip()
