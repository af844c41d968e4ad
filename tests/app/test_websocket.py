"""Chat over WebSockets, through the real server, at fake engines."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from models.types import Task
from tests.app.serving import MODELS, Served, serving, spec
from tests.app.websocket_client import END, WAIT_S, connected, delta, event, saying, until_idle

MODEL = {"model": "other"}
ONE = (spec("org/chatty", chat_template=True), spec("pirate", Task.ADAPTER, parent="org/chatty"))


def asked(served: Served) -> list[dict[str, Any]]:
    """The bodies that engines got."""
    return [json.loads(seen.raw) for seen in served.engines.seen]


@pytest.mark.parametrize("path", ["/ws", "/v1/ws"])
async def test_an_answer_comes_token_by_token_and_then_whole_without_its_reasoning(served: Served, path: str) -> None:
    stream = [delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="Ahoy ")]
    stream += [": a comment\n\n", delta(content="ö\n"), event({"choices": [], "usage": {}, "error": None}), END]
    async with connected(served, path) as client:
        await client.generate("s", {"stream": stream, "apart": 1}, **MODEL)
        told = [await client.next() for _ in range(3)]
    assert told == [
        {"type": "token", "content": "Ahoy ", "session_id": "s"},
        {"type": "token", "content": "ö\n", "session_id": "s"},
        {"type": "done", "content": "Ahoy ö\n", "session_id": "s"},
    ]


async def test_the_engine_gets_what_the_client_asked_for_and_nothing_else(served: Served) -> None:
    messages = [{"role": "user", "content": "hi", "fake": saying("x")}]
    sampling = {"max_tokens": 512, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
    async with connected(served) as client:
        await client.generate("s", messages=messages, system_prompt="Be brief.", **MODEL, **sampling)
        await client.next()
        await client.generate("t", messages=messages, system_prompt=None, top_p=1, max_tokens=None, model="gpt-4o")
        while (await client.next())["session_id"] != "t":
            pass
    assert {seen.path for seen in served.engines.seen} == {"/v1/chat/completions"}
    system = {"role": "system", "content": "Be brief."}
    assert asked(served) == [
        {"model": "other", "messages": [system, *messages], "stream": True, **sampling},
        {"model": "org/chatty", "messages": messages, "stream": True, "top_p": 1.0},
    ]


async def test_sessions_of_a_connection_run_at_the_same_time_under_names_of_their_own(served: Served) -> None:
    async with connected(served) as client:
        await client.generate("slow", saying("late") | {"hold": 1}, **MODEL)
        await client.generate("quick", saying("soon"), **MODEL)
        assert [(await client.next())["type"], await client.next()] == [
            "token",
            {"type": "done", "content": "soon", "session_id": "quick"},
        ]
        await client.generate("slow", saying("another"), **MODEL)
        code, session_id, text = await client.error()
        assert (code, session_id, "goes on" in text) == ("session_running", "slow", True)
        await client.generate("quick", saying("again"), **MODEL)
        assert [(await client.next())["content"] for _ in range(2)] == ["again", "again"]
        served.engines.may_answer.set()
        assert [(await client.next())["content"] for _ in range(2)] == ["late", "late"]


async def test_a_cancelled_session_ends_at_its_engine_and_the_others_go_on(served: Served) -> None:
    async with connected(served) as client:
        await client.generate("a", {"stream": [delta(content="x")], "hold_after": 1}, **MODEL)
        await client.generate("b", {"stream": [delta(content="y")], "hold_after": 1}, **MODEL)
        assert {(await client.next())["content"] for _ in range(2)} == {"x", "y"}
        await client.send("cancel", session_id="a")
        assert (await client.error())[:2] == ("cancelled", "a")
        gone = next(seen for seen in served.engines.seen if b'"x' in seen.raw)
        await asyncio.wait_for(gone.aborted.wait(), WAIT_S)
        await client.send("cancel", session_id="a")
        assert (await client.error())[:2] == ("session_not_found", "a")
        assert [seen.aborted.is_set() for seen in served.engines.seen].count(True) == 1
        await client.send("cancel", session_id="b")
        assert (await client.error())[:2] == ("cancelled", "b")
    await until_idle(served)


async def test_a_session_can_be_cancelled_at_once_and_while_its_model_loads(served: Served) -> None:
    served.engines.may_load.clear()
    async with connected(served) as client:
        for session_id in ("a", "b"):
            await client.generate(session_id, **MODEL)
            if session_id == "b":
                await client.send("ping")
                assert (await client.next())["type"] == "pong"
            await client.send("cancel", session_id=session_id)
            assert (await client.error())[:2] == ("cancelled", session_id)
    assert served.engines.seen == []


async def test_with_its_connection_every_session_ends(served: Served) -> None:
    async with connected(served) as client:
        for session_id in ("a", "b"):
            await client.generate(session_id, {"hold": 1}, **MODEL)
        async with asyncio.timeout(WAIT_S):
            while len(served.engines.seen) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        client.socket._response.connection.transport.abort()  # type: ignore[union-attr]  # as a client that is gone
        for seen in served.engines.seen:
            await asyncio.wait_for(seen.aborted.wait(), WAIT_S)
    await until_idle(served)


VLLM_ERROR = {"error": {"message": "temperature must be…", "type": "BadRequestError", "param": None, "code": 400}}


@pytest.mark.parametrize(
    ("fake", "tokens", "code", "text"),
    [
        ({"status": 400, "answer": json.dumps(VLLM_ERROR)}, 0, "invalid_request", "temperature must be…"),
        ({"stream": [delta(content="x"), event(VLLM_ERROR)]}, 1, "invalid_request", "temperature must be…"),
        ({"status": 500, "answer": "{}"}, 0, "engine_error", "status 500"),
        ({"answer": "{}"}, 0, "engine_error", "no stream"),
        ({"stream": [delta(content="x")], "die_after": 1}, 1, "engine_error", "incomplete"),
        ({"stream": [delta(content="x")]}, 1, "engine_error", "incomplete"),
        ({"stream": ["data: <html>\n\n"], "endless": 1}, 0, "engine_error", "not JSON"),
        ({"stream": ['data: {"choices": [1]}\n\n'], "endless": 1}, 0, "engine_error", "no part of a chat"),
        ({"stream": ["x" * (1 << 20), "x"], "partial": 1, "hold_after": 1}, 0, "engine_error", "bytes"),
    ],
)
async def test_what_goes_wrong_ends_the_session_with_an_error_and_nothing_else(
    served: Served, fake: dict[str, Any], tokens: int, code: str, text: str
) -> None:
    async with connected(served) as client:
        await client.generate("s", fake, **MODEL)
        for _ in range(tokens):
            assert (await client.next())["content"] == "x"
        told = await client.error()
        assert told[:2] == (code, "s")
        assert text in told[2]
        await client.generate("s", saying("well"), **MODEL)
        assert (await client.next())["content"] == "well"
    await until_idle(served)


async def test_an_answer_that_never_ends_is_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.websocket.answer.MAX_ANSWER_CHARS", 4)
    async with connected(served) as client:
        await client.generate("s", {"stream": [delta(content="ab"), delta(content="cde")], "hold_after": 1}, **MODEL)
        await client.next()
        assert (await client.error())[:2] == ("engine_error", "s")
        await asyncio.wait_for(served.engines.seen[0].aborted.wait(), WAIT_S)


async def test_models_are_refused_as_everywhere(served: Served) -> None:
    async with connected(served) as client:
        for model, code in (("nix", "model_not_found"), ("minilm", "wrong_model_task"), ("half", "model_unusable")):
            await client.generate("s", model=model)
            assert (await client.error())[:2] == (code, "s")


async def test_without_a_model_the_default_one_answers_else_the_only_one(served: Served) -> None:
    async with connected(served) as client:
        await client.generate("s")
        code, _, text = await client.error()
        assert code == "invalid_request"
        assert "org/chatty, other" in text
        assert "default_model" in text
    for specs, names in ((MODELS, "gone, minilm, other"), ((spec("other", chat_template=True), MODELS[3]), "")):
        async with serving(specs, default_model=names) as one, connected(one) as client:
            await client.generate("s", saying("x"))
            await client.next()
            assert one.engines.loads == ["other"]
    async with serving(()) as empty, connected(empty) as client:
        await client.generate("s")
        assert (await client.error())[:2] == ("model_not_found", "s")


async def test_an_adapter_answers_from_then_on_and_on_its_own_connection_alone() -> None:
    async with serving(ONE) as served, connected(served) as client, connected(served) as other:
        await client.send("load_adapter", adapter_path="pirate")
        assert await client.next() == {"type": "adapter_loaded", "adapter_path": "pirate"}
        assert served.engines.loads == ["org/chatty"]
        for who, model in ((client, None), (other, None), (client, "org/chatty")):
            await who.generate("s", saying("x"), model=model)
            assert [(await who.next())["type"] for _ in range(2)] == ["token", "done"]
        assert [body["model"] for body in asked(served)] == ["pirate", "org/chatty", "org/chatty"]
        await client.send("load_adapter", adapter_path=None)
        assert await client.next() == {"type": "adapter_unloaded"}
        await client.generate("s", saying("x"))
        await client.next()
        assert asked(served)[-1]["model"] == "org/chatty"


async def test_what_follows_a_change_of_the_adapter_waits_for_it_and_fails_with_it() -> None:
    async with serving(ONE) as served, connected(served) as client:
        served.engines.may_load.clear()
        await client.send("load_adapter", adapter_path="pirate")
        await client.generate("s", saying("x"))
        await client.send("load_adapter", adapter_path="../../etc")
        await client.generate("t", saying("x"))
        await client.send("ping")
        assert await client.next() == {"type": "pong"}
        served.engines.may_load.set()
        told = [await client.next() for _ in range(5)]
        assert told[0]["type"] == "adapter_loaded"
        assert [(each["type"], each.get("session_id")) for each in told if each.get("session_id") == "s"] == [
            ("token", "s"),
            ("done", "s"),
        ]
        refused = [each for each in told if each["type"] == "error"]
        assert [each["session_id"] for each in refused] == [None, "t"]
        assert {each["message"] for each in refused} == {refused[0]["message"]}
        await client.generate("t", saying("x"))  # the adapter is the one that was loaded last
        await client.next()
        assert [body["model"] for body in asked(served)] == ["pirate", "pirate"]


async def test_what_waits_for_a_change_of_the_adapter_is_bounded_together_and_so_is_its_time() -> None:
    async with serving(ONE, max_body_bytes=1024, wait_timeout_s=0.5) as served, connected(served) as client:
        served.engines.may_load.clear()
        await client.send("load_adapter", adapter_path="pirate")
        for number in range(10):  # 8 fit in
            await client.generate(str(number), messages=[{"content": "x" * 900}])
        told = [await client.error() for _ in range(11)]  # with that of the adapter, which is of no session
        assert {code for code, _, _ in told} == {"overloaded"}
        assert [(session_id, "of bodies" in text) for _, session_id, text in told[:2]] == [("8", True), ("9", True)]
        assert all("0.5 s (wait_timeout_s)" in text for _, _, text in told[2:])
        await until_idle(served)
        assert served.roundhouse.app._data_plane._bodies.held_bytes == 0


async def test_a_fault_of_ours_in_a_change_of_the_adapter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(ONE) as served, connected(served) as client:
        monkeypatch.setattr(served.roundhouse.state.manager, "load", None)
        await client.send("load_adapter", adapter_path="pirate")
        assert (await client.error())[0] == "internal_error"
        await client.generate("s", saying("x"))
        assert (await client.next())["content"] == "x"


async def test_who_cannot_be_told_what_it_waits_for_waits_no_longer_than_those_who_do_not_stream() -> None:
    async with serving(wait_timeout_s=0.2, progress_text="content", sse_comment_s=0.05) as served:
        served.engines.may_load.clear()
        async with connected(served) as client:
            await client.generate("s", **MODEL)
            code, session_id, text = await client.error()
            assert (code, session_id, "wait_timeout_s" in text) == ("overloaded", "s", True)


async def test_at_the_end_of_the_server_running_sessions_finish_and_no_other_begins() -> None:
    async with serving(shutdown_timeout_s=60.0) as served, connected(served) as client, connected(served) as idle:
        await client.generate("s", saying("x") | {"hold": 1}, **MODEL)
        await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
        served.server.stop()
        await client.generate("t", **MODEL)
        assert (await client.error())[:2] == ("shutting_down", "t")
        served.engines.may_answer.set()
        assert [(await client.next())["type"] for _ in range(2)] == ["token", "done"]
        assert [await client.closed(), await idle.closed()] == [1012, 1012]


async def test_each_session_is_counted_and_the_connection_is_not(served: Served) -> None:
    async with connected(served) as client:
        await client.generate("s", saying("x"), **MODEL)
        assert [(await client.next())["type"] for _ in range(2)] == ["token", "done"]
    metrics = (await served.client.get("/metrics")).text
    counted = [line for line in metrics.splitlines() if line.startswith("roundhouse_requests_total") and "/ws" in line]
    assert counted == ['roundhouse_requests_total{model="other",route="/ws",status="200"} 1.0']
