"""An engine of a package beside those in the box, on a server as a user starts it."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from bench._servers import Server
from demo import facts
from tests.e2e import chat
from tests.e2e.conftest import OLD_VERSION

PATIENCE_S = 60


async def test_a_package_with_a_clashing_version_serves_beside_the_engines_in_the_box_on_its_first_request(
    victim: Server,
) -> None:
    assert version("packaging") != OLD_VERSION
    assert victim.get("/health")["engines"]["own"]["environment_state"] == "not made"
    async with chat.session(victim) as client, asyncio.timeout(PATIENCE_S):
        own, other = await asyncio.gather(
            chat.ask(client, "own", "which?"), chat.ask(client, facts.QWEN3_CHAT, "What is the capital of France?")
        )
        assert other
        found, prefix = own.split()
        assert (found, "/environments/own-" in prefix) == (OLD_VERSION, True)
    assert victim.get("/health")["engines"]["own"]["environment_state"] == "ready"
    question = {"inputs": [{"name": "which", "datatype": "INT8", "shape": [1], "data": [1]}]}
    answer = victim.post("/v2/models/own-tensors/infer", question)
    assert answer["outputs"] == [{"name": "version", "datatype": "BYTES", "shape": [1], "data": [OLD_VERSION]}]
    shown = victim.get("/v1/models/own")
    assert (shown["state"], shown["task"]) == ("ready", "chat")
    assert any("plugin_engines:Versions runs in an environment of its own" in reason for reason in shown["reasons"])
