"""The values that the scheduler works with: its commands, the changes that it tells, and what it knows of one model."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from models.errors import RoundhouseError
from models.scheduling.policy import Limits
from models.scheduling.residency import Trigger
from models.types import State
from utils.turns import Turns

WAKE_GUESS = 0.25  # of the load cost, for a model whose wake was never measured
ROOM_FOR = "room for "  # with the other model's id, the reason for which a model leaves the device for another
ANSWER_WEIGHT = 0.2  # of the newest answer in the average of how long answers take


@dataclass(frozen=True, slots=True)
class Load:
    """Start the model's engine; answer with on_loaded or on_load_failed."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """End the model's engine and confirm its whole tree gone; answer with on_unloaded."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """Put the model's engine to sleep; answer with on_slept or on_sleep_failed."""

    model_id: str
    level: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake the model's engine; answer with on_woken or on_sleep_failed."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may go to its model's engine now; answer with on_release when it has ended."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The request will not be served."""

    ticket: int
    error: RoundhouseError


Action = Load | Unload | Sleep | Wake  # what occupies the device: one at a time
Command = Action | Grant | Reject


@dataclass(frozen=True, slots=True)
class Change:
    """A model's state has changed. `reason` is a short phrase for people: "room for org/b", "idle for 300 s"."""

    model_id: str
    before: State
    after: State
    trigger: Trigger
    reason: str


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for its model. `holds`: once granted it runs until it is released."""

    since_s: float
    holds: bool
    client: str = ""


class Recent:
    """The median of the last five durations of something, in seconds: one slow outlier does not spoil it."""

    __slots__ = ("_seen", "value")

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=5)
        self.value: float | None = None

    def add(self, duration_s: float) -> None:
        self._seen.append(duration_s)
        self.value = median(self._seen)


@dataclass(slots=True, eq=False)
class Entry:
    """One model: its state, who waits for it, who runs on it. Times are the manager's clock, in seconds."""

    model_id: str
    limits: Limits
    state: State = State.COLD
    waiting: dict[int, Waiter] = field(default_factory=dict)  # by ticket, in order of arrival
    turns: Turns[int] = field(default_factory=Turns)  # their tickets, in the order in which they are let in
    unheld: int = 0  # of those, how many ask for residency only
    running: dict[int, float] = field(default_factory=dict)  # ticket → when it was granted
    line_s: float = 0.0  # since when it stands in line for the device; only while somebody waits
    promised: bool = False  # when it lined up, max_wait_s could be kept
    ready_since_s: float = -math.inf
    last_used_s: float = 0.0
    answered_s: float | None = None  # when it last answered a request
    action_since_s: float = 0.0  # when the load, wake, sleep or unload under way began
    drain_since_s: float = -math.inf
    drain_for: str | None = None  # the model that room is made for, or why else it drains (models/scheduling/device.py)
    index: dict[str, Entry] | None = None  # that set of the device in which it is
    # What was learned of it
    loading: Recent = field(default_factory=Recent)
    waking: Recent = field(default_factory=Recent)
    sleeping: Recent = field(default_factory=Recent)
    unloading: Recent = field(default_factory=Recent)
    draining: Recent = field(default_factory=Recent)  # from the fence to the end of the last running answer
    answer_s: float = 0.0  # how long its answers take, on average
    comes_back: float | None = None  # how often requests come back soon after it became idle: 0 never, 1 always
    left_idle: bool = False  # it became idle, and no request has come since
    # What is told of it
    load_s: float | None = None  # of the last load
    loads: int = 0
    wake_s: float | None = None  # of the last wake
    sleeps: int = 0
    host_bytes: int = 0  # host memory taken while asleep
    asleep_level: int | None = None
    asleep_bytes: int | None = None  # left on the device while asleep, measured
    # What went wrong
    failures: int = 0  # loads that failed in a row
    interrupted: bool = False  # its load was cut short from outside, and is tried once more
    crashes: int = 0  # engines in a row that ended by themselves without having answered
    served: bool = False  # it has answered since it became ready
    crashed: bool = False  # its engine has ended by itself and is being cleared away
    sleep_failures: int = 0  # in a row
    sleepless: bool = False  # sleeping went wrong for good
    error: str | None = None
    retry_at_s: float = 0.0
    # What was asked of it while the device was busy with it
    unload_asked: bool = False
    stale: bool = False  # its folder changed
    removed: bool = False  # no longer in the catalog

    @property
    def oldest_s(self) -> float:
        """When the longest waiting request came; only while somebody waits."""
        return next(iter(self.waiting.values())).since_s

    @property
    def cost_s(self) -> float:
        """What loading this model costs: measured, or else estimated."""
        return self.limits.load_cost_s if self.loading.value is None else self.loading.value

    @property
    def wake_cost_s(self) -> float:
        """What waking it costs: measured, in an earlier run if need be, or else guessed."""
        if self.waking.value is not None:
            return self.waking.value
        return self.cost_s * WAKE_GUESS if self.limits.wake_cost_s is None else self.limits.wake_cost_s

    @property
    def bring_s(self) -> float:
        """What bringing it onto the device costs from where it is now."""
        return self.wake_cost_s if self.state in (State.SLEEPING, State.WAKING) else self.cost_s

    @property
    def unload_s(self) -> float:
        """What ending it costs; 0 as long as it was never measured."""
        return self.unloading.value or 0.0

    @property
    def drain_s(self) -> float:
        """How long its running answers go on once it is fenced: at least one may have begun just before."""
        return max(self.answer_s, self.draining.value or 0.0)

    @property
    def to_be_ended(self) -> bool:
        """Asleep, it is to be ended, not woken."""
        return self.unload_asked or self.stale or self.removed

    def learn_answer(self, duration_s: float) -> None:
        """Takes one more answer into the average of how long they take."""
        if self.answer_s == 0.0:
            self.answer_s = duration_s
        else:
            self.answer_s += ANSWER_WEIGHT * (duration_s - self.answer_s)
