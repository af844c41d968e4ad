"""Sizes that the ledger and the engines need, from a model's configuration. Odd values are left out, never trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.discovery.kinds import OFFSET_POSITION_TYPES
from models.discovery.safety import printable

_MAX_INT = 1 << 31
_MAX_TOKENIZER_LENGTH = 10_000_000  # tokenizers without a limit say 1e30
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
_TEXT_CONFIG_SET = frozenset(_TEXT_CONFIGS)
_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "model_max_length",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal configuration, else the whole."""
    for _ in range(2):  # Qwen-Omni nests it twice
        if _TEXT_CONFIG_SET.isdisjoint(config):
            break
        for key in _TEXT_CONFIGS:
            inner = config.get(key)
            if isinstance(inner, dict) and inner:
                config = inner
                break
    return config


def first_int(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of `keys` that holds a sensible count."""
    for key in keys:
        value = config.get(key)
        if type(value) is int and 0 < value < _MAX_INT:
            return value
    return None


def dimensions(config: Mapping[str, Any]) -> dict[str, Any]:
    """`hidden_size`, `num_layers`, `num_kv_heads`, `head_dim` as ModelSpec's fields."""
    text = text_config(config)
    hidden = first_int(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = first_int(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    return {
        "hidden_size": hidden,
        "num_layers": first_int(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "num_kv_heads": first_int(text, "num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num")
        or heads,
        "head_dim": first_int(text, "head_dim", "kv_channels")
        or (hidden // heads if hidden and heads and hidden >= heads else None),
    }


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Positions that the configuration allows for text."""
    text = text_config(config)
    positions = first_int(text, *_POSITIONS)
    if positions is not None and text.get("model_type") in OFFSET_POSITION_TYPES and positions % 64 == 2:
        positions -= 2
    return positions


def max_sentence_tokens(
    positions: int | None, sentence_config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> int | None:
    """The shortest of sentence-transformers' `max_seq_length`, the tokenizer's limit and the positions."""
    limit = first_int(sentence_config, "max_seq_length")
    if limit is None:
        limit = first_int(tokenizer_config, "model_max_length")
        if limit is not None and limit > _MAX_TOKENIZER_LENGTH:
            limit = None
    known = [value for value in (limit, positions) if value is not None]
    return min(known) if known else None


def dtype(config: Mapping[str, Any]) -> str | None:
    """`bfloat16`, as the configuration names it (`torch_dtype` before transformers 5, `dtype` since)."""
    for part in (config, text_config(config)):
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if isinstance(value, str) and value:
                return printable(value.removeprefix("torch."))
    return None


def quantization(config: Mapping[str, Any]) -> str | None:
    """`quant_method` of the configuration: "awq", "fp8", "compressed-tensors"…"""
    for part in (config, text_config(config)):
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, dict):
            return _method(settings)
    return None


def _method(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    if isinstance(method, str) and method:
        return printable(method)
    if settings.get("load_in_4bit") is True or settings.get("load_in_8bit") is True:
        return "bitsandbytes"
    if settings.get("config_groups"):
        return "compressed-tensors"
    return None
