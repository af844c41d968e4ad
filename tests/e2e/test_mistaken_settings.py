"""A model whose settings vLLM refuses: told to whoever asks for it, and never begun to load."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from bench._servers import Server
from demo import facts
from tests.e2e import chat
from tests.e2e.faulty import listed, loads, refusal


async def test_a_model_whose_arguments_vllm_refuses_is_refused_with_the_reason_and_others_go_on(
    victim: Server, folder: Path, demo_models: Path
) -> None:
    shutil.copytree(demo_models / facts.QWEN3_CHAT, folder / "mistaken")
    async with chat.session(victim) as client:
        await listed(victim, "mistaken", True)
        await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL)
        before = loads(victim, facts.LLAMA_CHAT)
        for _ in range(2):
            status, _, error = await asyncio.to_thread(refusal, victim, "mistaken")
            assert (status, error["code"], error["param"]) == (400, "model_unusable", "model")
            assert "unrecognized arguments: --no-such-argument" in error["message"]
        assert await chat.ask(client, facts.LLAMA_CHAT, facts.WHICH_MODEL) == facts.LLAMA.answers[facts.WHICH_MODEL]
    assert loads(victim, facts.LLAMA_CHAT) == before
    assert loads(victim, "mistaken") == 0
