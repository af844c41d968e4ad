"""Who runs on the device next. Pure: an event and the time go in, a list of commands comes out.

No await, no clock, no logging, no I/O: tests read `scheduler.on_request(...) == [Load("b")]`, and a simulation can run
a million requests through it. The manager is its only caller, so nothing here needs a lock.

After each event `_plan` decides, in this order:
1. A ready model that is not draining grants its waiters, up to its concurrency.
2. A drain whose reason went away is taken back.
3. While the device is busy with a load or an unload, nothing else starts on it.
4. A drained model (nothing runs any more, or its time is up) is unloaded.
5. Models that somebody waits for are looked at in the order of their oldest waiting request. The first that fits is
   loaded. The first that does not fit gets its victims drained: idle ones at once, busy ones when their turn is over;
   what it will need is then kept from those behind it.
6. An idle model whose keep-alive is over is drained.
"""

from __future__ import annotations

from collections.abc import Iterator

from models import refusals, victims
from models.errors import RoundhouseError
from models.ledger import Ledger
from models.policy import Limits, Policy
from models.residency import Trigger
from models.scheduling import Command, Entry, Grant, Load, Reject, Unload, Waiter
from models.types import State

RETRY_FIRST_S = 2.0  # back-off after the first failed load; doubles
RETRY_MOST_S = 120.0
EXPLICIT = ""  # what a model drains for when somebody asked for its unload
IDLE = "\0idle"  # … or when its keep-alive is over

__all__ = ["Command", "Grant", "Limits", "Load", "Policy", "Reject", "Scheduler", "Unload"]


class Scheduler:
    """Residency and queues of all models on one device."""

    def __init__(self, policy: Policy, budget_bytes: int) -> None:
        self.policy = policy
        self.ledger = Ledger(budget_bytes)
        self.entries: dict[str, Entry] = {}
        self.queued = 0
        self._owner: dict[int, Entry] = {}  # ticket → where it waits or runs
        self._acting: str | None = None  # the model that the device is loading or unloading
        self._urgent = 0  # entries that drain or are to be unloaded: a release may change the plan

    # -- what is known of models -----------------------------------------------------------------------------------

    def configure(self, model_id: str, limits: Limits) -> None:
        """Tells a model's limits, for the first time or anew."""
        entry = self.entries.get(model_id)
        if entry is None:
            self.entries[model_id] = Entry(model_id, limits)
        else:
            entry.limits, entry.removed = limits, False

    def forget(self, model_id: str, now: float, error: RoundhouseError) -> list[Command]:
        """The model is gone from the catalog: its waiters get `error`, its engine is drained and unloaded."""
        entry = self.entries.get(model_id)
        if entry is None:
            return []
        commands: list[Command] = [self._reject(entry, ticket, error) for ticket in list(entry.waiting)]
        if entry.state in (State.COLD, State.FAILED) and not entry.running:
            del self.entries[model_id]
            return commands + self._plan(now) if commands else []
        entry.removed = entry.stale = True  # should it come back while it loads, its content may be another
        self._ask_unload(entry, now)
        return commands + self._plan(now)

    # -- events ----------------------------------------------------------------------------------------------------

    def on_request(self, ticket: int, model_id: str, now: float, *, holds: bool = True) -> list[Command]:
        """A request for `model_id`. `holds=False` asks for residency only: granted, it does not run (explicit load)."""
        entry = self.entries[model_id]
        if holds and entry.state is State.READY and not entry.waiting and len(entry.running) < self._concurrency(entry):
            entry.running.add(ticket)
            self._owner[ticket] = entry
            return [Grant(ticket)]
        refusal = self._refusal(entry, now)
        if refusal is not None:
            return [Reject(ticket, refusal)]
        entry.waiting[ticket] = Waiter(now, holds)
        self._owner[ticket] = entry
        self.queued += 1
        return self._plan(now)

    def on_release(self, ticket: int, now: float) -> list[Command]:
        """A granted request has ended, however it ended."""
        entry = self._owner.pop(ticket)
        entry.running.remove(ticket)
        entry.last_used_s = now
        self._settle_gone(entry)
        if self.queued or self._urgent:
            return self._plan(now)
        return []

    def on_cancel(self, ticket: int, now: float) -> list[Command]:
        """A waiting client went away: its place is free."""
        entry = self._owner.pop(ticket)
        del entry.waiting[ticket]
        self.queued -= 1
        return self._plan(now)

    def on_loaded(self, model_id: str, now: float, load_s: float) -> list[Command]:
        """The engine answers."""
        entry = self._finish_action(model_id)
        entry.move(Trigger.LOADED)
        entry.ready_since_s = entry.last_used_s = now
        entry.load_s, entry.failures, entry.error, entry.retry_at_s = load_s, 0, None, 0.0
        entry.loads += 1
        if entry.removed or entry.stale:
            self._drain(entry, EXPLICIT, now)
        elif entry.unload_asked:
            # Whoever waited when the unload was asked is served first; then it goes.
            commands = self._grants(entry)
            self._drain(entry, EXPLICIT, now)
            return commands + self._plan(now)
        return self._plan(now)

    def on_measured(self, model_id: str, now: float, memory_bytes: int) -> list[Command]:
        """What a resident model was found to take replaces the estimate that was charged."""
        if model_id in self.ledger.charges:
            self.ledger.correct(model_id, memory_bytes)
        return self._plan(now)

    def on_load_failed(self, model_id: str, now: float, cause: str) -> list[Command]:
        """The load ended with an error and its process tree is gone. All its waiters are told; then back-off."""
        entry = self._finish_action(model_id)
        entry.move(Trigger.LOAD_FAILED)
        self.ledger.credit(model_id)
        entry.error = cause
        if entry.stale and not entry.removed:  # the folder changed meanwhile: its waiters get the new content
            entry.stale, entry.retry_at_s = False, now
            return self._plan(now)
        entry.failures += 1
        entry.retry_at_s = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** (entry.failures - 1))
        error = refusals.load_failed(entry, now)
        commands: list[Command] = [self._reject(entry, ticket, error) for ticket in list(entry.waiting)]
        self._settle_gone(entry)
        return commands + self._plan(now)

    def on_exited(self, model_id: str, now: float) -> list[Command]:
        """An engine ended by itself. What is left of its tree is ended before its memory is free."""
        entry = self.entries.get(model_id)
        if entry is None or entry.state not in (State.READY, State.DRAINING):
            return []
        if entry.state is State.READY:
            self._urgent += 1
        entry.move(Trigger.EXITED)
        return self._plan(now)

    def on_unloaded(self, model_id: str, now: float) -> list[Command]:
        """The whole process tree is confirmed gone."""
        entry = self._finish_action(model_id)
        entry.move(Trigger.GONE)
        self.ledger.credit(model_id)
        self._urgent -= 1
        entry.drain_for = None
        self._settle_gone(entry)
        return self._plan(now)

    def on_unload_asked(self, model_id: str, now: float) -> list[Command]:
        """Somebody asked for this model to leave the device. Running answers finish; later requests load it again."""
        entry = self.entries[model_id]
        if entry.state is State.FAILED:
            entry.move(Trigger.FORGET)
            entry.failures, entry.error, entry.retry_at_s = 0, None, 0.0
        else:
            self._ask_unload(entry, now)
        return self._plan(now)

    def on_changed(self, model_id: str, now: float) -> list[Command]:
        """The model's folder has other content now: the engine goes after its running answers, waiters get the new."""
        entry = self.entries[model_id]
        entry.failures, entry.retry_at_s = 0, 0.0
        if entry.state in (State.COLD, State.FAILED):  # nothing of it is there; a whole folder may change at once
            return []
        if entry.state is State.LOADING:
            entry.stale = True
        elif entry.state is State.READY:
            self._drain(entry, EXPLICIT, now)
        elif entry.state is State.DRAINING:
            entry.drain_for = EXPLICIT
        return self._plan(now)

    def on_tick(self, now: float) -> list[Command]:
        """Time has passed: see next_deadline."""
        return self._plan(now)

    def next_deadline_s(self, now: float) -> float | None:
        """When on_tick should be called at the latest, or None. A time in the past means at once."""
        return min(self._deadlines(now), default=None)

    def is_waiting(self, ticket: int) -> bool:
        owner = self._owner.get(ticket)
        return owner is not None and ticket in owner.waiting

    def is_running(self, ticket: int) -> bool:
        owner = self._owner.get(ticket)
        return owner is not None and ticket in owner.running

    # -- what would happen -----------------------------------------------------------------------------------------

    def predicted_wait_s(self, model_id: str, now: float) -> float:
        """Seconds until a request for `model_id` would be granted: the loads before it, and its own."""
        entry = self.entries[model_id]
        if entry.state is State.READY:
            return 0.0
        wait_s = entry.cost_s
        for other in self._wanted():
            if other is entry:
                break
            wait_s += other.cost_s
        if entry.state is State.LOADING:
            wait_s = max(1.0, wait_s - (now - entry.action_since_s))
        return wait_s

    # -- decisions -------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for entry in self.entries.values():
            if entry.state is State.READY and entry.waiting:
                commands += self._grants(entry)
            elif entry.state is State.DRAINING and self._drained_for_nothing(entry):
                entry.move(Trigger.RESUME)
                entry.drain_for = None
                self._urgent -= 1
                commands += self._grants(entry)
        while self._acting is None:
            command = self._unload_drained(now) or self._make_room(now, commands) or self._expire_idle(now)
            if command is None:
                break
            if not isinstance(command, bool):
                commands.append(command)
        return commands

    def _grants(self, entry: Entry) -> list[Command]:
        granted: list[Command] = []
        for ticket, waiter in list(entry.waiting.items()):
            if waiter.holds and len(entry.running) >= self._concurrency(entry):
                continue
            del entry.waiting[ticket]
            self.queued -= 1
            if waiter.holds:
                entry.running.add(ticket)
            else:
                del self._owner[ticket]
            granted.append(Grant(ticket))
        return granted

    def _drained_for_nothing(self, entry: Entry) -> bool:
        """True when `entry` drains for a model that nobody waits for any more (or that is no longer in the way)."""
        if entry.drain_for in (EXPLICIT, IDLE):
            return entry.drain_for == IDLE and bool(entry.waiting)
        target = self.entries.get(entry.drain_for or "")
        return target is None or not target.waiting or target.state not in (State.COLD, State.FAILED)

    def _unload_drained(self, now: float) -> Command | None:
        for entry in self.entries.values():
            if entry.state is State.UNLOADING:  # it exited by itself
                return self._begin_unload(entry, now)
            if entry.state is State.DRAINING:
                overdue = now >= entry.drain_since_s + self.policy.drain_timeout_s
                if not entry.running or overdue:
                    entry.move(Trigger.UNLOAD)
                    return self._begin_unload(entry, now)
        return None

    def _begin_unload(self, entry: Entry, now: float) -> Command:
        self._acting = entry.model_id
        entry.action_since_s = now
        return Unload(entry.model_id)

    def _make_room(self, now: float, commands: list[Command]) -> Command | bool | None:
        """Loads or drains for the models that are waited for. True: something changed, look again."""
        reserved_bytes = 0
        for entry in self._wanted():
            need = entry.limits.footprint_bytes
            if self._fits(entry, reserved_bytes):
                return self._begin_load(entry, now)
            chosen = victims.choose(self, entry, now)
            if chosen is None:
                error = refusals.does_not_fit(entry, self.ledger.budget_bytes, victims.kept_bytes(self))
                commands += [self._reject(entry, ticket, error) for ticket in list(entry.waiting)]
                return True
            if now >= victims.turn_ends_s(self, entry, chosen, now):
                fenced = [victim for victim in chosen if victim.state is State.READY]
                for victim in fenced:
                    self._drain(victim, entry.model_id, now)
                if fenced:
                    return True
            if self.policy.residency == "one":
                return None
            reserved_bytes += max(0, need - sum(self.ledger.charges[victim.model_id] for victim in chosen))
        return None

    def _begin_load(self, entry: Entry, now: float) -> Command:
        entry.move(Trigger.LOAD)
        entry.stale = entry.unload_asked = False
        entry.action_since_s = now
        self.ledger.charge(entry.model_id, entry.limits.footprint_bytes)
        self._acting = entry.model_id
        return Load(entry.model_id)

    def _expire_idle(self, now: float) -> bool | None:
        for entry in self.entries.values():
            keep_alive_s = self._keep_alive_s(entry)
            idle = entry.state is State.READY and not entry.running and not entry.waiting
            if idle and keep_alive_s and now >= entry.last_used_s + keep_alive_s:
                self._drain(entry, IDLE, now)
                return True
        return None

    def _drain(self, entry: Entry, purpose: str, now: float) -> None:
        entry.move(Trigger.DRAIN)
        entry.drain_for, entry.drain_since_s = purpose, now
        entry.unload_asked = False
        self._urgent += 1

    def _ask_unload(self, entry: Entry, now: float) -> None:
        if entry.state is State.READY:
            self._drain(entry, EXPLICIT, now)
        elif entry.state is State.DRAINING:
            entry.drain_for = EXPLICIT
        elif entry.state is State.LOADING:
            entry.unload_asked = True

    # -- questions -------------------------------------------------------------------------------------------------

    def _wanted(self) -> Iterator[Entry]:
        """Models that are waited for and not on the device, that of the oldest waiting request first."""
        waiting = [e for e in self.entries.values() if e.waiting and e.state in (State.COLD, State.FAILED)]
        return iter(sorted(waiting, key=lambda entry: entry.oldest_s))

    def _fits(self, entry: Entry, reserved_bytes: int) -> bool:
        if self.policy.residency == "one" and self.ledger.charges:
            return False
        return entry.limits.footprint_bytes <= self.ledger.free_bytes - reserved_bytes

    def _concurrency(self, entry: Entry) -> int:
        return entry.limits.concurrency or self.policy.concurrency

    def _keep_alive_s(self, entry: Entry) -> float:
        """0: never. A pinned model is never unloaded for being idle."""
        if entry.limits.pinned:
            return 0.0
        return self.policy.keep_alive_s if entry.limits.keep_alive_s is None else entry.limits.keep_alive_s

    def _refusal(self, entry: Entry, now: float) -> RoundhouseError | None:
        if entry.state is State.FAILED and now < entry.retry_at_s:
            return refusals.load_failed(entry, now)
        for waiting, most, knob in (
            (len(entry.waiting), self.policy.max_queued_per_model, "max_queued_per_model"),
            (self.queued, self.policy.max_queued, "max_queued"),
        ):
            if waiting >= most:
                wait_s = self.predicted_wait_s(entry.model_id, now)
                return refusals.queue_full(waiting, knob, entry.model_id, wait_s)
        return None

    def _deadlines(self, now: float) -> Iterator[float]:
        """Only what `_plan` would act on at that time: anything else would be due again at once, in a busy loop."""
        if self._acting is not None:
            return
        for entry in self.entries.values():
            if entry.state is State.DRAINING:
                yield entry.drain_since_s + self.policy.drain_timeout_s
            keep_alive_s = self._keep_alive_s(entry)
            if entry.state is State.READY and keep_alive_s:
                yield (now if entry.running else entry.last_used_s) + keep_alive_s
        for entry in self._wanted():
            chosen = victims.choose(self, entry, now)
            if chosen and any(victim.state is State.READY for victim in chosen):
                yield victims.turn_ends_s(self, entry, chosen, now)
            if self.policy.residency == "one":
                return

    # -- small moves -----------------------------------------------------------------------------------------------

    def _finish_action(self, model_id: str) -> Entry:
        if self._acting != model_id:
            raise RuntimeError(f"the device was not busy with {model_id} but with {self._acting}")
        self._acting = None
        return self.entries[model_id]

    def _reject(self, entry: Entry, ticket: int, error: RoundhouseError) -> Command:
        del entry.waiting[ticket]
        del self._owner[ticket]
        self.queued -= 1
        return Reject(ticket, error)

    def _settle_gone(self, entry: Entry) -> None:
        """Drops a model that the catalog no longer has, once nothing of it is left."""
        if entry.removed and entry.state in (State.COLD, State.FAILED) and not entry.running and not entry.waiting:
            self.entries.pop(entry.model_id, None)
