"""Would a library have to run Python code of the model's folder? Then it is refused unless it is trusted.

Many published configurations name code (`auto_map`) that the library has long had built in. Without trust, transformers
and vLLM take their own class for a `model_type` that they know, so such a model is safe to serve, provided that the
code in the folder is the same model. The names tell: DeepSeek-V3's `DeepseekV3Config` is transformers' own, but Jina's
`XLMRobertaFlashConfig` under `model_type: xlm-roberta` is not `XLMRobertaConfig`, and its weights, loaded into the
built-in class, would silently give wrong vectors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.discovery.native_types import NATIVE_CONFIGS, VLLM_CONFIGS
from models.discovery.safety import printable

_BUILT_IN_TAIL = re.compile(r"^(Model|LMHeadModel|For[A-Z]\w*|PreTrainedModel|EncoderModel)$")

# What a configuration may say in words of the folder's own code, which the built-in class does not read: it computes
# as if these were the values. nomic-embed-text-v1 and v1.5 say just that; v2-moe is another model under the same type.
_ASSUMED: Mapping[str, Mapping[str, object]] = {
    "nomic_bert": {
        "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072, "activation_function": "swiglu", "prenorm": False,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "qkv_proj_bias": False,
        "mlp_fc1_bias": False, "mlp_fc2_bias": False, "use_rms_norm": False, "moe_every_n_layers": 0, "num_experts": 0,
        "rotary_scaling_factor": 1.0, "rotary_emb_scale_base": 1.0,
    }
}  # fmt: skip

_PYLATE_DENSE = "pylate.models.Dense.Dense"  # sentence-transformers reads it as its own


def custom_config(config: Mapping[str, Any], engine: str) -> str | None:
    """Why config.json needs the folder's own code, or None. `engine` is "vllm" or "transformers"."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or not auto_map:
        return None
    model_type = config.get("model_type")
    native = NATIVE_CONFIGS.get(model_type) if isinstance(model_type, str) else None
    if engine == "vllm" and model_type in VLLM_CONFIGS:
        return None  # vLLM brings configuration and model itself
    if native is None:
        return f"config.json: auto_map, and model_type {printable(str(model_type))} is not built into transformers"
    for auto_class, reference in auto_map.items():
        if auto_class == "AutoTokenizer":
            continue  # transformers 5 heeds it in tokenizer_config.json only; Phi-4-mini has a stray one
        name = class_name(reference)
        if not _is_built_in(name, native):
            return (
                f"config.json: auto_map names {printable(str(auto_class))} {printable(name)}, "
                f"which is not transformers' own for model_type {printable(str(model_type))}"
            )
    return _unread(config, native)


def _unread(config: Mapping[str, Any], native: str) -> str | None:
    for field, assumed in _ASSUMED.get(config["model_type"], {}).items():
        value = config.get(field)
        if value is not None and value != assumed:
            return f"config.json: {field} {printable(str(value))}, which transformers' own {native} does not know"
    return None


def unknown_type(config: Mapping[str, Any], modules: Sequence[Mapping[str, Any]] | None) -> str | None:
    """Why transformers cannot load config.json, with or without the folder's own code, or None."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type in NATIVE_CONFIGS or config.get("auto_map"):
        return None
    if modules and not str(modules[0].get("type")).endswith("Transformer"):
        return None  # a module that does without it
    return f"config.json: model_type {printable(model_type)} is not known to transformers, which would have to load it"


def custom_processing(document: Mapping[str, Any], shown: str) -> str | None:
    """Why a tokenizer or processor configuration needs the folder's own code, or None.

    There is no telling whether the built-in class splits text the same way (gte-Qwen2's code appends an end token,
    under the built-in's name), so that every `auto_map` counts here.
    """
    auto_map = document.get("auto_map")
    if not auto_map:
        return None
    reference = next(iter(auto_map.values()), None) if isinstance(auto_map, dict) else auto_map
    return f"{shown}: auto_map names {printable(class_name(reference))}"


def custom_module(modules: Sequence[Mapping[str, Any]]) -> str | None:
    """Why modules.json needs code from outside sentence-transformers, or None."""
    for module in modules:
        kind = module.get("type")
        if not (isinstance(kind, str) and (kind.startswith("sentence_transformers.") or kind == _PYLATE_DENSE)):
            return f"modules.json: module type {printable(str(kind))} is not sentence-transformers' own"
    return None


def class_name(reference: object) -> str:
    """`repo--module.Class` → `Class`; of a list (slow and fast tokenizer) the last one that is set."""
    if isinstance(reference, list):
        reference = next((item for item in reversed(reference) if item), "")
    return str(reference).rpartition("--")[2].rpartition(".")[2]


def _is_built_in(name: str, native_config: str) -> bool:
    if name == native_config:
        return True
    stem = native_config.removesuffix("Config")
    return name.startswith(stem) and _BUILT_IN_TAIL.match(name[len(stem) :]) is not None
