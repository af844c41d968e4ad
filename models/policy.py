"""The settings of the scheduler: one meaning each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Policy:
    """How models share the device."""

    residency: Literal["auto", "one"] = "auto"  # as many as fit, or a single model at a time
    swap_share: float = 0.2  # share of time that may go to swapping while the device has work
    max_wait_s: float = 60.0  # how long a request may wait for its turn, loading time not counted
    max_queued: int = 2048  # waiting requests in all
    max_queued_per_model: int = 1024
    concurrency: int = 256  # running requests per model, unless the model says otherwise
    keep_alive_s: float = 0.0  # an idle model is unloaded after this long; 0: never
    drain_timeout_s: float = 300.0  # a running answer is cut off only after this long
    load_timeout_s: float = 600.0
    stop_grace_s: float = 5.0  # between TERM and KILL


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler needs to know of one model."""

    footprint_bytes: int  # measured, or an estimate
    load_cost_s: float  # measured, or an estimate
    pinned: bool = False
    concurrency: int | None = None
    keep_alive_s: float | None = None
