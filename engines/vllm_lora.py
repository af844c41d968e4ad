"""LoRA adapters in vLLM: which it takes, and with which limits an engine is started for them. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.types import ModelSpec

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes
MAX_RESIDENT_LORAS = 4
DEFAULT_LORA_RANK = 16
# Keys of adapter_config.json for what vLLM has not got, and for what it cannot do without.
LORA_UNSUPPORTED = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
LORA_REQUIRED = ("r", "lora_alpha", "target_modules")
LORA_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})  # others change the base as well
LORA_MODULES_TO_SAVE = frozenset({"classifier", "score"})


@dataclass(frozen=True, slots=True)
class LoraArguments:
    """Arguments of vLLM's server by name, and why in a sentence; both empty for an engine without LoRA."""

    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def arguments(adapters: Sequence[ModelSpec]) -> LoraArguments:
    """For an engine whose base has `adapters`; reads their configurations."""
    if not adapters:
        return LoraArguments()
    largest = max(adapter_rank(adapter.path) for adapter in adapters)
    rank = next((allowed for allowed in LORA_RANKS if allowed >= largest), LORA_RANKS[-1])
    modules = [
        json.dumps({"name": name, "path": str(adapter.path)}) for adapter in adapters for name in _names(adapter)
    ]
    values = {
        "enable-lora": True,
        "max-lora-rank": rank,
        "max-loras": min(len(adapters), MAX_RESIDENT_LORAS),
        "max-cpu-loras": max(len(modules), MAX_RESIDENT_LORAS),
        "lora-modules": modules,
    }
    return LoraArguments(values, f"LoRA: {len(adapters)} adapters found, of rank up to {largest}")


def _names(spec: ModelSpec) -> list[str]:
    return [spec.id, *spec.aliases]


def adapter_refusal(path: Path) -> str:
    """Why vLLM would not load an adapter, or "". It would end at its start for that, and the base would not be served.

    The rules are those of vLLM's lora/peft_helper.py.
    """
    config = _adapter_config(path)
    missing = [key for key in LORA_REQUIRED if config.get(key) is None]
    if missing:
        return f"adapter_config.json says nothing of {', '.join(missing)}"
    if not (isinstance(config["r"], int) and config["r"] > 0):
        return f"adapter_config.json: r is {str(config['r'])[:40]!r} and not a rank"
    if (rank := adapter_rank(path)) > LORA_RANKS[-1]:
        return f"adapter_config.json: rank {rank}; vLLM serves adapters of rank up to {LORA_RANKS[-1]}"
    if unsupported := [key for key in LORA_UNSUPPORTED if config.get(key)]:
        return f"adapter_config.json: vLLM does not support {', '.join(unsupported)}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in LORA_PLAIN_INITS:
        return f"adapter_config.json: vLLM does not support init_lora_weights {init[:40]!r}; convert it to a plain LoRA"
    saved = config.get("modules_to_save")
    if saved and not (isinstance(saved, list) and set(map(str, saved)) <= LORA_MODULES_TO_SAVE):
        return "adapter_config.json: modules_to_save; vLLM serves adapters without whole modules of their own"
    return ""


def _adapter_config(path: Path) -> dict[str, Any]:
    """Empty where it cannot be read."""
    try:
        config = json.loads((path / "adapter_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def adapter_rank(path: Path) -> int:
    """The largest rank in an adapter's adapter_config.json; vLLM's default where it says none."""
    config = _adapter_config(path)
    pattern = config.get("rank_pattern")
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((rank for rank in ranks if isinstance(rank, int) and rank > 0), default=DEFAULT_LORA_RANK)
