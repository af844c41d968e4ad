"""GET /v1/events through the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app import event_stream
from tests.app.serving import Served, serving

WAIT_S = 5.0
KEY = "long-enough"


class Reader:
    """The events of one stream, one after the other."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self, *kinds: str) -> tuple[int | None, dict[str, Any]]:
        """Number and data of the next event of these kinds (of any kind: none given)."""
        event: dict[str, str] = {}
        async with asyncio.timeout(WAIT_S):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if value:
                    event[name] = value
                elif event and not line:
                    if not kinds or event["event"] in kinds:
                        number = int(event["id"]) if "id" in event else None
                        return number, {"event": event["event"], **json.loads(event["data"])}
                    event = {}
        raise EOFError

    async def comment(self) -> None:
        """Returns with the next one; nothing else may come before it."""
        async with asyncio.timeout(WAIT_S):
            while not (line := await anext(self._lines)):
                pass
        assert line.startswith(":")


@asynccontextmanager
async def following(served: Served, **headers: str) -> AsyncIterator[Reader]:
    async with served.client.stream("GET", "/v1/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Reader(answer.aiter_lines())


async def until_followers(served: Served, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while served.roundhouse.app._events._followers != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_snapshot_comes_first_and_then_what_happens_in_order(served: Served) -> None:
    async with following(served) as events:
        number, first = await events.next()
        assert (number, first["event"], first["status"]) == (None, "snapshot", "ready")
        assert first["models"]["other"] == {"state": "cold", "running": 0, "queued": 0}
        assert first["memory"] == {"budget_bytes": 1 << 40, "charged_bytes": 0}
        await served.chat("other")
        numbers, states = zip(*[await events.next("state") for _ in range(2)], strict=True)
        assert [(state["model"], state["before"], state["after"]) for state in states] == [
            ("other", "cold", "loading"),
            ("other", "loading", "ready"),
        ]
        assert numbers[0] < numbers[1]
        assert states[1]["seconds"] >= 0


async def test_who_comes_back_gets_what_was_missed_after_the_snapshot(served: Served) -> None:
    await served.chat("other")
    async with following(served, **{"Last-Event-ID": "0"}) as events:
        assert (await events.next())[1]["models"]["other"]["state"] == "ready"
        number, missed = await events.next()
        assert (missed["model"], missed["after"]) == ("other", "loading")
        last, _ = await events.next()
    async with following(served, **{"Last-Event-ID": str(number)}) as events:
        await events.next()
        assert (await events.next())[0] == last


@pytest.mark.parametrize("number", ["x", "-1", "1" * 5000, "1 1"])
async def test_a_number_that_is_none_is_as_good_as_none_given(served: Served, number: str) -> None:
    async with following(served, **{"Last-Event-ID": number}) as events:
        assert (await events.next())[1]["event"] == "snapshot"


async def test_a_swap_is_told_with_what_had_to_leave() -> None:
    async with serving(memory_budget_bytes=1500) as served, following(served) as events:
        await served.chat("other")
        await served.chat("org/chatty")
        _, swap = await events.next("swap")
        assert (swap["to"], swap["evicted"]) == ("org/chatty", [{"model": "other", "to": "unload"}])


async def test_silence_is_bridged_by_comments(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.05)
    async with following(served) as events:
        await events.next()
        for _ in range(2):
            await events.comment()


async def test_followers_are_bounded_and_one_who_leaves_makes_room(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(event_stream, "MAX_FOLLOWERS", 2)
    async with following(served):
        async with following(served):
            refused = await served.client.get("/v1/events")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert "retry-after" in refused.headers
        await until_followers(served, 1)
        async with following(served) as events:
            await events.next()
    await until_followers(served, 0)


async def test_events_need_the_key_and_nothing_but_get() -> None:
    async with serving(api_keys=(KEY,)) as served:
        assert (await served.client.get("/v1/events")).status_code == 401
        posted = await served.client.post("/v1/events", headers={"x-api-key": KEY})
        assert (posted.status_code, posted.headers["allow"]) == (405, "GET")
        async with following(served, **{"x-api-key": KEY}) as events:
            await events.next()


async def test_the_stream_ends_as_soon_as_the_server_is_told_to_end() -> None:
    async with serving(shutdown_timeout_s=60.0) as served, following(served) as events:
        await events.next()
        running = asyncio.create_task(served.chat("other", fake={"hold": 1}))
        await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
        served.server.stop()
        with pytest.raises(EOFError):
            await events.next("nothing of this kind")
        assert not running.done()
        assert (await served.client.get("/v1/events")).json()["error"]["code"] == "shutting_down"
        served.engines.may_answer.set()
        assert (await running).status_code == 200
        await asyncio.wait_for(served.task, WAIT_S)
