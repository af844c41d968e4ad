"""Clients and engines on a virtual clock around the scheduler: every answer and every swap takes a known time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from models.scheduling import turns
from models.scheduling.policy import Limits, Policy
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Command, Grant, Load, Reject, Sleep, Unload, Wake
from models.types import SleepReport, State

TINY_S = 1e-6


@dataclass
class Clock:
    """Carries commands out as the manager does. `waits` and `bounds` are by ticket, in seconds."""

    policy: Policy
    budget: int
    models: Mapping[str, Limits]
    answer_s: float
    unload_s: float = 0.5
    wake_s: float = 0.5
    now: float = 0.0
    waits: dict[int, float] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)
    models_of: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy, self.budget)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}
        self._answered: dict[int, Callable[[], object]] = {}
        self._alarm: float | None = None
        for model, limits in self.models.items():
            self.scheduler.configure(model, limits)
            self._learn(model)

    def _learn(self, model: str) -> None:
        """As after a first use: what is promised rests on it."""
        entry = self.scheduler.entries[model]
        entry.answer_s = self.answer_s
        entry.unloading.add(self.unload_s)
        entry.sleeping.add(self.unload_s)

    def at(self, when_s: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when_s, next(self._numbers), event))

    def request(self, model: str, then: Callable[[], object] | None = None) -> None:
        """`then` happens when it is answered."""
        ticket = next(self._numbers)
        self.models_of[ticket] = model
        self._since[ticket] = self.now
        if then is not None:
            self._answered[ticket] = then
        self.carry_out(self.scheduler.on_request(ticket, model, self.now))
        device = self.scheduler.device
        entry = self.scheduler.entries[model]
        if list(entry.waiting) == [ticket] and entry.state not in (State.READY, State.LOADING, State.WAKING):
            self.bounds[ticket] = turns.bound_s(device, entry, self.now)

    def run_all(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket):
                    self.waits[ticket] = self.now - self._since[ticket]
                    self.at(self.now + self.answer_s, lambda ticket=ticket: self._answer(ticket))
                case Reject(_, error):
                    raise error
                case Load(model):
                    load_s = self.models[model].load_cost_s
                    self.at(self.now + load_s, lambda model=model, load_s=load_s: self._loaded(model, load_s))
                case Unload(model):
                    self.at(self.now + self.unload_s, lambda model=model: self._report("on_unloaded", model))
                case Sleep(model):
                    report = SleepReport(self.unload_s, 0, self.scheduler.host.charges[model])
                    self.at(self.now + self.unload_s, lambda m=model, r=report: self._report("on_slept", m, r))
                case Wake(model):
                    self.at(self.now + self.wake_s, lambda model=model: self._report("on_woken", model, self.wake_s))
        assert self.scheduler.stuck(self.now) is None
        deadline = self.scheduler.next_deadline_s(self.now)
        if deadline is not None and deadline != self._alarm:
            assert deadline > self.now
            self._alarm = deadline
            self.at(deadline, lambda: self._tick(deadline))

    def _loaded(self, model: str, load_s: float) -> None:
        self._report("on_loaded", model, load_s)

    def _report(self, event: str, model: str, *args: object) -> None:
        self.carry_out(getattr(self.scheduler, event)(model, self.now, *args))

    def _tick(self, deadline: float) -> None:
        if self._alarm == deadline:
            self._alarm = None
            self.carry_out(self.scheduler.on_tick(self.now))

    def _answer(self, ticket: int) -> None:
        self.carry_out(self.scheduler.on_release(ticket, self.now))
        then = self._answered.pop(ticket, None)
        if then is not None:
            then()


def keep_busy(clock: Clock, model: str, end_s: float, clients: int = 8, start_s: float = 0.0) -> None:
    """Clients who ask `model` again as soon as they are answered."""

    def ask() -> None:
        if clock.now < end_s:
            clock.request(model, then=ask)

    for number in range(clients):
        clock.at(start_s + number / 10, ask)


def send_traffic(clock: Clock, chance: random.Random, end_s: float) -> None:
    """Clients who ask again as soon as they are answered, or a while later, and others who come and go."""

    def client(model: str, think_s: float) -> None:
        def ask() -> None:
            if clock.now < end_s:
                clock.at(clock.now + think_s * chance.random(), lambda: clock.request(model, then=ask))

        ask()

    for model in clock.models:
        for _ in range(chance.choice([0, 0, 0, 1, 3, 8])):
            client(model, chance.choice([0.01, 1.0, 10.0]))
    pause_s, at_s = chance.choice([0.5, 1.0, 10.0]), 0.0
    while (at_s := at_s + chance.expovariate(1 / pause_s)) < end_s:
        clock.at(at_s, partial(clock.request, chance.choice(list(clock.models))))
