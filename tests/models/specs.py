"""Specs for tests of the manager and the catalog; no folder stands behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.types import ModelSpec, Task

MIB = 2**20


def spec(model_id: str, **changes: Any) -> ModelSpec:
    """A chat model of 100 MiB for the engine "fake"."""
    values: dict[str, Any] = {
        "path": Path("/nonexistent") / model_id,
        "task": Task.CHAT,
        "engine": "fake",
        "weights_bytes": 100 * MIB,
        "fingerprint": "1",
    }
    return ModelSpec(id=model_id, **(values | changes))
