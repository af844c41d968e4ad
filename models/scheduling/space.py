"""How much of the device's memory a model may have, lane by lane.

`retrieval_share` of the budget, but no more than all known retrieval models together take, is kept for embedding and
reranking models (the lane "retrieval"): chat models (the lane "generation") may not use it, so that retrieval never has
to evict chat. Only a chat model that would not fit otherwise, even alone, may use as much of it as it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.scheduling.device import Device
from models.scheduling.policy import Lane
from models.scheduling.values import Entry
from models.types import State


@dataclass(slots=True)
class Space:
    """What is left for one model, of which `reserve_bytes` is kept from it for retrieval models."""

    budget_bytes: int
    reserve_bytes: int
    held: dict[Lane, int]

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.held["generation"] - max(self.reserve_bytes, self.held["retrieval"])


def space_for(device: Device, target: Entry) -> Space:
    """What `target` may have, what it already holds included."""
    charges, entries = device.ledger.charges, device.entries
    held: dict[Lane, int] = {"generation": 0, "retrieval": 0}
    pinned_bytes = 0  # of models of its own lane
    for model_id, size_bytes in charges.items():
        entry = entries[model_id]
        if entry is target:
            continue
        lane = entry.limits.lane
        held[lane] += size_bytes
        if lane == target.limits.lane and entry.limits.pinned and not device.is_leaving(entry):
            pinned_bytes += size_bytes
    budget_bytes = device.ledger.budget_bytes
    reserve_bytes = 0
    if target.limits.lane == "generation":
        alone_bytes = budget_bytes - pinned_bytes - target.limits.footprint_bytes
        reserve_bytes = min(retrieval_reserve_bytes(device), alone_bytes)
    return Space(budget_bytes, reserve_bytes, held)


def retrieval_reserve_bytes(device: Device) -> int:
    """What is kept for retrieval models. Nothing where a single model at a time is on the device."""
    if device.policy.residency == "one":
        return 0
    return min(int(device.policy.retrieval_share * device.ledger.budget_bytes), device.retrieval_bytes)


def fits(device: Device, target: Entry, kept_bytes: int = 0) -> bool:
    """True when `target` can be brought onto the device now. `kept_bytes` are kept for models that go before it."""
    need_bytes = target.limits.footprint_bytes + kept_bytes
    if need_bytes > device.ledger.free_bytes + device.ledger.charges.get(target.model_id, 0):
        return False
    if device.policy.residency == "one" and any(is_resident(device, entry) for entry in charged(device, target)):
        return False
    return need_bytes <= space_for(device, target).free_bytes


def charged(device: Device, target: Entry) -> list[Entry]:
    """The other models that hold memory of the device."""
    entries = device.entries
    return [entries[model_id] for model_id in device.ledger.charges if entries[model_id] is not target]


def is_resident(device: Device, entry: Entry) -> bool:
    """It is more than what a sleeping model leaves behind."""
    return entry.state is not State.SLEEPING or device.acting is entry


def held_bytes(device: Device, target: Entry, others: list[Entry]) -> int:
    """What `target` and `others` hold together."""
    charges = device.ledger.charges
    return charges.get(target.model_id, 0) + sum(charges[entry.model_id] for entry in others)


def pinned_bytes(device: Device, target: Entry) -> int:
    """What other models hold that never leave for another."""
    pinned = (e for e in charged(device, target) if e.limits.pinned and not device.is_leaving(e))
    return sum(device.ledger.charges[entry.model_id] for entry in pinned)


def never_fits(device: Device, target: Entry) -> bool:
    """True when not even the leaving of all that may leave would make room."""
    pinned = pinned_bytes(device, target)
    if device.policy.residency == "one" and pinned:
        return True
    return target.limits.footprint_bytes > device.ledger.budget_bytes - pinned
