"""The end of the server (case 9)."""

from __future__ import annotations

import asyncio
import signal

import httpx
import pytest

from tests.app.serving import Served, serving
from utils.telemetry import Metrics

WAIT_S = 5.0
EVENT = "data: {}\n\n"


async def begin(served: Served, **fake: object) -> asyncio.Task[httpx.Response]:
    served.engines.arrived.clear()
    task = asyncio.create_task(served.chat("other", stream=True, fake=fake))
    await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
    return task


async def test_running_answers_finish_while_new_requests_are_refused_and_ready_says_no() -> None:
    async with serving(shutdown_timeout_s=5.0) as served:
        running = await begin(served, stream=[EVENT], hold_after=1)
        served.server.stop()
        await asyncio.sleep(0)
        ready = await served.client.get("/health/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in ready.headers
        assert (await served.client.get("/health/live")).status_code == 200
        refused = await served.chat("other")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        served.engines.may_answer.set()
        assert (await running).text == EVENT
        await asyncio.wait_for(served.task, WAIT_S)


async def test_answers_that_do_not_finish_in_time_end_with_an_error_event() -> None:
    async with serving(shutdown_timeout_s=0.2) as served:
        body = {"model": "other", "stream": True, "fake": {"stream": [EVENT], "hold_after": 1}}
        async with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            parts = answer.aiter_text()
            assert await asyncio.wait_for(anext(parts), WAIT_S) == EVENT
            served.server.stop()
            rest = "".join([part async for part in parts])
        assert rest.startswith("data: {")
        assert "engine_error" in rest
        await asyncio.wait_for(served.task, WAIT_S)


async def test_a_second_signal_hurries() -> None:
    async with serving(shutdown_timeout_s=60.0) as served:
        running = await begin(served, stream=[EVENT], hold_after=1)
        served.server.stop()
        await asyncio.sleep(0)
        served.server.stop()
        served.server.stop()
        await asyncio.wait_for(running, WAIT_S)
        await asyncio.wait_for(served.task, WAIT_S)


async def test_a_terminal_may_close_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with serving():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_a_background_task_that_failed_does_not_keep_the_engines_from_being_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Metrics, model: str, trigger: str) -> None:
        raise ValueError(trigger)

    monkeypatch.setattr(Metrics, "count_change", fail)
    async with serving() as served:
        assert (await served.chat("other")).status_code == 200
        served.server.stop()
        await asyncio.wait_for(served.task, WAIT_S)
        assert not await served.engines.engines["other"].health()
