"""What the endpoints are given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Depends, Request

from app.config import Settings
from models.manager import ModelManager
from utils.telemetry import Metrics

Phase = Literal["starting", "ready", "stopping"]


@dataclass(slots=True)
class AppState:
    """One per app. Written by `app.lifecycle` alone; endpoints read it."""

    settings: Settings
    manager: ModelManager
    metrics: Metrics
    engine_errors: Mapping[str, str]  # engines that could not be imported, and why
    device: str
    phase: Phase = "starting"
    config_error: str | None = None  # why the configuration file, as it is now, is not in use
    scan_error: str | None = None
    started_s: float = field(default_factory=time.monotonic)


def get_state(request: Request) -> AppState:
    state = request.app.state.roundhouse
    assert isinstance(state, AppState)
    return state


State = Annotated[AppState, Depends(get_state)]
