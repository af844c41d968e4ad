"""Models, load and unload, health, metrics, the API's own description."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from app import health
from app.routes import ROUTES, TENSOR_ROUTES
from engines.base import Declaration, EngineStartError
from engines.registry import create_factories
from models.types import State
from tests.app.fake_engine import context_in
from tests.app.serving import MODELS, Served, serving

WAIT_S = 5.0


async def test_the_list_has_what_can_be_served_and_all_has_the_rest(served: Served) -> None:
    listed = (await served.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == sorted(m.id for m in MODELS if m.id != "half")
    entry = next(entry for entry in listed["data"] if entry["id"] == "org/chatty")
    assert entry["object"] == "model"
    assert (entry["task"], entry["state"], entry["aliases"]) == ("chat", "cold", ["gpt-4o"])
    everything = (await served.client.get("/v1/models?all=true")).json()["data"]
    assert {"half": "incomplete"}.items() <= {e["id"]: e["availability"] for e in everything}.items()


async def test_a_model_is_found_by_every_spelling_with_its_reasons(served: Served) -> None:
    for name in ("org/chatty", "org%2Fchatty", "gpt-4o", "CHATTY"):
        found = (await served.client.get(f"/v1/models/{name}")).json()
        assert found["id"] == "org/chatty"
        assert found["reasons"] == ["config.json: has a chat template", "engine: it is a fake"]
        assert "/v1/chat/completions" in found["routes"]
    half = (await served.client.get("/v1/models/half")).json()
    assert half["routes"] == []
    assert half["reasons"] == ["model-00002-of-00002.safetensors is missing"]
    assert (await served.client.get("/v1/models/nope")).json()["error"]["code"] == "model_not_found"


async def test_load_and_unload_answer_state_times_and_memory(served: Served) -> None:
    loaded = (await served.post("/v1/model/load", {"model": "GPT-4o"})).json()
    assert (loaded["id"], loaded["state"], loaded["memory_bytes"], loaded["loads"]) == ("org/chatty", "ready", 1000, 1)
    assert loaded["load_s"] is not None
    unloaded = (await served.post("/v1/model/unload", {"model": "org/chatty"})).json()
    assert (unloaded["state"], unloaded["memory_bytes"]) == ("cold", None)


async def test_load_without_wait_answers_at_once(served: Served) -> None:
    served.engines.may_load.clear()
    assert (await served.post("/v1/model/load", {"model": "other", "wait": False})).json()["state"] == "loading"


async def test_loads_and_unloads_of_one_model_at_once_have_one_outcome_each(served: Served) -> None:
    bodies = [("/v1/model/load", {"model": "other"}), ("/v1/model/unload", {"model": "other"})] * 5
    async with asyncio.timeout(WAIT_S):
        chats = (served.chat("other") for _ in range(5))
        answers = await asyncio.gather(*(served.post(*each) for each in bodies), *chats)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    assert (await served.chat("other")).status_code == 200


async def test_a_failed_load_tells_the_cause_and_when_to_come_back(served: Served) -> None:
    served.engines.load_errors["other"] = EngineStartError("model.safetensors is truncated", "Traceback …")
    for answer in (await served.chat("other"), await served.post("/v1/model/load", {"model": "other"})):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_load_failed")
        assert "model.safetensors is truncated" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 1


async def test_control_requests_of_the_wrong_shape_are_refused_naming_the_field(served: Served) -> None:
    wrong = {"model": {"model": 3}, "wait": {"model": "other", "wait": "no"}, "x": {"model": "other", "x": 1}}
    for param, body in [("model", {}), *wrong.items()]:
        answer = await served.post("/v1/model/load", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 10_000):
        assert (await served.client.post("/v1/model/load", content=body)).status_code == 400
    assert (await served.post("/v1/model/load", {"model": "half"})).json()["error"]["code"] == "model_unusable"
    assert (await served.post("/v1/model/unload", {"model": "nope"})).status_code == 404


async def test_metrics_count_requests_by_route_model_and_status_and_nothing_a_client_invents(served: Served) -> None:
    await served.chat("other")
    await served.chat("GPT-4o")
    await served.chat("made-up")
    await served.client.get("/made/up")
    text = (await served.client.get("/metrics")).text
    assert 'roundhouse_requests_total{model="other",route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'roundhouse_requests_total{model="",route="/v1/chat/completions",status="404"} 1.0' in text
    assert 'roundhouse_model_state{model="other",state="ready"} 1.0' in text
    assert "made" not in text


async def test_metrics_tell_loads_swaps_what_went_wrong_and_how_long_requests_waited() -> None:
    async with serving(memory_budget_bytes=1500) as served:
        for model in ("other", "org/chatty", "org/chatty"):
            assert (await served.chat(model)).status_code == 200
        await served.engines.engines["org/chatty"].die()
        served.engines.load_errors["base"] = EngineStartError("truncated")
        assert (await served.post("/v1/completions", {"model": "base"})).status_code == 503
        text = (await served.client.get("/metrics")).text
    for line in (
        'roundhouse_model_loads_total{model="other"} 1.0',
        "roundhouse_swaps_total 1.0",
        'roundhouse_model_evictions_total{model="other",to="unload"} 1.0',
        'roundhouse_engine_exits_total{model="org/chatty"} 1.0',
        'roundhouse_model_load_failures_total{model="base"} 1.0',
        'roundhouse_request_queue_seconds_count{model="org/chatty"} 2.0',
    ):
        assert line in text.splitlines()
    assert float(text.partition("\nroundhouse_swap_seconds_total ")[2].split()[0]) > 0


async def test_explain_says_what_a_request_would_lead_to_and_leads_to_nothing() -> None:
    async with serving(memory_budget_bytes=1500) as served:
        cold = (await served.client.get("/v1/model/explain?model=OTHER")).json()
        assert (cold["object"], cold["model"], cold["state"]) == ("model.forecast", "other", "cold")
        assert (cold["outcome"], cold["evictions"], cold["error"]) == ("loaded", [], None)
        assert cold["wait_s"] >= cold["bring_s"] > 0
        await served.chat("other")
        ready = (await served.client.get("/v1/model/explain?model=other")).json()
        assert (ready["outcome"], ready["wait_s"]) == ("granted", 0.0)
        swap = (await served.client.get("/v1/model/explain?model=pirate")).json()
        assert swap["model"] == "org/chatty"
        [left] = swap["evictions"]
        assert (left["model"], left["state"], left["to"], left["running"]) == ("other", "ready", "unload", 0)
        assert served.engines.loads == ["other"]


async def test_explain_refuses_what_a_request_would_be_refused_for(served: Served) -> None:
    for model, status, code in (("nope", 404, "model_not_found"), ("half", 400, "model_unusable")):
        answer = await served.client.get("/v1/model/explain", params={"model": model})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await served.client.get("/v1/model/explain")).json()["error"]["param"] == "model"
    served.engines.load_errors["other"] = EngineStartError("truncated")
    await served.chat("other")
    failed = (await served.client.get("/v1/model/explain?model=other")).json()
    assert failed["outcome"] == "refused"
    assert "truncated" in failed["error"]


async def test_the_description_has_every_route_with_its_schema(served: Served) -> None:
    api = (await served.client.get("/openapi.json")).json()
    for path in ROUTES:
        schema = api["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "model" in api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    documented = {"/v1/models", "/v1/models/{model_id}", "/v1/model/load", "/v1/model/unload", "/metrics"}
    documented |= {"/v1/model/explain", "/v1/events"}
    documented |= {"/v2", *(route.path for route in TENSOR_ROUTES)}
    assert documented | health.PATHS <= api["paths"].keys()
    page = (await served.client.get("/docs")).text
    assert "https://" not in page


async def test_a_fault_of_ours_tells_the_client_only_where_the_log_has_it(served: Served) -> None:
    def broken() -> None:
        raise RuntimeError("secret detail")

    served.roundhouse.state.manager.catalog.specs = broken  # type: ignore[assignment,method-assign]
    answer = await served.client.get("/v1/models", headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert "find-me" in answer.json()["error"]["message"]
    assert "secret" not in answer.text


async def test_preloaded_models_are_loaded_at_the_start() -> None:
    async with serving(preload=("gpt-4o",)) as served:
        async with asyncio.timeout(WAIT_S):
            while served.roundhouse.state.manager.status("org/chatty").state is not State.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_an_engine_that_cannot_be_imported_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        EntryPoint("good", "tests.app.fake_engine:FakeFactory", "roundhouse.engines"),
        EntryPoint("gone", "no_such_package:make", "roundhouse.engines"),
        EntryPoint("broken", "tests.app.fake_engine:not_there", "roundhouse.engines"),
    ]
    monkeypatch.setattr("engines.registry.entry_points", lambda group: points)
    declared = {point.name: Declaration() for point in points}
    engines = create_factories(lambda _name: context_in(tmp_path), declared)
    assert list(engines.factories) == ["good"]
    assert "not_there" in engines.errors["broken"]
    assert "No module named 'no_such_package'" in engines.errors["gone"]
