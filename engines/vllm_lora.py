"""LoRA adapters in vLLM: which it takes, and with which limits an engine is started for them. Starts nothing.

An engine for whose base adapters were found has room for more than those, so that one that comes later needs no reload:

- Slots (`max-loras`) are the adapters that can be in one batch, held on the device at their full rank for every module
  of the base, whether an adapter has it or not. Requests for more adapters than that wait for their turn.
- The rank is that of the slots: what an adapter's is below it costs memory and some time all the same.
- Copies in host memory (`max-cpu-loras`) are what a slot is filled from. One that is thrown out is read from its folder
  again, in the middle of everybody's answers: so there are more of them than adapters, replaced ones counted too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.base import EngineContext
from engines.tensor_shapes import tensors
from engines.vllm_memory import argument_name
from models.types import ModelSpec

MIB = 1024**2
GIB = 1024**3

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes
DEFAULT_LORA_RANK = 16
LEAST_RANK = 16
# On a GPU, room for adapters of twice the rank, up to this, costs a percent or two of the base. On a CPU vLLM computes
# with the slots' rank, for each token of a prompt as well.
ROOMY_RANK = {"cpu": 16, "cuda": 64}
SLOTS = 8
SLOTS_SHARE, SLOTS_BYTES = 0.1, 256 * MIB  # all slots together may take this of the base's weights, or these bytes
LEAST_COPIES = 32
COPIES_BYTES = 8 * GIB  # of host memory for copies, if all were used
FALLBACK_SIDES = 20  # inputs and outputs of a layer's modules, in hidden sizes, where the base's tensors are unknown
ELEMENT_BYTES = 2

# Keys of adapter_config.json for what vLLM has not got, and for what it cannot do without.
LORA_UNSUPPORTED = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
LORA_REQUIRED = ("r", "lora_alpha", "target_modules")
LORA_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})  # others change the base as well
LORA_MODULES_TO_SAVE = frozenset({"classifier", "score"})

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}  # of an engine that takes adapters


@dataclass(frozen=True, slots=True)
class LoraArguments:
    """Arguments of vLLM's server by name, and why in a sentence; both empty for an engine without LoRA.

    `device_bytes`: what the slots take.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    device_bytes: int = 0


def arguments(spec: ModelSpec, context: EngineContext, adapters: Sequence[ModelSpec]) -> LoraArguments:
    """For an engine of `spec` with `adapters`; reads their configurations, and the headers of the base's weights."""
    if not adapters:
        return LoraArguments()
    if is_off(spec, context):
        return LoraArguments(reason="LoRA: off, configured by engine_args")
    largest = max(adapter_rank(adapter.path) for adapter in adapters)
    per_rank = _slot_bytes_per_rank(spec)
    allowed_bytes = max(SLOTS_SHARE * spec.weights_bytes, SLOTS_BYTES)
    slots = SLOTS
    rank = _served_rank(max(largest, LEAST_RANK, min(2 * largest, ROOMY_RANK[context.device])))
    if slots * rank * per_rank > allowed_bytes:
        rank = _served_rank(max(largest, LEAST_RANK))
    while slots > 1 and slots * rank * per_rank > allowed_bytes:
        slots -= 1
    slots_bytes = slots * rank * per_rank
    values = {
        "enable-lora": True,
        "max-lora-rank": rank,
        "max-loras": slots,
        "max-cpu-loras": max(slots, _copies(adapters)),
    }
    found = "1 adapter" if len(adapters) == 1 else f"{len(adapters)} adapters"
    reason = (
        f"LoRA: {found} found, of rank up to {largest}; taken up to rank {rank}, {slots} in one batch, "
        f"which takes {slots_bytes // MIB} MiB"
    )
    return LoraArguments(values, reason, slots_bytes)


def started_rank(args: Sequence[str]) -> int | None:
    """The rank up to which an engine with this command line takes adapters; None for one without LoRA."""
    if "--enable-lora" not in args:
        return None
    try:
        return int(args[args.index("--max-lora-rank") + 1])
    except (ValueError, IndexError):
        return DEFAULT_LORA_RANK  # vLLM's own


def is_off(spec: ModelSpec, context: EngineContext) -> bool:
    """Whether the configuration keeps an engine for `spec` from taking adapters."""
    for configured in (spec.overrides.engine_args, context.engine_args):
        for key, value in configured.items():
            if argument_name(key) in ("enable-lora", "no-enable-lora"):
                return not value if argument_name(key) == "enable-lora" else bool(value)
    return False


def _served_rank(rank: int) -> int:
    return next((allowed for allowed in LORA_RANKS if allowed >= rank), LORA_RANKS[-1])


def _copies(adapters: Sequence[ModelSpec]) -> int:
    wanted = max(LEAST_COPIES, 2 * len(adapters))
    largest_bytes = max(adapter.weights_bytes for adapter in adapters)
    return wanted if not largest_bytes else min(wanted, COPIES_BYTES // largest_bytes)


def _slot_bytes_per_rank(spec: ModelSpec) -> int:
    """What each rank of one slot takes: a row as long as the inputs, and one as the outputs, of every matrix."""
    sides = 0
    for name, tensor in tensors(spec.path, spec.fingerprint).items():
        if len(tensor.shape) >= 2 and "vision" not in name and "visual" not in name:
            *stacked, first, second = tensor.shape
            count = 1
            for size in stacked:
                count *= size
            sides += count * (first + second)
    if not sides:
        sides = FALLBACK_SIDES * (spec.hidden_size or 0) * (spec.num_layers or 0)
    return sides * ELEMENT_BYTES


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
