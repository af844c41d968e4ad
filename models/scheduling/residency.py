"""Every legal change of a model's residency, in one table; anything else raises.

COLD → LOADING → READY → DRAINING → (SLEEPING | UNLOADING → COLD), SLEEPING → WAKING → READY, and FAILED.
"""

from __future__ import annotations

from enum import StrEnum

from models.types import State


class Trigger(StrEnum):
    """What makes a model's state change."""

    LOAD = "load"  # the scheduler commands a load
    LOADED = "loaded"  # the engine answers
    LOAD_FAILED = "load_failed"  # the load ended with an error, its process tree is gone
    DRAIN = "drain"  # no new grants; running answers finish
    RESUME = "resume"  # the reason to drain went away before anything was unloaded
    UNLOAD = "unload"  # nothing runs any more (or the drain took too long): end the engine
    GONE = "gone"  # the whole process tree is confirmed gone
    EXITED = "exited"  # the engine ended by itself
    SLEEP = "sleep"  # nothing runs any more: leave the device, keep the process
    WAKE = "wake"
    WOKEN = "woken"
    SLEEP_FAILED = "sleep_failed"  # falling asleep or waking went wrong: the engine is ended
    GIVE_UP = "give_up"  # the tree is gone, and it ended by itself too often in a row
    FORGET = "forget"  # drop what is known of a failure
    CONNECT = "connect"  # a server elsewhere: it is there as soon as its model is known, and never leaves


TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.COLD, Trigger.LOAD): State.LOADING,
    (State.COLD, Trigger.CONNECT): State.READY,
    (State.FAILED, Trigger.LOAD): State.LOADING,
    (State.FAILED, Trigger.FORGET): State.COLD,
    (State.LOADING, Trigger.LOADED): State.READY,
    (State.LOADING, Trigger.LOAD_FAILED): State.FAILED,
    (State.READY, Trigger.DRAIN): State.DRAINING,
    (State.DRAINING, Trigger.RESUME): State.READY,
    (State.DRAINING, Trigger.UNLOAD): State.UNLOADING,
    (State.DRAINING, Trigger.SLEEP): State.SLEEPING,
    (State.UNLOADING, Trigger.GONE): State.COLD,
    (State.UNLOADING, Trigger.GIVE_UP): State.FAILED,
    (State.SLEEPING, Trigger.SLEEP_FAILED): State.UNLOADING,
    (State.WAKING, Trigger.SLEEP_FAILED): State.UNLOADING,
    (State.READY, Trigger.EXITED): State.UNLOADING,
    (State.DRAINING, Trigger.EXITED): State.UNLOADING,
    (State.SLEEPING, Trigger.EXITED): State.UNLOADING,
    (State.WAKING, Trigger.EXITED): State.UNLOADING,
    (State.SLEEPING, Trigger.UNLOAD): State.UNLOADING,
    (State.SLEEPING, Trigger.WAKE): State.WAKING,
    (State.WAKING, Trigger.WOKEN): State.READY,
}


class IllegalTransition(RuntimeError):
    """A trigger that the table does not know for this state: a bug of ours, never of a client."""


def next_state(state: State, trigger: Trigger) -> State:
    """The state after `trigger`; raises IllegalTransition where the table has none."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"{trigger.value!r} is not possible while {state.value!r}") from None
