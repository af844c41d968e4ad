"""A world around the scheduler: manager, engines and clients, moved at random but reproducibly, and watched closely."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from models.errors import UnknownModel
from models.scheduling.policy import Limits, Policy
from models.scheduling.residency import TRANSITIONS
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Action, Command, Entry, Grant, Load, Reject, Sleep, Unload, Wake
from models.types import SleepReport, State

BUDGET = 20
MODELS = {
    "a": Limits(8, 2.0),
    "b": Limits(12, 2.0, sleep_levels=(1, 2), weights_bytes=6),
    "c": Limits(6, 4.0, priority=3, sleep_levels=(1,), weights_bytes=5, wake_cost_s=1.0),
    "d": Limits(18, 2.0, priority=-1, sleep_levels=(2,), weights_bytes=9, asleep_bytes=1),
    "embed": Limits(2, 1.0, lane="retrieval"),
    "rerank": Limits(3, 1.0, lane="retrieval", sleep_levels=(1,), weights_bytes=2),
}
STEPS_TO_SETTLE = 10_000


@dataclass
class World:
    """Each method is something that may happen. `carry_out` checks what must always hold."""

    scheduler: Scheduler
    chance: random.Random
    now: float = 0.0
    waiting: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    acting: Action | None = None
    tickets: int = 0
    known: dict[str, Limits] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    may_overrun: bool = False  # an engine measured more than it was charged for
    host_may_overrun: bool = False

    def learn(self, model: str, limits: Limits) -> None:
        self.known[model] = limits
        self.scheduler.configure(model, limits)

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket):
                    assert ticket in self.waiting
                    self.waiting.remove(ticket)
                    self.running.add(ticket)
                case Reject(ticket, _):
                    assert ticket in self.waiting
                    self.waiting.remove(ticket)
                    self.ended.add(ticket)
                case Load() | Unload() | Sleep() | Wake():
                    assert self.acting is None, "two at once on one device"
                    self.acting = command
        self.check_memory()
        self.check_transitions()
        assert self.scheduler.queued == len(self.waiting)
        deadline = self.scheduler.next_deadline_s(self.now)
        assert deadline is None or deadline > self.now, "due already, but nothing was done: a busy loop"
        assert self.scheduler.stuck(self.now) is None

    def check_memory(self) -> None:
        ledger, host = self.scheduler.ledger, self.scheduler.host
        assert self.may_overrun or ledger.charged_bytes <= ledger.budget_bytes
        assert ledger.charged_bytes == sum(ledger.charges.values())
        # The policy may have changed. Sleepers then go one after the other, but for those that are about to be woken.
        held = sum(size for model, size in host.charges.items() if not must_stay(self.scheduler.entries[model]))
        shrunk = self.acting is not None or held == 0
        assert shrunk or self.host_may_overrun or host.charged_bytes <= self.scheduler.policy.sleep_memory_bytes
        on_device = {model for model, entry in self.scheduler.entries.items() if not at_rest(entry.state)}
        assert set(ledger.charges) == on_device
        entries = self.scheduler.entries.values()
        retrieval = [entry.limits.footprint_bytes for entry in entries if entry.limits.lane == "retrieval"]
        assert self.scheduler.device.retrieval_bytes == sum(retrieval)
        asleep = {State.SLEEPING, State.WAKING, State.UNLOADING}
        assert {self.scheduler.entries[model].state for model in host.charges} <= asleep

    def check_transitions(self) -> None:
        for change in self.scheduler.changes:
            assert self.states.get(change.model_id, State.COLD) is change.before
            assert TRANSITIONS[change.before, change.trigger] is change.after
            assert change.reason
            self.states[change.model_id] = change.after
        self.scheduler.changes.clear()
        self.states = {model: self.states.get(model, State.COLD) for model in self.scheduler.entries}
        assert self.states == {model: entry.state for model, entry in self.scheduler.entries.items()}

    # -- what clients do -------------------------------------------------------------------------------------------

    def request(self) -> None:
        """Whoever asks what would happen is told the truth."""
        if not self.known:
            return
        model = self.chance.choice(list(self.known))
        forecast = self.scheduler.forecast(model, self.now)
        self.tickets += 1
        self.waiting.add(self.tickets)
        commands = self.scheduler.on_request(self.tickets, model, self.now)
        assert (forecast.outcome == "granted") == (commands[:1] == [Grant(self.tickets)])
        assert (forecast.outcome == "refused") == any(type(c) is Reject and c.ticket == self.tickets for c in commands)
        assert (forecast.wait_s > 0) == (forecast.outcome != "granted")
        self.carry_out(commands)

    def cancel(self) -> None:
        if self.waiting:
            ticket = self.chance.choice(sorted(self.waiting))
            self.waiting.remove(ticket)
            self.ended.add(ticket)
            self.carry_out(self.scheduler.on_cancel(ticket, self.now))

    def release(self) -> None:
        if self.running:
            ticket = self.chance.choice(sorted(self.running))
            self.running.remove(ticket)
            self.ended.add(ticket)
            served = self.chance.random() < 0.8
            self.carry_out(self.scheduler.on_release(ticket, self.now, served=served))

    # -- what engines do -------------------------------------------------------------------------------------------

    def act(self) -> None:
        command, self.acting = self.acting, None
        went_wrong = self.chance.random() < 0.2
        match command:
            case Load(model) if went_wrong:
                interrupted = self.chance.random() < 0.5
                self.carry_out(self.scheduler.on_load_failed(model, self.now, "no", interrupted=interrupted))
            case Load(model):
                self.carry_out(self.scheduler.on_loaded(model, self.now, 2))
                self.measure(model)
            case Unload(model):
                self.carry_out(self.scheduler.on_unloaded(model, self.now))
            case Sleep(model) | Wake(model) if went_wrong:
                forever = self.chance.random() < 0.2
                self.carry_out(self.scheduler.on_sleep_failed(model, self.now, "no", forever=forever))
            case Sleep(model, level):
                self.fall_asleep(model, level)
            case Wake(model):
                self.carry_out(self.scheduler.on_woken(model, self.now, 0.5))

    def fall_asleep(self, model: str, level: int) -> None:
        """Mostly with what was expected left on the device; sometimes with more of it, or more host memory."""
        weights = self.scheduler.host.charges[model]
        more_left, more_host = self.chance.choice([0, 0, 0, 3]), self.chance.choice([0, 0, 0, level % 2])
        self.host_may_overrun |= more_host > 0
        report = SleepReport(0.3, 1 + more_left, weights + more_host)
        self.may_overrun |= report.device_bytes > self.scheduler.ledger.charges[model]
        self.carry_out(self.scheduler.on_slept(model, self.now, report))

    def measure(self, model: str) -> None:
        """Mostly what was expected; sometimes less, sometimes more, also of a model that is gone."""
        size = max(1, MODELS[model].footprint_bytes + self.chance.choice([0, 0, 0, 0, -1, 2]))
        charged = self.scheduler.ledger.charges.get(model)
        self.may_overrun |= charged is not None and size > charged
        if model in self.known:
            self.learn(model, replace(self.known[model], footprint_bytes=size))
        self.carry_out(self.scheduler.on_measured(model, self.now, size))

    def crash(self) -> None:
        """Also of a model that is just falling asleep or waking: what it was told to do then reports nothing."""
        model = self.chance.choice(list(MODELS))
        if isinstance(self.acting, Sleep | Wake) and self.acting.model_id == model:
            self.acting = None
        self.carry_out(self.scheduler.on_exited(model, self.now))

    # -- what people do --------------------------------------------------------------------------------------------

    def unload(self) -> None:
        if self.known:
            self.carry_out(self.scheduler.on_unload_asked(self.chance.choice(list(self.known)), self.now))

    def change(self) -> None:
        if self.known:
            self.carry_out(self.scheduler.on_changed(self.chance.choice(list(self.known)), self.now))

    def remove_or_return(self) -> None:
        model = self.chance.choice(list(MODELS))
        if model in self.known:
            del self.known[model]
            gone = self.scheduler.forget(model, self.now, UnknownModel("gone"))
            self.carry_out([*gone, *self.scheduler.on_tick(self.now)])
        else:
            self.learn(model, MODELS[model])
            self.tick()

    def pin(self) -> None:
        """Not the large ones, beside which nothing fits."""
        model = self.chance.choice(["a", "c", "embed"])
        if model in self.known:
            self.learn(model, replace(self.known[model], pinned=not self.known[model].pinned))
            self.tick()

    def configure(self) -> None:
        """Other knobs, applied without a restart."""
        self.scheduler.policy = replace(
            self.scheduler.policy,
            swap_share=self.chance.choice([0.1, 0.5]),
            max_wait_s=self.chance.choice([5.0, 60.0]),
            retrieval_share=self.chance.choice([0.0, 0.3]),
            sleep_memory_bytes=self.chance.choice([0, 7, 100]),
        )
        self.tick()

    def tick(self) -> None:
        self.now += self.chance.random() * 5
        self.carry_out(self.scheduler.on_tick(self.now))

    def settle(self) -> None:
        """Lets everything come to its end: answers finish, the device works, time passes."""
        for _ in range(STEPS_TO_SETTLE):
            if not self.waiting and not self.running and self.acting is None:
                return
            self.release()
            self.act()
            self.tick()
        raise AssertionError(f"{len(self.waiting)} requests wait for ever")


def must_stay(entry: Entry) -> bool:
    return bool(entry.waiting) or entry.limits.pinned


def at_rest(state: State) -> bool:
    return state in (State.COLD, State.FAILED)


def new_world(policy: Policy, seed: int) -> World:
    world = World(Scheduler(policy, BUDGET), random.Random(seed))
    for model, limits in MODELS.items():
        world.learn(model, limits)
    return world
