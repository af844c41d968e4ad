"""Whatever happens in whatever order: nothing is lost, nothing is granted twice, the ledger holds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UnknownModel
from models.policy import Limits, Policy
from models.scheduler import Scheduler
from models.scheduling import Command, Grant, Load, Reject, Unload
from models.types import State

BUDGET = 10
MODELS = {"a": 4, "b": 6, "c": 3, "d": 9}
STEPS_TO_SETTLE = 10_000


@dataclass
class World:
    """Plays the manager, the engines and the clients, at random but reproducibly."""

    scheduler: Scheduler
    chance: random.Random
    now: float = 0.0
    waiting: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    acting: Command | None = None
    tickets: int = 0
    known: dict[str, Limits] = field(default_factory=dict)
    may_overrun: bool = False  # an engine measured more than it was charged for

    def learn(self, model: str, size: int, *, pinned: bool = False) -> None:
        self.known[model] = Limits(size, 2.0, pinned=pinned)
        self.scheduler.configure(model, self.known[model])

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
                case Load() | Unload():
                    assert self.acting is None, "two at once on one device"
                    self.acting = command
        ledger = self.scheduler.ledger
        assert self.may_overrun or ledger.charged_bytes <= ledger.budget_bytes
        assert self.scheduler.queued == len(self.waiting)
        deadline = self.scheduler.next_deadline_s(self.now)
        assert deadline is None or deadline > self.now, "due already, but nothing was done: a busy loop"

    def request(self) -> None:
        if not self.known:
            return
        self.tickets += 1
        self.waiting.add(self.tickets)
        model = self.chance.choice(list(self.known))
        self.carry_out(self.scheduler.on_request(self.tickets, model, self.now))

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
            self.carry_out(self.scheduler.on_release(ticket, self.now))

    def act(self) -> None:
        command, self.acting = self.acting, None
        if isinstance(command, Load):
            if self.chance.random() < 0.2:
                self.carry_out(self.scheduler.on_load_failed(command.model_id, self.now, "no"))
            else:
                self.carry_out(self.scheduler.on_loaded(command.model_id, self.now, 2))
                self.measure(command.model_id)
        elif isinstance(command, Unload):
            self.carry_out(self.scheduler.on_unloaded(command.model_id, self.now))

    def measure(self, model: str) -> None:
        """Mostly what was expected; sometimes less, sometimes more, also of a model that is gone."""
        size = max(1, MODELS[model] + self.chance.choice([0, 0, 0, 0, -1, 2]))
        charged = self.scheduler.ledger.charges.get(model)
        self.may_overrun |= charged is not None and size > charged
        if model in self.known:
            self.learn(model, size, pinned=self.known[model].pinned)
        self.carry_out(self.scheduler.on_measured(model, self.now, size))

    def crash(self) -> None:
        self.carry_out(self.scheduler.on_exited(self.chance.choice(list(MODELS)), self.now))

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
            self.carry_out(self.scheduler.forget(model, self.now, UnknownModel("gone")))
        else:
            self.learn(model, MODELS[model])

    def pin(self) -> None:
        """Not the large one, beside which nothing fits."""
        model = self.chance.choice("abc")
        if model in self.known:
            self.learn(model, self.known[model].footprint_bytes, pinned=not self.known[model].pinned)
            self.carry_out(self.scheduler.on_tick(self.now))  # as the manager does

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


USUAL = (*["request"] * 6, *["release"] * 4, *["act"] * 4)
STEPS = (*USUAL, *["cancel", "crash", "unload", "change", "tick"] * 2, "remove_or_return", "pin")


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 150),
    residency=st.sampled_from(["auto", "one"]),
    keep_alive_s=st.sampled_from([0.0, 3.0]),
    drain_timeout_s=st.sampled_from([4.0, 300.0]),
)
def test_no_request_is_lost_or_granted_twice_and_the_ledger_ends_at_zero(
    seed: int, length: int, residency: str, keep_alive_s: float, drain_timeout_s: float
) -> None:
    policy = Policy(
        residency=residency,  # type: ignore[arg-type]
        keep_alive_s=keep_alive_s,
        drain_timeout_s=drain_timeout_s,
        max_queued_per_model=5,
        concurrency=3,
    )
    world = World(Scheduler(policy, BUDGET), random.Random(seed))
    for model, size in MODELS.items():
        world.learn(model, size)
    for _ in range(length):
        getattr(world, world.chance.choice(STEPS))()
    world.settle()
    assert len(world.ended) == world.tickets
    for model in list(world.known):
        world.carry_out(world.scheduler.on_unload_asked(model, world.now))
        world.settle()
    assert world.scheduler.ledger.charges == {}
    assert {entry.state for entry in world.scheduler.entries.values()} <= {State.COLD, State.FAILED}
    assert set(world.scheduler.entries) == set(world.known)
