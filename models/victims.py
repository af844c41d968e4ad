"""Who leaves the device for a model that does not fit beside what is there, and when. Pure, as the scheduler is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.scheduling import Entry
from models.types import State

if TYPE_CHECKING:
    from models.scheduler import Scheduler

LEAVING = frozenset({State.DRAINING, State.UNLOADING})
MINIMAL_COST_S = 0.01  # a model that was never measured must not divide by zero


def kept_bytes(scheduler: Scheduler) -> int:
    """What pinned models hold, less those that leave already (by request): they never leave for another."""
    charges = scheduler.ledger.charges
    staying = (e for e in scheduler.entries.values() if e.limits.pinned and e.state not in LEAVING)
    return sum(charges.get(entry.model_id, 0) for entry in staying)


def choose(scheduler: Scheduler, target: Entry, now: float) -> list[Entry] | None:
    """The fewest models whose leaving makes room for `target`; those that leave already come first.

    Idle ones go before busy ones, by time idle over the cost to bring them back; busy ones by how long their turn has
    lasted. None: not even all of them together would make room.
    """
    candidates = [e for e in scheduler.entries.values() if _can_leave(scheduler, e)]
    if scheduler.policy.residency == "one":
        too_large = target.limits.footprint_bytes > scheduler.ledger.budget_bytes
        return None if too_large or kept_bytes(scheduler) else candidates
    candidates.sort(key=lambda entry: _rank(entry, now))
    missing = target.limits.footprint_bytes - scheduler.ledger.free_bytes
    chosen: list[Entry] = []
    for entry in candidates:
        if missing <= 0:
            break
        chosen.append(entry)
        missing -= scheduler.ledger.charges[entry.model_id]
    if missing > 0:
        return None
    return _without_needless(scheduler, chosen, -missing)


def _can_leave(scheduler: Scheduler, entry: Entry) -> bool:
    charged = entry.model_id in scheduler.ledger.charges
    return charged and (not entry.limits.pinned or entry.state in LEAVING)


def _rank(entry: Entry, now: float) -> tuple[int, float]:
    """Smaller leaves sooner."""
    if entry.state in LEAVING:
        return (0, 0.0)
    cost_s = max(MINIMAL_COST_S, entry.cost_s)
    if entry.state is State.READY and not entry.running:
        return (1, -(now - entry.last_used_s) / cost_s)
    return (2, entry.ready_since_s)


def _without_needless(scheduler: Scheduler, chosen: list[Entry], spare_bytes: int) -> list[Entry]:
    """Drops those whose memory is not needed after all: a large one chosen last may make an earlier one needless."""
    needed: list[Entry] = []
    for entry in chosen:
        size = scheduler.ledger.charges[entry.model_id]
        if entry.state is State.READY and size <= spare_bytes:
            spare_bytes -= size
        else:
            needed.append(entry)
    return needed


def turn_ends_s(scheduler: Scheduler, target: Entry, chosen: list[Entry], now: float) -> float:
    """When `chosen` may be fenced for `target`: at once if all are idle, else when their turn is over.

    A hot model stays for `cost * (1 / swap_share - 1)`, so that swapping takes no more than its share of the time, but
    not longer than the oldest waiter's `max_wait_s` allows.
    """
    busy = [entry for entry in chosen if entry.state is State.READY and entry.running]
    if not busy:
        return now
    policy = scheduler.policy
    cost_s = target.cost_s
    turn_s = cost_s * (1 / policy.swap_share - 1) if policy.swap_share > 0 else float("inf")
    fair = max(entry.ready_since_s for entry in busy) + turn_s
    return min(fair, latest_start_s(scheduler))


def latest_start_s(scheduler: Scheduler) -> float:
    """The latest time for the next swap with which every waiting model can still begin within `max_wait_s`."""
    wanted = [e for e in scheduler.entries.values() if e.waiting and e.state in (State.COLD, State.FAILED)]
    latest, ahead_s = float("inf"), 0.0
    for entry in sorted(wanted, key=lambda entry: entry.oldest_s):
        latest = min(latest, entry.oldest_s + scheduler.policy.max_wait_s - ahead_s)
        ahead_s += entry.cost_s
    return latest
