"""The settings of the scheduler: one meaning each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Lane = Literal["generation", "retrieval"]


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
    retrieval_share: float = 0.15  # of the budget, kept for embedding and reranking models where there are any
    sleep_memory_bytes: int = 0  # host memory for the weights of models that sleep; 0: models never sleep


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler needs to know of one model."""

    footprint_bytes: int  # measured, or an estimate
    load_cost_s: float  # measured, or an estimate
    pinned: bool = False
    concurrency: int | None = None
    keep_alive_s: float | None = None
    priority: int = 0  # of waiting models, that with the highest number has its turn first
    lane: Lane = "generation"
    cost_source: str = "guess: it was never loaded"  # where load_cost_s is from, for people
    size_source: str = "estimated"  # where footprint_bytes is from
    sleep_levels: tuple[int, ...] = ()  # what its engine can do: 1 (weights in host memory), 2 (none); () never sleeps
    wake_cost_s: float | None = None  # measured; None: never measured
    asleep_bytes: int | None = None  # left on the device while asleep, measured; None: never measured
    weights_bytes: int = 0  # what level 1 would take of host memory
    remote: bool = False  # served elsewhere: always ready, takes no memory, never leaves for another
