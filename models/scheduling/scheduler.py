"""Who runs on the device next. Pure: an event and the time go in, a list of commands comes out.

No await, no clock, no logging, no I/O: tests read `scheduler.on_request(...) == [Load("b")]`, and a simulation can run
a million requests through it. The manager's dispatcher is its only caller, so nothing here needs a lock.

`Scheduler` takes the events in. What follows from them is decided in
- planning.py: what the device does next, in which order;
- turns.py: whose turn it is, how long a busy model keeps it, and what a waiting one is promised;
- victims.py: who leaves for a model that does not fit; space.py: how much memory each lane may have;
- sleeping.py: whether a model that leaves is put to sleep or ended;
- outlook.py: what would happen, how long it would take, and whether anything is stuck.
device.py keeps the books, and failing.py what follows from failures.
"""

from __future__ import annotations

from models.errors import RoundhouseError
from models.scheduling import explaining, failing, outlook, refusals, turns
from models.scheduling.device import ASKED, AT_REST, CHANGED, Device
from models.scheduling.forecast import Forecast
from models.scheduling.ledger import Ledger
from models.scheduling.planning import drain, plan
from models.scheduling.policy import Limits, Policy
from models.scheduling.residency import Trigger
from models.scheduling.space import never_fits, pinned_bytes
from models.scheduling.values import Change, Command, Entry, Grant, Load, Reject, Sleep, Unload, Waiter, Wake
from models.types import SleepReport, State

AWAY = frozenset({State.COLD, State.FAILED, State.SLEEPING, State.UNLOADING})

__all__ = ["Change", "Command", "Grant", "Limits", "Load", "Policy", "Reject", "Scheduler", "Sleep", "Unload", "Wake"]


class Scheduler:
    """Residency and queues of all models on one device."""

    def __init__(self, policy: Policy, budget_bytes: int) -> None:
        self.device = Device(policy, budget_bytes)

    @property
    def policy(self) -> Policy:
        return self.device.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        """Takes effect with the next decision: call on_tick."""
        self.device.policy = policy

    @property
    def entries(self) -> dict[str, Entry]:
        return self.device.entries

    @property
    def ledger(self) -> Ledger:
        return self.device.ledger

    @property
    def host(self) -> Ledger:
        """Of host memory, for the weights of models that sleep; its budget is the policy's."""
        return self.device.host

    @property
    def queued(self) -> int:
        """Requests that wait, of all models."""
        return self.device.queued

    @property
    def changes(self) -> list[Change]:
        """Every change of a state since the caller last cleared this list."""
        return self.device.changes

    # -- what is known of models -----------------------------------------------------------------------------------

    def configure(self, model_id: str, limits: Limits) -> None:
        """Tells a model's limits, for the first time or anew. Takes effect with the next decision: call on_tick."""
        self.device.configure(model_id, limits)
        entry = self.entries[model_id]
        if limits.remote and entry.state is State.COLD:
            self.device.move(entry, Trigger.CONNECT, "served elsewhere")

    def forget(self, model_id: str, now: float, error: RoundhouseError) -> list[Command]:
        """The model is gone from the catalog: its waiters get `error`, its engine is drained and unloaded.

        Takes effect with the next decision, as the place of one that goes may not be given to another that goes, too.
        """
        entry = self.entries.get(model_id)
        if entry is None:
            return []
        commands = self.device.reject_all(entry, error)
        entry.removed = True
        self._settle_gone(entry)
        if model_id in self.entries and not entry.limits.remote:
            entry.stale = True  # should it come back while it loads, its content may be another
            self._ask_unload(entry, now)
        return commands

    # -- requests --------------------------------------------------------------------------------------------------

    def on_request(
        self, ticket: int, model_id: str, now: float, *, holds: bool = True, client: str = ""
    ) -> list[Command]:
        """A request for `model_id`. `holds=False` asks for residency only: granted, it does not run (explicit load)."""
        device = self.device
        entry = device.entries[model_id]
        if entry.left_idle and holds:
            turns.note_return(device, entry, now)
        if entry.state is State.READY:
            if not holds:
                return [Grant(ticket)]
            if not entry.waiting and len(entry.running) < (entry.limits.concurrency or device.policy.concurrency):
                entry.running[ticket] = now
                device.owner[ticket] = entry
                return [Grant(ticket)]
        refusal = self._refusal(entry, now)
        if refusal is not None:
            return [Reject(ticket, refusal)]
        device.enqueue(entry, ticket, Waiter(now, holds, client))
        if len(entry.waiting) > 1 or entry.state in (State.READY, State.LOADING, State.WAKING):
            return []  # somebody waits for the same already
        turns.line_up(device, entry, now)
        return plan(device, now)

    def on_release(self, ticket: int, now: float, *, served: bool = True) -> list[Command]:
        """A granted request has ended. `served=False`: its engine died under it, or gave no valid answer."""
        device = self.device
        entry = device.owner.pop(ticket)
        granted_s = entry.running.pop(ticket)
        entry.last_used_s = now
        if served:
            entry.answered_s = now
            entry.learn_answer(now - granted_s)
            if entry.state is State.READY or entry.state is State.DRAINING:
                entry.served, entry.crashes = True, 0
        if not entry.running:
            entry.left_idle = True
            self._settle_gone(entry)
            if device.draining or device.wanted:
                return plan(device, now)
        if entry.index is device.granting:
            return device.grant_waiting(entry, now)
        return []

    def on_cancel(self, ticket: int, now: float) -> list[Command]:
        """A waiting client went away: its place is free."""
        entry = self.device.owner.pop(ticket)
        self.device.dequeue(entry, ticket)
        if entry.waiting:
            entry.line_s = max(entry.line_s, entry.oldest_s)
        return plan(self.device, now)

    # -- reports of what the device was told to do -----------------------------------------------------------------

    def on_loaded(self, model_id: str, now: float, load_s: float) -> list[Command]:
        """The engine answers."""
        entry = self.device.finish_action(model_id)
        entry.loading.add(load_s)
        entry.load_s, entry.failures, entry.error, entry.retry_at_s = load_s, 0, None, 0.0
        entry.interrupted = False
        entry.loads += 1
        return self._on_ready(entry, Trigger.LOADED, now)

    def on_woken(self, model_id: str, now: float, wake_s: float) -> list[Command]:
        """The engine answers again, as it did before."""
        entry = self.entries.get(model_id)
        if entry is None or entry is not self.device.acting or entry.state is not State.WAKING:
            return []  # it ended by itself meanwhile
        self.device.finish_action(model_id)
        entry.waking.add(wake_s)
        entry.wake_s, entry.sleep_failures = wake_s, 0
        self.device.wake_up(entry)
        return self._on_ready(entry, Trigger.WOKEN, now)

    def on_measured(self, model_id: str, now: float, memory_bytes: int) -> list[Command]:
        """What a resident model was found to take replaces the estimate that was charged."""
        entry = self.entries.get(model_id)
        if model_id in self.ledger.charges and entry is not None and entry.state is not State.SLEEPING:
            self.ledger.correct(model_id, memory_bytes)
        return plan(self.device, now)

    def on_load_failed(self, model_id: str, now: float, cause: str, *, interrupted: bool = False) -> list[Command]:
        """The load ended with an error and its process tree is gone. All its waiters are told; then back-off.

        `interrupted`: somebody killed or stopped the engine; for those who wait it is tried once more.
        """
        entry = self.device.finish_action(model_id)
        self.device.credit(entry)
        self.device.move(entry, Trigger.LOAD_FAILED, cause)
        entry.error = cause
        if entry.stale and not entry.removed:  # the folder changed meanwhile: its waiters get the new content
            entry.stale, entry.retry_at_s = False, now
            return plan(self.device, now)
        if not entry.removed and failing.excuses_load(entry, interrupted=interrupted):
            return plan(self.device, now)
        error = failing.back_off_load(entry, now)
        commands = self.device.reject_all(entry, error)
        self._settle_gone(entry)
        return commands + plan(self.device, now)

    def on_slept(self, model_id: str, now: float, report: SleepReport) -> list[Command]:
        """The engine has left the device, but for what the report says."""
        device = self.device
        entry = device.entries.get(model_id)
        if entry is None or entry is not device.acting or entry.state is not State.SLEEPING:
            return []  # it ended by itself meanwhile
        device.finish_action(model_id)
        entry.sleeping.add(report.duration_s)
        entry.sleeps += 1
        entry.asleep_bytes, entry.host_bytes = report.device_bytes, report.host_bytes
        entry.drain_for = None
        device.ledger.correct(model_id, report.device_bytes)
        device.host.correct(model_id, report.host_bytes)
        device.reindex(entry)
        return plan(device, now)

    def on_sleep_failed(self, model_id: str, now: float, cause: str, *, forever: bool) -> list[Command]:
        """Falling asleep or waking went wrong: the engine is ended, and loaded cold if somebody waits for it.

        `forever`, or twice in a row: it does not sleep any more.
        """
        entry = self.entries.get(model_id)
        if entry is None or entry is not self.device.acting or entry.state not in (State.SLEEPING, State.WAKING):
            return []  # it ended by itself meanwhile
        self.device.finish_action(model_id)
        failing.count_sleep_failure(entry, forever=forever)
        self.device.move(entry, Trigger.SLEEP_FAILED, cause)
        return plan(self.device, now)

    def on_exited(self, model_id: str, now: float, cause: str = "its engine ended") -> list[Command]:
        """An engine ended by itself, or hangs. What is left of its tree is ended before its memory is free."""
        entry = self.entries.get(model_id)
        if entry is None or entry.state not in (State.READY, State.DRAINING, State.SLEEPING, State.WAKING):
            return []
        if self.device.acting is entry:  # whatever that task reports now is about an engine that is gone
            self.device.finish_action(model_id)
        failing.count_exit(entry, cause)
        self.device.move(entry, Trigger.EXITED, cause)
        if entry.waiting:
            turns.line_up(self.device, entry, now)
        return plan(self.device, now)

    def on_unloaded(self, model_id: str, now: float) -> list[Command]:
        """The whole process tree is confirmed gone."""
        device = self.device
        entry = device.finish_action(model_id)
        entry.unloading.add(now - entry.action_since_s)
        device.credit(entry)
        entry.drain_for = None
        entry.unload_asked = entry.stale = False
        commands: list[Command] = []
        if failing.gives_up(entry):
            commands = device.reject_all(entry, failing.back_off_crash(entry, now))
            device.move(entry, Trigger.GIVE_UP, entry.error or "")
        else:
            device.move(entry, Trigger.GONE, "its memory is free")
        entry.crashed = False
        self._settle_gone(entry)
        return commands + plan(device, now)

    # -- wishes and time -------------------------------------------------------------------------------------------

    def on_unload_asked(self, model_id: str, now: float) -> list[Command]:
        """Somebody asked for this model to leave the device. Running answers finish; later requests load it again."""
        entry = self.entries[model_id]
        if entry.state is State.FAILED:
            failing.forgive(entry)
            self.device.move(entry, Trigger.FORGET, "asked for")
        else:
            self._ask_unload(entry, now)
        return plan(self.device, now)

    def on_changed(self, model_id: str, now: float) -> list[Command]:
        """The model's folder has other content now: the engine goes after its running answers, waiters get the new."""
        entry = self.entries[model_id]
        failing.forgive(entry)
        entry.sleepless, entry.sleep_failures = False, 0
        match entry.state:
            case State.COLD | State.FAILED:  # nothing of it is there; a whole folder may change at once
                return []
            case State.LOADING | State.WAKING | State.SLEEPING:
                entry.stale = True
                self.device.reindex(entry)
            case State.READY:
                drain(self.device, entry, CHANGED, now, "its folder changed")
            case State.DRAINING:
                entry.drain_for = CHANGED
        return plan(self.device, now)

    def on_tick(self, now: float) -> list[Command]:
        """Time has passed: see next_deadline_s."""
        return plan(self.device, now)

    def next_deadline_s(self, now: float) -> float | None:
        """When on_tick should be called at the latest, or None. A time in the past means at once."""
        return self.device.next_s

    # -- questions -------------------------------------------------------------------------------------------------

    def is_waiting(self, ticket: int) -> bool:
        owner = self.device.owner.get(ticket)
        return owner is not None and ticket in owner.waiting

    def is_running(self, ticket: int) -> bool:
        owner = self.device.owner.get(ticket)
        return owner is not None and ticket in owner.running

    def predicted_wait_s(self, model_id: str, now: float) -> float:
        """Seconds until a request for `model_id` that came now would be granted: turns, drains and swaps ahead too."""
        return outlook.predicted_wait_s(self.device, self.entries[model_id], now)

    def forecast(self, model_id: str, now: float) -> Forecast:
        """What would happen if a request for `model_id` came now, and why."""
        entry = self.entries[model_id]
        return explaining.forecast(self.device, entry, now, self._refusal(entry, now))

    def stuck(self, now: float) -> str | None:
        """Why nothing goes on although there is something to do; None when all is well."""
        return outlook.stuck(self.device, now)

    # -- small moves -----------------------------------------------------------------------------------------------

    def _refusal(self, entry: Entry, now: float) -> RoundhouseError | None:
        policy = self.policy
        if entry.state is State.FAILED and now < entry.retry_at_s:
            return refusals.load_failed(entry, now)
        if entry.state in AWAY and never_fits(self.device, entry):
            return refusals.does_not_fit(entry, self.ledger.budget_bytes, pinned_bytes(self.device, entry))
        for waiting, most, knob in (
            (len(entry.waiting), policy.max_queued_per_model, "max_queued_per_model"),
            (self.queued, policy.max_queued, "max_queued"),
        ):
            if waiting >= most:
                return refusals.queue_full(waiting, knob, entry.model_id, self.predicted_wait_s(entry.model_id, now))
        return None

    def _on_ready(self, entry: Entry, trigger: Trigger, now: float) -> list[Command]:
        device = self.device
        entry.ready_since_s = entry.last_used_s = now
        entry.served = entry.left_idle = False
        device.move(entry, trigger, "its engine answers")
        commands: list[Command] = []
        if entry.removed or entry.stale:
            entry.stale = False
            drain(device, entry, CHANGED, now, "its folder changed")
        elif entry.unload_asked:  # whoever waited when the unload was asked is served first; then it goes
            commands = device.grant_waiting(entry, now)
            drain(device, entry, ASKED, now, "asked for")
        return commands + plan(device, now)

    def _ask_unload(self, entry: Entry, now: float) -> None:
        if entry.state is State.READY:
            drain(self.device, entry, ASKED, now, "asked for")
        elif entry.state is State.DRAINING:
            entry.drain_for = ASKED
        elif entry.state in (State.LOADING, State.WAKING, State.SLEEPING):
            entry.unload_asked = True
            self.device.reindex(entry)

    def _settle_gone(self, entry: Entry) -> None:
        """Drops a model that the catalog no longer has, once nothing of it is left."""
        settled = entry.state in AT_REST or entry.limits.remote
        if entry.removed and settled and not entry.running and not entry.waiting:
            self.device.drop(entry)
