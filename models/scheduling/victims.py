"""Who leaves the device for a model that does not fit beside what is there. Pure, as the scheduler is.

In this order: those that leave already; sleepers, which hold little and serve nobody; models of the target's own lane,
idle before busy; those of the other lane. Idle ones by time idle over what bringing them back costs (waking, where they
would sleep); of busy ones first those with the fewest requests, which will be missed least, and then those whose turn
began first. Never a pinned one, never more than needed, and from a chat model's sight only what retrieval models hold
beyond the memory that is kept for them. A retrieval model looks at chat models only where it could not fit beside them
even with every other retrieval model gone.
"""

from __future__ import annotations

from collections.abc import Collection

from models.scheduling.device import Device
from models.scheduling.sleeping import idle_over_cost
from models.scheduling.space import Space, charged, is_resident, never_fits, space_for
from models.scheduling.values import Entry
from models.types import State


def choose(
    device: Device, target: Entry, now: float, kept_bytes: int = 0, claimed: Collection[str] = ()
) -> list[Entry] | None:
    """The fewest models whose leaving makes room for `target`. None: not even all of them together would make room.

    `kept_bytes` are kept for models that go before it, for which those in `claimed` leave.
    """
    candidates = [e for e in charged(device, target) if can_leave(device, e) and e.model_id not in claimed]
    if device.policy.residency == "one":
        return _choose_all(device, target, candidates, now)
    candidates.sort(key=lambda entry: _rank(device, target, entry, now))
    need_bytes = target.limits.footprint_bytes + kept_bytes
    return _fewest(device, target, candidates, need_bytes)


def can_leave(device: Device, entry: Entry) -> bool:
    return not entry.limits.pinned or device.is_leaving(entry)


def _choose_all(device: Device, target: Entry, candidates: list[Entry], now: float) -> list[Entry] | None:
    """Where a single model at a time is on the device: all that are there, and sleepers as far as needed."""
    if never_fits(device, target):
        return None
    there = [entry for entry in candidates if is_resident(device, entry)]
    sleepers = [entry for entry in candidates if not is_resident(device, entry)]
    sleepers.sort(key=lambda entry: _rank(device, target, entry, now))
    space = space_for(device, target)
    for entry in there:
        _take(device, space, entry)
    for entry in sleepers:
        if target.limits.footprint_bytes <= space.free_bytes:
            break
        _take(device, space, entry)
        there.append(entry)
    return there


def _rank(device: Device, target: Entry, entry: Entry, now: float) -> tuple[int, int, float]:
    """Smaller leaves sooner."""
    if device.is_leaving(entry):
        return (0, 0, 0.0)
    if entry.state is State.SLEEPING:
        return (1, len(entry.waiting), -idle_over_cost(device, entry, now))
    other_lane = 2 if entry.limits.lane != target.limits.lane else 0
    if entry.state is State.READY and not entry.running:
        return (2 + other_lane, 0, -idle_over_cost(device, entry, now))
    return (3 + other_lane, len(entry.running) + len(entry.waiting), entry.ready_since_s)


def _fewest(device: Device, target: Entry, candidates: list[Entry], need_bytes: int) -> list[Entry] | None:
    space = space_for(device, target)
    chosen: list[Entry] = []
    for entry in candidates:
        if need_bytes <= space.free_bytes:
            break
        _take(device, space, entry)
        chosen.append(entry)
    if need_bytes > space.free_bytes:
        return None
    return _without_needless(device, space, chosen, need_bytes)


def _without_needless(device: Device, space: Space, chosen: list[Entry], need_bytes: int) -> list[Entry]:
    """Drops those whose memory is not needed after all: a large one chosen last may make an earlier one needless."""
    needed: list[Entry] = []
    for entry in chosen:
        lane, size_bytes = entry.limits.lane, device.ledger.charges[entry.model_id]
        space.held[lane] += size_bytes
        if device.is_leaving(entry) or need_bytes > space.free_bytes:
            space.held[lane] -= size_bytes
            needed.append(entry)
    return needed


def _take(device: Device, space: Space, entry: Entry) -> None:
    space.held[entry.limits.lane] -= device.ledger.charges[entry.model_id]
