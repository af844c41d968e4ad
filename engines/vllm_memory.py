"""How much memory an engine of vLLM takes, and how much of it for the KV cache. Pure arithmetic, in bytes.

The KV cache, unless configured, is what four requests of full length need, within bounds, but less where that lets
other models stay on the device:

1. A second chat model of the same size fits beside it, if COMFORTABLE_TOKENS are left to each: two models that people
   alternate between then swap no more. Not for less than that, as it is the more used model that would pay.
2. Else it takes the device for itself but for what is kept for embedding and reranking models, if USEFUL_TOKENS fit.
3. Else it takes of that too, up to USEFUL_TOKENS, and for LEAST_TOKENS at the least.
4. Where even these do not fit, LEAST_TOKENS are what the estimate says, and so the numbers with which it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines import vllm_parallel, vllm_speculative
from engines.base import EngineContext
from models.types import ModelSpec

MIB = 1024**2
GIB = 1024**3

FULL_LENGTH_REQUESTS = 4
MIN_KV_BYTES = {"cpu": 256 * MIB, "cuda": 1 * GIB}
MAX_KV_BYTES = {"cpu": 4 * GIB, "cuda": 16 * GIB}
COMFORTABLE_TOKENS = 32_768  # one long conversation, or a dozen ordinary ones at once
USEFUL_TOKENS = 8_192  # a conversation with some documents in it
LEAST_TOKENS = 2_048  # a question and its answer
BLOCK_TOKENS = 128  # the largest block that vLLM chooses by itself (on CPU); lengths are counted in whole blocks

# Beside weights and KV cache. CPU: a tiny model's processes hold 0.3 GiB that their launcher has not, a larger one's
# activations and repacked weights more. CUDA: context, workspace, activations of the profiling run and captured graphs;
# replaced by what NVML measures after the first load.
OVERHEAD_BYTES = {"cpu": 768 * MIB, "cuda": 2 * GIB}

_FLOAT32 = frozenset({"float32", "float"})


@dataclass(frozen=True, slots=True)
class _Wishes:
    """Sizes of a KV cache, each at most the one before."""

    full: int
    comfortable: int
    useful: int
    least: int
    why: str  # the full one


def kv_cache(spec: ModelSpec, context: EngineContext, lora_bytes: int = 0) -> tuple[int, str]:
    """(bytes of KV cache, why in a sentence); `lora_bytes` are taken beside the weights."""
    own, shared = spec.overrides.kv_cache_bytes, context.kv_cache_bytes
    if own is not None:
        return own, f"KV cache {_size(own)}: configured for this model"
    if shared is not None:
        size = max(shared, _asked_bytes(spec, context))
        return size, f"KV cache {_size(size)}: configured for all models"
    wishes = _wishes(spec, context)
    size, why = _within_budget(wishes, loaded_weights_bytes(spec, context) + lora_bytes, context)
    return size, f"KV cache {_size(size)}: {why}"


def estimate_bytes(spec: ModelSpec, context: EngineContext, lora_bytes: int = 0) -> int:
    """Weights, slots for LoRA adapters, KV cache and overhead: what the ledger counts until a load was measured."""
    held_bytes = loaded_weights_bytes(spec, context) + lora_bytes
    return held_bytes + kv_cache(spec, context, lora_bytes)[0] + OVERHEAD_BYTES[context.device]


def loaded_weights_bytes(spec: ModelSpec, context: EngineContext) -> int:
    """Of each GPU that it is spread over, those of a draft included."""
    return -(-_all_weights_bytes(spec, context) // gpu_spread(spec, context).gpus)


def gpu_spread(spec: ModelSpec, context: EngineContext) -> vllm_parallel.Spread:
    """Over how many GPUs it is served: as configured, or as few as have room for its weights and a KV cache."""
    given = given_arguments(spec, context)
    configured = vllm_parallel.configured(given, context.device, context.gpus)
    if configured is not None or context.device != "cuda":
        return configured or vllm_parallel.ONE
    room = context.budget_bytes - OVERHEAD_BYTES["cuda"] - MIN_KV_BYTES["cuda"]
    return vllm_parallel.choose(spec, _all_weights_bytes(spec, context), room, context.gpus)


def _all_weights_bytes(spec: ModelSpec, context: EngineContext) -> int:
    """vLLM loads float32 weights in half the size, unless an engine argument says otherwise."""
    draft_bytes = vllm_speculative.draft_bytes(vllm_speculative.choose(spec, context.device, context.models_dir))
    stored = (spec.dtype or "").removeprefix("torch.")
    halved = stored in _FLOAT32 and not spec.quantization and _engine_arg(spec, context, "dtype") not in _FLOAT32
    return draft_bytes + (spec.weights_bytes // 2 if halved else spec.weights_bytes)


def kv_bytes_per_token(spec: ModelSpec, context: EngineContext) -> int | None:
    """Keys and values of one token in all layers; None where the config does not say. Too much for MLA and windows.

    Of each GPU that it is spread over.
    """
    if not (spec.num_layers and spec.num_kv_heads and spec.head_dim):
        return None
    element_bytes = 4 if _engine_arg(spec, context, "dtype") in _FLOAT32 else 2
    if _engine_arg(spec, context, "kv-cache-dtype").startswith("fp8"):
        element_bytes = 1
    spread = gpu_spread(spec, context)
    layers, heads = -(-spec.num_layers // spread.pipeline), -(-spec.num_kv_heads // spread.tensor)
    return 2 * layers * heads * spec.head_dim * element_bytes


def tokens_bytes(per_token: int, tokens: int) -> int:
    """A KV cache that holds `tokens`: in whole blocks, and one more, which vLLM keeps for itself."""
    return per_token * (-(-tokens // BLOCK_TOKENS) + 1) * BLOCK_TOKENS


def argument_name(key: str) -> str:
    """`max_num_seqs` and `--max-num-seqs` are the same argument."""
    return key.lstrip("-").replace("_", "-")


def _engine_arg(spec: ModelSpec, context: EngineContext, name: str) -> str:
    """What the configuration says of one of vLLM's arguments, for this model before all models; "" for nothing."""
    return str(given_arguments(spec, context).get(name, ""))


def given_arguments(spec: ModelSpec, context: EngineContext) -> dict[str, Any]:
    """vLLM's arguments of the configuration by name, those for this model before those for all models."""
    both = (*context.engine_args.items(), *spec.overrides.engine_args.items())
    return {argument_name(key): value for key, value in both if value is not None}


def _asked_bytes(spec: ModelSpec, context: EngineContext) -> int:
    """What the length takes that the owner asks for; 0 where none is asked for."""
    per_token, length = kv_bytes_per_token(spec, context), spec.overrides.max_model_len
    return tokens_bytes(per_token, length) if per_token and length else 0


def _wishes(spec: ModelSpec, context: EngineContext) -> _Wishes:
    device = context.device
    low, high = MIN_KV_BYTES[device], MAX_KV_BYTES[device]
    per_token = kv_bytes_per_token(spec, context)
    length = spec.overrides.max_model_len or spec.max_model_len
    if per_token is None or length is None:
        why = f"the least for {device}, as the config does not say what a token takes"
        return _Wishes(low, low, low, low // 4, why)
    asked = _asked_bytes(spec, context)
    wanted = tokens_bytes(per_token, FULL_LENGTH_REQUESTS * length)
    full = max(asked, min(high, max(low, wanted)))

    def holding(tokens: int) -> int:
        return max(asked, min(full, tokens_bytes(per_token, tokens)))

    return _Wishes(
        full,
        holding(min(FULL_LENGTH_REQUESTS * length, COMFORTABLE_TOKENS)),
        holding(min(length, USEFUL_TOKENS)),
        holding(min(length, LEAST_TOKENS)),
        f"{FULL_LENGTH_REQUESTS} requests of {length} tokens would take {_size(wanted)}; {device} allows "
        f"{_size(low)} to {_size(high)}",
    )


def _within_budget(wishes: _Wishes, weights_bytes: int, context: EngineContext) -> tuple[int, str]:
    """The first of the module's four ways that works, and its reason."""
    budget, kept, overhead = context.budget_bytes, context.retrieval_bytes, OVERHEAD_BYTES[context.device]
    for_two = (budget - kept) // 2 - weights_bytes - overhead
    alone = budget - kept - weights_bytes - overhead
    everything = budget - weights_bytes - overhead
    if not budget or wishes.full <= for_two:
        return wishes.full, wishes.why
    own = f"{_size(weights_bytes)} of weights and {_size(overhead)} of overhead"
    kept_for = f"{_size(kept)} kept for embedding and reranking models"
    if for_two >= wishes.comfortable:
        why = f"another model of this size fits beside it, of {_size(budget)} for models and {own}, with {kept_for}"
        return for_two, why
    if alone >= wishes.useful:
        size = min(wishes.full, alone)
        return size, wishes.why if size == wishes.full else f"what {_size(budget)} leave beside {own}, and {kept_for}"
    if everything >= wishes.least:
        size = min(wishes.useful, everything)
        return size, f"{_size(budget)} leave {_size(everything)} beside {own}; it takes of the {kept_for}"
    needed = weights_bytes + overhead + wishes.least
    return wishes.least, f"the least of use, but with {own} it needs {_size(needed)} of {_size(budget)} for models"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"
