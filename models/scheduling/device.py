"""What is true of one device now: its models, who waits and runs, the memory, and what the device is busy with.

`Device` keeps the books and decides nothing. Its sets (`wanted`, `granting`, `draining`, `ending`) let a decision look
only at the models that it is about. They are dicts, so that their order is that of events, the same in every run.
"""

from __future__ import annotations

from models.errors import RoundhouseError
from models.scheduling.ledger import Ledger
from models.scheduling.policy import Limits, Policy
from models.scheduling.residency import Trigger, next_state
from models.scheduling.values import Action, Change, Command, Entry, Grant, Load, Reject, Sleep, Unload, Waiter, Wake
from models.types import State

ASKED = "\0asked"  # what a model drains for when somebody asked for its unload …
CHANGED = "\0changed"  # … when its folder has other content now, or is gone …
IDLE = "\0idle"  # … when its keep-alive is over
AT_REST = frozenset({State.COLD, State.FAILED})
LEAVING = frozenset({State.DRAINING, State.UNLOADING})


class Device:
    """Only the scheduler's events change it."""

    def __init__(self, policy: Policy, budget_bytes: int) -> None:
        self.policy = policy
        self.ledger = Ledger(budget_bytes)
        self.host = Ledger(0)  # of host memory; its budget is the policy's, which may change
        self.entries: dict[str, Entry] = {}
        self.owner: dict[int, Entry] = {}  # ticket → where it waits or runs
        self.queued = 0
        self.acting: Entry | None = None  # the model that the device is loading, waking, putting to sleep or ending
        self.room_for: Entry | None = None  # that for which models were fenced last
        self.next_s: float | None = None  # when the plan must be looked at again, though nothing happened
        self.changes: list[Change] = []
        self.retrieval_bytes = 0  # what all known retrieval models together would take
        self.wanted: dict[str, Entry] = {}  # waited for, and not on the device
        self.granting: dict[str, Entry] = {}  # ready, with waiters
        self.draining: dict[str, Entry] = {}
        self.ending: dict[str, Entry] = {}  # to be ended as soon as the device is free

    # -- models ----------------------------------------------------------------------------------------------------

    def configure(self, model_id: str, limits: Limits) -> None:
        """Tells a model's limits, for the first time or anew."""
        entry = self.entries.get(model_id)
        if entry is None:
            entry = self.entries[model_id] = Entry(model_id, limits)
        else:
            self.retrieval_bytes -= _retrieval_bytes(entry)
            entry.limits, entry.removed = limits, False
        self.retrieval_bytes += _retrieval_bytes(entry)

    def drop(self, entry: Entry) -> None:
        """Forgets a model of which nothing is left."""
        if self.entries.pop(entry.model_id, None) is not None:
            self.retrieval_bytes -= _retrieval_bytes(entry)

    def concurrency(self, entry: Entry) -> int:
        return entry.limits.concurrency or self.policy.concurrency

    def keep_alive_s(self, entry: Entry) -> float:
        """0: never. A pinned model is never unloaded for being idle."""
        if entry.limits.pinned:
            return 0.0
        return self.policy.keep_alive_s if entry.limits.keep_alive_s is None else entry.limits.keep_alive_s

    def is_leaving(self, entry: Entry) -> bool:
        """It is on its way off the device, asleep or for good."""
        return entry.state in LEAVING or (entry.state is State.SLEEPING and self.acting is entry)

    def is_ready(self, entry: Entry) -> bool:
        """A request would be let in; one that drains only because it was idle is taken back for it."""
        return entry.state is State.READY or (entry.state is State.DRAINING and entry.drain_for == IDLE)

    # -- requests --------------------------------------------------------------------------------------------------

    def enqueue(self, entry: Entry, ticket: int, waiter: Waiter) -> None:
        entry.waiting[ticket] = waiter
        entry.turns.add(waiter.client, ticket)
        entry.unheld += not waiter.holds
        self.owner[ticket] = entry
        self.queued += 1
        if len(entry.waiting) == 1:
            self.reindex(entry)

    def dequeue(self, entry: Entry, ticket: int) -> Waiter:
        waiter = entry.waiting.pop(ticket)
        entry.turns.remove(waiter.client, ticket)
        entry.unheld -= not waiter.holds
        self.queued -= 1
        if not entry.waiting:
            self.reindex(entry)
        return waiter

    def reject(self, entry: Entry, ticket: int, error: RoundhouseError) -> Command:
        self.dequeue(entry, ticket)
        del self.owner[ticket]
        return Reject(ticket, error)

    def reject_all(self, entry: Entry, error: RoundhouseError) -> list[Command]:
        return [self.reject(entry, ticket, error) for ticket in list(entry.waiting)]

    def grant_waiting(self, entry: Entry, now: float) -> list[Command]:
        """Lets in those who wait for a ready model, clients in turn, up to its concurrency."""
        granted: list[Command] = []
        most = self.concurrency(entry)
        while entry.waiting and len(entry.running) < most:
            ticket = next(iter(entry.turns))
            entry.turns.end_turn(entry.waiting[ticket].client)
            granted.append(self._grant(entry, ticket, now))
        if entry.unheld:  # they take no place
            asking = [ticket for ticket, waiter in entry.waiting.items() if not waiter.holds]
            granted += [self._grant(entry, ticket, now) for ticket in asking]
        return granted

    def _grant(self, entry: Entry, ticket: int, now: float) -> Command:
        if self.dequeue(entry, ticket).holds:
            entry.running[ticket] = now
        else:
            del self.owner[ticket]
        return Grant(ticket)

    # -- states ----------------------------------------------------------------------------------------------------

    def move(self, entry: Entry, trigger: Trigger, reason: str) -> None:
        """Changes the state by the table in residency.py, and tells it. Raises IllegalTransition."""
        before, entry.state = entry.state, next_state(entry.state, trigger)
        self.changes.append(Change(entry.model_id, before, entry.state, trigger, reason))
        self.reindex(entry)

    def reindex(self, entry: Entry) -> None:
        """Puts `entry` into the set that its state, its waiters and what was asked of it call for."""
        index = None if entry is self.acting else self._index(entry)
        if entry.index is not index:
            if entry.index is not None:
                del entry.index[entry.model_id]
            if index is not None:
                index[entry.model_id] = entry
            entry.index = index

    def _index(self, entry: Entry) -> dict[str, Entry] | None:
        match entry.state:
            case State.READY:
                return self.granting if entry.waiting else None
            case State.DRAINING:
                return self.draining
            case State.UNLOADING:
                return self.ending
            case State.SLEEPING if entry.to_be_ended:
                return self.ending
            case State.COLD | State.FAILED | State.SLEEPING:
                return self.wanted if entry.waiting else None
        return None

    # -- actions ---------------------------------------------------------------------------------------------------

    def begin_load(self, entry: Entry, now: float) -> Action:
        self._begin(entry, now)
        self.move(entry, Trigger.LOAD, "asked for")
        entry.stale = entry.unload_asked = False
        self.ledger.charge(entry.model_id, entry.limits.footprint_bytes)
        return Load(entry.model_id)

    def begin_wake(self, entry: Entry, now: float) -> Action:
        self._begin(entry, now)
        self.move(entry, Trigger.WAKE, "asked for")
        charged_bytes = self.ledger.charges[entry.model_id]
        self.ledger.correct(entry.model_id, max(charged_bytes, entry.limits.footprint_bytes))
        return Wake(entry.model_id)

    def begin_sleep(self, entry: Entry, level: int, now: float, reason: str) -> Action:
        self._begin(entry, now)
        self.move(entry, Trigger.SLEEP, reason)
        entry.asleep_level = level
        entry.host_bytes = entry.limits.weights_bytes if level == 1 else 0
        self.host.charge(entry.model_id, entry.host_bytes)
        return Sleep(entry.model_id, level)

    def begin_unload(self, entry: Entry, now: float, reason: str) -> Action:
        """Also of an engine that ended by itself: what is left of its tree is ended before its memory is free."""
        self._begin(entry, now)
        if entry.state is State.UNLOADING:
            self.reindex(entry)
        else:
            self.move(entry, Trigger.UNLOAD, reason)
        return Unload(entry.model_id)

    def _begin(self, entry: Entry, now: float) -> None:
        self.acting = entry
        entry.action_since_s = now

    def finish_action(self, model_id: str) -> Entry:
        """Raises RuntimeError for a report of something that was not under way: a bug of ours."""
        entry = self.acting
        if entry is None or entry.model_id != model_id:
            busy = entry.model_id if entry else "nothing"
            raise RuntimeError(f"the device was not busy with {model_id} but with {busy}")
        self.acting = None
        return entry

    def credit(self, entry: Entry) -> None:
        """Its process tree is confirmed gone: its memory is free."""
        self.ledger.credit(entry.model_id)
        if entry.model_id in self.host.charges:
            self.wake_up(entry)

    def wake_up(self, entry: Entry) -> None:
        """It is not asleep any more: the host memory that held its weights is free."""
        self.host.credit(entry.model_id)
        entry.host_bytes, entry.asleep_level = 0, None


def _retrieval_bytes(entry: Entry) -> int:
    """Its part in `Device.retrieval_bytes`."""
    return entry.limits.footprint_bytes if entry.limits.lane == "retrieval" else 0
