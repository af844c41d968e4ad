"""What is shown of one model and of the memory, put together from what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from models.scheduling.scheduler import Scheduler
from models.types import ModelSpec, ModelStatus, State


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """The ledger in two numbers."""

    budget_bytes: int
    charged_bytes: int


def memory_status(scheduler: Scheduler) -> MemoryStatus:
    return MemoryStatus(scheduler.ledger.budget_bytes, scheduler.ledger.charged_bytes)


def model_status(
    scheduler: Scheduler, spec: ModelSpec, memory_bytes: int | None, adapters: tuple[str, ...], now: float
) -> ModelStatus:
    """`memory_bytes` is what its engine was measured to take, `adapters` are in it."""
    entry = scheduler.entries[spec.id]
    keep_alive_s = entry.limits.keep_alive_s
    return ModelStatus(
        id=spec.id,
        state=entry.state,
        task=spec.task,
        engine=spec.engine,
        pinned=entry.limits.pinned,
        running=len(entry.running),
        queued=len(entry.waiting),
        memory_bytes=memory_bytes,
        estimated_bytes=entry.limits.footprint_bytes,
        load_s=entry.load_s,
        loads=entry.loads,
        idle_s=now - entry.last_used_s if entry.state is State.READY and not entry.running else None,
        keep_alive_s=scheduler.policy.keep_alive_s if keep_alive_s is None else keep_alive_s,
        error=entry.error,
        retry_after_s=max(0.0, entry.retry_at_s - now) if entry.state is State.FAILED else None,
        priority=entry.limits.priority,
        answered_s_ago=None if entry.answered_s is None else now - entry.answered_s,
        wake_s=entry.wake_s,
        host_bytes=entry.host_bytes,
        adapters=adapters,
        expected_s=scheduler.predicted_wait_s(spec.id, now) if entry.waiting else None,
    )
