"""What a retrieval model's folder tells of it before it is loaded: how it pools, its labels, its longest input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.model_config import MAX_CONFIG_BYTES, read_config, read_json
from engines.runtime.transformers_args import STATIC_MAX_TOKENS, UNDECLARED_MAX_TOKENS
from models.types import Method, ModelSpec, Task

MAX_LABELS = 65_536  # more is no classifier, but a mistake, which would take all memory
STATIC = ".StaticEmbedding"
POOLING_FIELD = "pooling_mode"
# In the words of sentence-transformers, by the fields of its older versions; where TEI has another, that.
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last_token",
}
TEI_MODES = {"lasttoken": "last_token"}


def pooling_of(spec: ModelSpec, method: Method | None) -> str | None:
    """Of an embedding model, several joined by "+"; None for another, and where nothing tells it."""
    if spec.task is not Task.EMBED or method is Method.MULTI_VECTOR:
        return None
    if method is Method.SPARSE:
        return "splade"
    modules = _modules(spec.path)
    if modules is None:
        return _pooled(spec.path / "1_Pooling") or (
            "last_token" if spec.architecture.endswith("ForCausalLM") else "mean"
        )
    for kind, path in modules:
        if kind.endswith(".Pooling"):
            return _pooled(spec.path / path)
    return "mean" if any(kind.endswith(STATIC) for kind, _ in modules) else None


def longest_input(spec: ModelSpec, max_model_len: int | None) -> int:
    """In tokens, as the engine takes them; `max_model_len` is what it is told."""
    modules = _modules(spec.path)
    if modules and modules[0][0].endswith(STATIC):
        return min(STATIC_MAX_TOKENS, max_model_len or STATIC_MAX_TOKENS)
    return max_model_len or UNDECLARED_MAX_TOKENS


def labels_of(spec: ModelSpec) -> Sequence[str]:
    """Of a cross-encoder or a classifier, as transformers names them; none of a reranker that generates."""
    config = read_config(spec)
    if spec.task is Task.EMBED or not spec.architecture.endswith("ForSequenceClassification"):
        return ()
    given = config.get("id2label")
    names: Mapping[str, Any] = given if isinstance(given, dict) else {}
    number = config.get("num_labels", config.get("_num_labels"))
    count = number if type(number) is int and 0 < number <= MAX_LABELS else len(names) or 2
    return [str(names.get(str(index), f"LABEL_{index}")) for index in range(count)]


def _modules(folder: Path) -> list[tuple[str, str]] | None:
    """The type and path of each module, a router's own in its place; None without modules.json."""
    path = folder / "modules.json"
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    modules = [(str(module.get("type")), str(module.get("path") or "")) for module in found if isinstance(module, dict)]
    routed = read_json(folder / "router_config.json").get("types")
    if isinstance(routed, dict):
        modules += [(str(kind), path) for path, kind in routed.items()]
    return modules


def _pooled(folder: Path) -> str | None:
    config = read_json(folder / "config.json")
    given = config.get(POOLING_FIELD)
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list):
        modes = [mode for field, mode in OLD_MODES.items() if config.get(field) is True]
    return "+".join(TEI_MODES.get(mode, mode) for mode in modes if isinstance(mode, str)) or None
