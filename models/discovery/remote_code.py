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
    return None


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
