"""Whatever happens in whatever order: nothing is lost, nothing is granted twice, the ledger holds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

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
        assert ledger.charged_bytes <= ledger.budget_bytes
        assert self.scheduler.queued == len(self.waiting)

    def request(self) -> None:
        self.tickets += 1
        self.waiting.add(self.tickets)
        model = self.chance.choice(list(MODELS))
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
                self.carry_out(self.scheduler.on_measured(command.model_id, self.now, MODELS[command.model_id]))
        elif isinstance(command, Unload):
            self.carry_out(self.scheduler.on_unloaded(command.model_id, self.now))

    def crash(self) -> None:
        self.carry_out(self.scheduler.on_exited(self.chance.choice(list(MODELS)), self.now))

    def unload(self) -> None:
        self.carry_out(self.scheduler.on_unload_asked(self.chance.choice(list(MODELS)), self.now))

    def change(self) -> None:
        self.carry_out(self.scheduler.on_changed(self.chance.choice(list(MODELS)), self.now))

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


STEPS = (*["request"] * 3, *["release"] * 2, *["act"] * 2, "cancel", "crash", "unload", "change", "tick")


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 150),
    residency=st.sampled_from(["auto", "one"]),
    keep_alive_s=st.sampled_from([0.0, 3.0]),
)
def test_no_request_is_lost_or_granted_twice_and_the_ledger_ends_at_zero(
    seed: int, length: int, residency: str, keep_alive_s: float
) -> None:
    policy = Policy(residency=residency, keep_alive_s=keep_alive_s, max_queued_per_model=5, concurrency=3)  # type: ignore[arg-type]
    world = World(Scheduler(policy, BUDGET), random.Random(seed))
    for model, size in MODELS.items():
        world.scheduler.configure(model, Limits(size, 2.0))
    for _ in range(length):
        getattr(world, world.chance.choice(STEPS))()
    world.settle()
    assert len(world.ended) == world.tickets
    for model in MODELS:
        world.carry_out(world.scheduler.on_unload_asked(model, world.now))
        world.settle()
    assert world.scheduler.ledger.charges == {}
    assert {entry.state for entry in world.scheduler.entries.values()} <= {State.COLD, State.FAILED}
