"""Servers elsewhere that ask each other for a model, or themselves: two real routers, or one."""

from __future__ import annotations

from bench._servers import reserved_port
from engines.base import Declaration
from tests.app.elsewhere import elsewhere
from tests.app.serving import serving
from tests.app.test_remote import FAR, circuit, remote

TENSORS = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}


def asking(port: int, **models: str) -> dict[str, Declaration]:
    return {"box": Declaration("openai", (f"http://127.0.0.1:{port}/v1",), models=models, breaker_failures=1)}


async def test_two_that_ask_each_other_for_a_model_say_so_and_go_on_with_the_others() -> None:
    with reserved_port() as here, reserved_port() as there:
        one = serving(port=here, elsewhere=asking(there, round="turn", far="other"))
        two = serving(port=there, elsewhere=asking(here, turn="round"))
        async with one as first, two as second:
            for served, model in ((first, "round"), (second, "turn")):
                refused = await served.chat(model)
                error = refused.json()["error"]
                assert (refused.status_code, error["code"], error["param"]) == (508, "loop_detected", "model")
                assert f"The request for '{model}' goes in a circle" in error["message"]
                assert "the engine 'box'" in error["message"]
            told = await first.post("/v1/messages", {"model": "round", "messages": []})
            assert (told.status_code, told.json()["type"]) == (508, "error")
            assert (await first.chat("far")).status_code == 200
            assert (circuit(first)["failures"], circuit(second)["failures"]) == (0, 0)


async def test_one_that_asks_itself_says_so_for_a_stream_too() -> None:
    with reserved_port() as port:
        tensors = {"tensors": Declaration("triton", (f"http://127.0.0.1:{port}",), models={"sum": "sum"})}
        async with serving((), port=port, elsewhere=asking(port, round="round") | tensors) as served:
            refused = await served.chat("round", stream=True)
            kserve = await served.post("/v2/models/sum/infer", TENSORS)
            ready = await served.client.get("/v2/models/sum/ready")
    assert (refused.status_code, refused.json()["error"]["code"]) == (508, "loop_detected")
    assert (kserve.status_code, "goes in a circle" in kserve.json()["error"]) == (508, True)
    assert ready.status_code == 503


async def test_who_was_asked_before_is_passed_on_however_it_is_told_and_too_many_are_a_circle() -> None:
    async with elsewhere() as server, remote(server) as served:
        before = [("via", "1.0 fred, 1.1 far.test (odd)"), ("via", "1.1 gate")]
        assert (await served.post("/v1/chat/completions", {"model": FAR}, headers=before)).status_code == 200
        told = server.asked[0].headers["via"].split(", ")
        assert told[:-1] == ["1.0 fred", "1.1 far.test (odd)", "1.1 gate"]
        back = [("via", told[-1]), ("via", "1.1 gate")]
        assert (await served.post("/v1/chat/completions", {"model": FAR}, headers=back)).status_code == 508
        many = [("via", ", ".join(["1.1 x"] * 16))]
        assert (await served.post("/v1/chat/completions", {"model": FAR}, headers=many)).status_code == 508
        assert len(server.asked) == 1
        assert (await served.post("/v1/chat/completions", {"model": "other"}, headers=back)).status_code == 200


async def test_another_roundhouse_serves_its_models_here_and_two_that_list_each_other_repeat_nothing() -> None:
    async with serving() as other:
        url = f"http://127.0.0.1:{other.port}/v1"
        async with serving((), elsewhere={"far": Declaration("openai", (url,), prefix="far/")}) as served:
            ids = {entry["id"]: entry["task"] for entry in (await served.client.get("/v1/models")).json()["data"]}
            assert ids["far/minilm"] == "embed"
            assert ids["far/pirate"] == "chat"
            answer = await served.chat("far/pirate", messages=[])
            assert answer.json() == {"model": "pirate", "messages": []}
            back = Declaration("openai", (f"http://127.0.0.1:{served.port}/v1",), prefix="back/")
            async with serving((), elsewhere={"back": back}) as third:
                assert (await third.client.get("/v1/models")).json()["data"] == []
