"""vLLM's sleep mode: for which models, at which levels, and its routes, which exist only in its development mode.

Read in vLLM 0.32. Earlier releases have the same paths and parameters, but answer some with nothing, so that it is
`/is_sleeping` that is believed. They are reached on the engine's private socket alone: the router knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import vllm_speculative
from engines.canary import tokens
from engines.engine_http import EngineCallFailed, call, post_twice
from models.types import ModelSpec

Answers = Mapping[str, tuple[int, ...]]  # ids of tokens, by the name that answered with them

ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1"}  # of an engine that may sleep
OPTION = "enable-sleep-mode"
MAX_CANARY_ADAPTERS = 4


@dataclass(frozen=True, slots=True)
class Tiers:
    """The sleep levels of one model's engine, and why not more."""

    levels: tuple[int, ...]
    reason: str


def tiers(spec: ModelSpec, device: str, adapters: bool, engine_args: Mapping[str, Any]) -> Tiers:
    """Level 1 keeps the weights in host memory, level 2 reads them again. `engine_args`: those for all models."""
    if device != "cuda":
        return Tiers((), "")
    if not spec.overrides.sleep:
        return Tiers((), "sleep: off, configured for this model")
    given = (*engine_args.items(), *spec.overrides.engine_args.items())
    configured = {name.lstrip("-").replace("_", "-"): value for name, value in given}
    if not configured.get(OPTION, True):
        return Tiers((), f"sleep: off, as {OPTION} is configured")
    if why := _why_not_level_2(spec, adapters, configured):
        return Tiers((1,), f"sleep: level 1 only; {why}")
    return Tiers((1, 2), "sleep: level 1 (weights in host memory) and level 2 (weights are read again)")


def _why_not_level_2(spec: ModelSpec, adapters: bool, configured: Mapping[str, Any]) -> str:
    """Where level 2 loses what it should not, or where our canary would not see it."""
    if adapters:
        return "level 2 would lose the LoRA adapters"
    if configured.get(vllm_speculative.OPTION) or vllm_speculative.has_draft(spec):
        return "level 2 would not read the draft model's weights again"
    if spec.architecture.endswith("ForConditionalGeneration"):
        return "after level 2 a canary of text would not show what became of the weights for images"
    return ""


class VllmSleepRoutes:
    """See engines.sleeping.SleepRoutes. `names`: of the model and of its adapters; may change, but for the first."""

    def __init__(self, uds: Path, names: Sequence[str]) -> None:
        self._uds = uds
        self._names = names

    async def fall_asleep(self, level: int) -> None:
        # In vLLM's default mode, abort, a request that slipped in would be cut off.
        await call(self._uds, "POST", "/sleep", query=(("level", str(level)), ("mode", "wait")))
        await self._expect(sleeping=True)

    async def wake_up(self, level: int) -> None:
        if level == 1:
            await self._wake()
        else:
            await self._wake("weights")
            await call(self._uds, "POST", "/collective_rpc", body={"method": "reload_weights"})
            # While it is still paused: a request that slipped in would run, and hold blocks, as soon as it is awake.
            answer = await call(self._uds, "POST", "/reset_prefix_cache")
            if answer is not None and not answer.get("success", True):
                raise EngineCallFailed("/reset_prefix_cache: blocks of the KV cache are still held")
            await self._wake("kv_cache")
        await self._expect(sleeping=False)

    async def canary(self) -> Answers:
        names = self._names[: 1 + MAX_CANARY_ADAPTERS]
        return dict(zip(names, await tokens(self._uds, names), strict=True))

    def same(self, before: Answers, after: Answers) -> bool:
        """An adapter that was taken out meanwhile is missed by nobody."""
        return all(before[name] == answer for name, answer in after.items() if name in before)

    async def _wake(self, *tags: str) -> None:
        await post_twice(self._uds, "/wake_up", [("tags", tag) for tag in tags])

    async def _expect(self, *, sleeping: bool) -> None:
        answer = await call(self._uds, "GET", "/is_sleeping")
        if answer != {"is_sleeping": sleeping}:
            raise EngineCallFailed(f"/is_sleeping answered {answer}, not {sleeping}")
