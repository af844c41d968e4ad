"""A model folder's config.json as engines look at it. Odd values are taken for absent; nothing is raised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.types import ModelSpec

MAX_CONFIG_BYTES = 4 << 20
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")


def read_config(spec: ModelSpec) -> Mapping[str, Any]:
    """Empty where there is none; read once for each content of the folder."""
    return _read(spec.path / "config.json", spec.fingerprint)


@lru_cache(maxsize=256)
def _read(path: Path, fingerprint: str) -> Mapping[str, Any]:
    return read_json(path)


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a small JSON file; empty where it is none, too large or cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        found = json.loads(text) if len(text) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a multimodal configuration, else the whole."""
    return next((part for key in _TEXT_CONFIGS if isinstance(part := config.get(key), dict) and part), config)


def number(config: Mapping[str, Any], *keys: str) -> int:
    """The first of `keys`, of the text part first, that holds a positive whole number; 0 where none does."""
    for part in (text_part(config), config):
        for key in keys:
            value = part.get(key)
            if type(value) is int and value > 0:
                return value
    return 0
