"""Streaming requests that wait for a load are told so in comments."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from engines.base import EngineStartError
from tests.app.serving import Served, serving

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
        rest = "".join([part async for part in parts])
    return "".join(line + "\n" for line in rest.split("\n") if not line.startswith(":")).strip()


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
