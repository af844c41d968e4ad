"""What is known of the running app; read by health, control routes and metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.config import Settings
from models.manager import ModelManager
from utils.telemetry import Metrics

Phase = Literal["starting", "ready", "stopping"]


@dataclass(slots=True)
class AppState:
    """One per app. Written by `app.lifecycle` alone."""

    settings: Settings
    manager: ModelManager
    metrics: Metrics
    engine_errors: Mapping[str, str]  # engines that could not be imported, and why
    device: str
    phase: Phase = "starting"
    config_error: str | None = None  # why the configuration file, as it is now, is not in use
    scan_error: str | None = None
    started_s: float = field(default_factory=time.monotonic)
