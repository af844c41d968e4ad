"""The scheduler alone: an event in, commands out. Sizes are in units of the budget; times in seconds."""

from __future__ import annotations

import pytest

from models.errors import Busy, DoesNotFit, LoadFailed, UnknownModel
from models.scheduling.policy import Limits, Policy
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Command, Grant, Load, Reject, Unload
from models.types import State


def make(*models: str, budget: int = 10, size: int = 6, policy: Policy | None = None, **limits: object) -> Scheduler:
    """A scheduler of models that fit one at a time, each taking 2 s to load, unless told otherwise."""
    scheduler = Scheduler(policy or Policy(), budget)
    for model in models:
        scheduler.configure(model, Limits(size, 2.0, **limits))  # type: ignore[arg-type]
    return scheduler


def ready(scheduler: Scheduler, model: str, now: float = 0.0, ticket: int = 0) -> None:
    """Brings `model` onto the device, idle."""
    assert Load(model) in scheduler.on_request(ticket, model, now, holds=False)
    assert scheduler.on_loaded(model, now, 2.0) == [Grant(ticket)]


def errors(commands: list[Command]) -> list[type[Exception]]:
    return [type(command.error) for command in commands if isinstance(command, Reject)]


def test_all_waiters_of_a_model_share_one_load() -> None:
    s = make("a")
    assert s.on_request(1, "a", 0) == [Load("a")]
    assert s.on_request(2, "a", 0) == []
    assert s.on_request(3, "a", 0) == []
    assert s.on_loaded("a", 2, 2) == [Grant(1), Grant(2), Grant(3)]
    assert s.on_request(4, "a", 2) == [Grant(4)]


def test_a_model_that_fits_is_loaded_beside_the_others() -> None:
    s = make("a", "b", size=4)
    ready(s, "a")
    s.on_request(1, "a", 0)
    assert s.on_request(2, "b", 0) == [Load("b")]
    assert s.entries["a"].state is State.READY


def test_with_residency_one_nothing_is_loaded_beside_another() -> None:
    s = make("a", "b", size=4, policy=Policy(residency="one"))
    ready(s, "a")
    assert s.on_request(1, "b", 0) == [Unload("a")]
    assert s.on_unloaded("a", 1) == [Load("b")]


def test_an_idle_model_gives_way_at_once() -> None:
    s = make("a", "b")
    ready(s, "a")
    assert s.on_request(1, "b", 0.1) == [Unload("a")]
    assert s.on_unloaded("a", 0.2) == [Load("b")]
    assert s.on_loaded("b", 2, 2) == [Grant(1)]


def test_running_answers_finish_before_their_model_goes() -> None:
    s = make("a", "b")
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    turn_ends = s.next_deadline_s(0)
    assert turn_ends == pytest.approx(8)  # 2 s of swap may be a fifth of the time
    assert s.on_tick(turn_ends or 0) == []
    assert s.entries["a"].state is State.DRAINING
    assert s.on_request(3, "a", 9) == []  # fenced: it queues
    assert s.on_release(1, 10) == [Unload("a")]
    assert s.on_unloaded("a", 11) == [Load("b")]


def test_a_hot_model_keeps_serving_until_its_turn_is_over() -> None:
    s = make("a", "b")
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    assert s.on_request(3, "a", 7.9) == [Grant(3)]


def test_the_longest_wait_ends_a_turn_early() -> None:
    s = make("a", "b", policy=Policy(max_wait_s=3))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 1)
    assert s.next_deadline_s(1) == pytest.approx(4)


def test_a_drain_that_takes_too_long_is_cut() -> None:
    s = make("a", "b", policy=Policy(drain_timeout_s=5))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_unload_asked("a", 1)
    assert s.next_deadline_s(1) == pytest.approx(6)
    assert s.on_tick(6) == [Unload("a")]
    assert s.on_unloaded("a", 7) == []
    assert s.on_release(1, 8) == []


def test_the_oldest_waiter_decides_which_model_is_next() -> None:
    s = make("a", "b", "c")
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "c", 1)
    s.on_request(3, "b", 2)
    s.on_request(4, "c", 3)
    s.on_tick(100)
    assert s.on_release(1, 100) == [Unload("a")]
    assert s.on_unloaded("a", 100) == [Load("c")]
    assert s.on_loaded("c", 102, 2) == [Grant(2), Grant(4)]


def test_a_pinned_model_never_leaves_for_another_and_the_numbers_are_told() -> None:
    s = make("b")
    s.configure("a", Limits(6, 2.0, pinned=True))
    ready(s, "a")
    commands = s.on_request(1, "b", 0)
    assert errors(commands) == [DoesNotFit]
    assert s.entries["a"].state is State.READY


def test_a_model_larger_than_the_budget_is_refused_and_evicts_nobody() -> None:
    s = make("a")
    s.configure("big", Limits(11, 2.0))
    ready(s, "a")
    assert errors(s.on_request(1, "big", 0)) == [DoesNotFit]
    assert s.entries["a"].state is State.READY


def test_no_more_is_evicted_than_needed() -> None:
    s = make("a", "b", size=3)
    s.configure("c", Limits(6, 2.0))
    ready(s, "a", now=0)
    ready(s, "b", now=5, ticket=1)
    assert s.on_request(2, "c", 10) == [Unload("a")]  # idle for longer
    assert s.on_unloaded("a", 11) == [Load("c")]
    assert s.entries["b"].state is State.READY


def test_a_model_that_is_dear_to_bring_back_stays_longer() -> None:
    s = make("cheap", "dear", size=5)
    s.configure("c", Limits(5, 2.0))
    s.on_request(0, "dear", 0, holds=False)
    s.on_loaded("dear", 0, 60.0)
    ready(s, "cheap", now=5, ticket=1)
    assert s.on_request(2, "c", 10) == [Unload("cheap")]


def test_a_failed_load_tells_every_waiter_the_cause_and_backs_off() -> None:
    s = make("a")
    s.on_request(1, "a", 0)
    s.on_request(2, "a", 0)
    commands = s.on_load_failed("a", 3, "the shard is truncated.")
    assert errors(commands) == [LoadFailed, LoadFailed]
    assert s.ledger.charges == {}
    refused = s.on_request(3, "a", 3.5)
    assert errors(refused) == [LoadFailed]
    assert isinstance(refused[0], Reject)
    assert "the shard is truncated" in refused[0].error.message
    assert refused[0].error.retry_after_s == pytest.approx(1.5)
    assert s.on_request(4, "a", 5.1) == [Load("a")]  # a trial once the time is over


def test_the_back_off_doubles_up_to_a_limit() -> None:
    s = make("a")
    now, waits = 0.0, []
    for ticket in range(10):
        assert s.on_request(ticket, "a", now) == [Load("a")]
        s.on_load_failed("a", now, "no")
        waits.append(s.entries["a"].retry_at_s - now)
        now = s.entries["a"].retry_at_s
    assert waits[:4] == [2, 4, 8, 16]
    assert waits[-1] == 120


def test_a_full_queue_refuses_with_the_time_to_come_back() -> None:
    s = make("a", policy=Policy(max_queued_per_model=2))
    s.on_request(1, "a", 0)
    s.on_request(2, "a", 0)
    refused = s.on_request(3, "a", 0.5)
    assert errors(refused) == [Busy]
    assert isinstance(refused[0], Reject)
    assert refused[0].error.retry_after_s == pytest.approx(1.5)


def test_the_queue_of_all_models_is_bounded_too() -> None:
    s = make("a", "b", policy=Policy(max_queued=1))
    s.on_request(1, "a", 0)
    assert errors(s.on_request(2, "b", 0)) == [Busy]


def test_clients_whose_requests_are_held_back_are_let_in_in_turn() -> None:
    s = make("a", concurrency=1)
    ready(s, "a")
    assert s.on_request(1, "a", 1, client="indexer") == [Grant(1)]
    for ticket, client in enumerate(["indexer"] * 4 + ["editor", "chat"], start=2):
        assert s.on_request(ticket, "a", 1, client=client) == []
    s.on_cancel(4, 1)
    order = [1]
    while granted := s.on_release(order[-1], 2):
        order += [command.ticket for command in granted if isinstance(command, Grant)]
    assert order == [1, 2, 6, 7, 3, 5]


def test_concurrency_holds_back_what_is_beyond_it() -> None:
    s = make("a", concurrency=1)
    ready(s, "a")
    assert s.on_request(1, "a", 0) == [Grant(1)]
    assert s.on_request(2, "a", 0) == []
    assert s.on_release(1, 1) == [Grant(2)]


def test_a_client_that_leaves_frees_its_place_and_takes_back_its_eviction() -> None:
    s = make("a", "b")
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    s.on_tick(8)
    assert s.entries["a"].state is State.DRAINING
    s.on_request(3, "a", 8)
    assert s.on_cancel(2, 9) == [Grant(3)]
    assert s.entries["a"].state is State.READY
    assert s.queued == 0


def test_an_idle_model_is_unloaded_when_its_keep_alive_is_over() -> None:
    s = make("a", policy=Policy(keep_alive_s=30))
    ready(s, "a")
    assert s.next_deadline_s(0) == pytest.approx(30)
    assert s.on_tick(29) == []
    assert s.on_tick(30) == [Unload("a")]


def test_a_request_at_the_moment_of_the_keep_alive_is_served_anew() -> None:
    s = make("a", policy=Policy(keep_alive_s=30))
    ready(s, "a")
    assert s.on_tick(30) == [Unload("a")]
    assert s.on_request(1, "a", 30) == []
    assert s.on_unloaded("a", 31) == [Load("a")]
    assert s.on_loaded("a", 33, 2) == [Grant(1)]


def test_a_pinned_model_has_no_keep_alive() -> None:
    s = make("a", policy=Policy(keep_alive_s=30), pinned=True)
    ready(s, "a")
    assert s.on_tick(1000) == []
    assert s.next_deadline_s(0) is None


def test_an_unload_while_loading_happens_after_the_waiters_were_served() -> None:
    s = make("a")
    s.on_request(1, "a", 0)
    s.on_unload_asked("a", 1)
    assert s.on_loaded("a", 2, 2) == [Grant(1)]
    assert s.entries["a"].state is State.DRAINING
    assert s.on_release(1, 3) == [Unload("a")]


def test_an_engine_that_ends_by_itself_is_cleared_away_before_it_is_started_anew() -> None:
    s = make("a")
    ready(s, "a")
    s.on_request(1, "a", 0)
    assert s.on_exited("a", 1) == [Unload("a")]
    assert s.ledger.free_bytes == 4  # its memory is not free before it is confirmed
    assert s.on_request(2, "a", 1) == []
    assert s.on_unloaded("a", 2) == [Load("a")]
    assert s.on_release(1, 2) == []
    assert s.on_loaded("a", 4, 2) == [Grant(2)]


def test_a_changed_folder_is_loaded_anew_after_its_running_answers() -> None:
    s = make("a")
    ready(s, "a")
    s.on_request(1, "a", 0)
    assert s.on_changed("a", 1) == []
    s.on_request(2, "a", 1)
    assert s.on_release(1, 2) == [Unload("a")]
    assert s.on_unloaded("a", 3) == [Load("a")]


def test_a_folder_that_changes_while_it_is_loaded_is_loaded_again() -> None:
    s = make("a")
    s.on_request(1, "a", 0)
    s.on_changed("a", 1)
    assert s.on_loaded("a", 2, 2) == [Unload("a")]
    assert s.on_unloaded("a", 3) == [Load("a")]
    assert s.on_loaded("a", 5, 2) == [Grant(1)]


def test_a_load_that_fails_because_its_folder_changed_is_tried_again_at_once() -> None:
    s = make("a")
    s.on_request(1, "a", 0)
    s.on_changed("a", 1)
    assert s.on_load_failed("a", 2, "half a file") == [Load("a")]


def test_a_model_that_is_removed_lets_its_answers_finish_and_tells_its_waiters() -> None:
    s = make("a", concurrency=1)
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "a", 0)
    assert errors(s.forget("a", 1, UnknownModel("gone"))) == [UnknownModel]
    assert s.on_release(1, 2) == [Unload("a")]
    s.on_unloaded("a", 3)
    assert s.entries == {}
    assert s.ledger.charges == {}


def test_what_room_is_made_for_is_not_given_to_those_behind() -> None:
    s = make("a", budget=10, size=6)
    s.configure("big", Limits(9, 2.0))
    s.configure("small", Limits(2, 2.0))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "big", 0)
    assert s.on_request(3, "small", 1) == []  # 4 are free, but 3 of them are kept for "big"


def test_what_was_measured_replaces_the_estimate() -> None:
    s = make("a", "b")
    ready(s, "a")
    s.on_measured("a", 1, 4)
    assert s.on_request(1, "b", 2) == [Load("b")]
