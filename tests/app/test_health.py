"""Health: what is true, told to everybody, and with names to those who may see them."""

from __future__ import annotations

import time

import pytest

from engines.base import EngineStartError
from models.manager import ModelManager
from tests.app.fake_engine import FakeFactory
from tests.app.serving import Served, serving, spec

KEY = "long-enough"
TROUBLE = "A request for other has waited for 300 s."
MANY = 10_000


async def test_health_tells_what_is_true(served: Served) -> None:
    await served.chat("other")
    served.engines.load_errors["base"] = EngineStartError("truncated")
    await served.post("/v1/completions", {"model": "base"})
    overview = (await served.client.get("/health")).json()
    assert (overview["status"], overview["trouble"]) == ("ready", None)
    assert overview["models"]["by_state"] == {"ready": 1, "failed": 1, "cold": 3}
    assert overview["memory"]["charged_bytes"] == 1000
    failed, ready = overview["models"]["active"]
    assert (failed["id"], failed["state"], failed["answered_s_ago"]) == ("base", "failed", None)
    assert "truncated" in failed["error"]
    assert (ready["id"], ready["state"], ready["running"], ready["queued"]) == ("other", "ready", 0, 0)
    assert overview["requests"]["answered_s_ago"] == ready["answered_s_ago"] >= 0
    for path in ("/health/live", "/health/ready"):
        assert (await served.client.get(path)).json() == {"status": "ready"}


async def test_names_are_told_only_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeFactory, "state", lambda self: {"state": "stopped", "error": "No module in /other"})
    async with serving(api_keys=(KEY,)) as served:
        await served.post("/v1/chat/completions", {"model": "other"}, headers={"x-api-key": KEY})
        served.roundhouse.state.config_error = "roundhouse.yaml, line 5: unknown key 'models.other.pined'"
        for headers in ({}, {"x-api-key": "wrong-key"}):
            told = await served.client.get("/health", headers=headers)
            assert "other" not in told.text
            assert told.json()["models"]["active"][0]["state"] == "ready"
            assert told.json()["engines"] == {"fake": {"state": "stopped"}}
            assert "with a key" in told.json()["config_error"]
        told = await served.client.get("/health", headers={"x-api-key": KEY})
        assert '"id":"other"' in told.text
        assert "/other" in told.text
        assert "line 5" in told.json()["config_error"]


async def test_names_are_not_told_to_a_page_that_pretends_to_be_here(served: Served) -> None:
    await served.chat("other")
    assert "other" not in (await served.client.get("/health", headers={"host": "evil.example"})).text


async def test_ready_is_red_with_the_reason_while_the_scheduler_is_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(api_keys=(KEY,)) as served:
        monkeypatch.setattr(ModelManager, "trouble", lambda self: TROUBLE)
        told = await served.client.get("/health/ready", headers={"x-api-key": KEY})
        assert (told.status_code, told.json()["error"]["code"]) == (503, "not_ready")
        assert TROUBLE in told.json()["error"]["message"]
        assert "retry-after" in told.headers
        untold = await served.client.get("/health/ready")
        assert untold.status_code == 503
        assert "other" not in untold.text
        assert (await served.client.get("/health/live")).status_code == 200
        assert (await served.client.get("/health", headers={"x-api-key": KEY})).json()["trouble"] == TROUBLE
        monkeypatch.undo()
        assert (await served.client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    "fake",
    [
        {"status": 400},
        {"stream": ["data: 1\n\n"], "die_after": 1},
        {"answer": '{"error": {"message": "x"}}', "status": 500},
    ],
)
async def test_an_error_or_half_an_answer_is_not_taken_for_the_last_generation(served: Served, fake: object) -> None:
    await served.chat("other", stream=True, fake=fake)
    assert served.roundhouse.state.manager.status("other").answered_s_ago is None
    await served.chat("other")
    assert served.roundhouse.state.manager.status("other").answered_s_ago is not None


async def test_health_lists_no_more_than_what_is_active_of_many_models() -> None:
    async with serving([spec(f"model{number}") for number in range(MANY)]) as served:
        await served.chat("model7")
        began = time.process_time()
        told = await served.client.get("/health")
        assert time.process_time() - began < 2.0  # a bound against what grows with the square; it takes a hundredth
        assert told.json()["models"]["servable"] == MANY
        assert len(told.content) < 10_000
