"""Chat and retrieval models beside each other, and priorities."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from models.scheduling import turns
from models.scheduling.policy import Limits, Policy
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Grant, Load, Reject, Unload
from models.types import State
from tests.models.scheduling.scheduling_clock import TINY_S, Clock, keep_busy, send_traffic

CHAT, LARGE_CHAT = Limits(60, 2.0), Limits(90, 2.0)
SMALL = Limits(10, 1.0, lane="retrieval")
POLICY = Policy(retrieval_share=0.2)


def make(policy: Policy = POLICY, **models: Limits) -> Scheduler:
    scheduler = Scheduler(policy, 100)
    for model, limits in models.items():
        scheduler.configure(model, limits)
    return scheduler


def ready(s: Scheduler, model: str, now: float = 0.0) -> None:
    assert Load(model) in s.on_request(-1, model, now, holds=False)
    s.on_loaded(model, now, s.entries[model].limits.load_cost_s)


def test_a_chat_model_may_not_use_what_is_kept_for_retrieval_models() -> None:
    s = make(chat=CHAT, small_chat=Limits(25, 2.0), embed=SMALL, rerank=SMALL)
    ready(s, "chat")
    assert s.on_request(1, "small_chat", 1) == [Unload("chat")]  # 40 are free, 20 of them kept


def test_no_more_is_kept_than_the_retrieval_models_take() -> None:
    s = make(chat=CHAT, small_chat=Limits(25, 2.0), embed=SMALL)
    ready(s, "chat")
    assert s.on_request(1, "small_chat", 1) == [Load("small_chat")]


def test_a_chat_model_too_large_otherwise_uses_what_it_needs_of_it() -> None:
    s = make(chat=LARGE_CHAT, embed=SMALL, rerank=SMALL)
    ready(s, "embed")
    assert s.on_request(1, "chat", 1) == [Load("chat")]


def test_a_chat_model_evicts_retrieval_only_beyond_what_is_kept_for_it() -> None:
    s = make(chat=Limits(75, 2.0), embed=SMALL, rerank=SMALL, large=Limits(30, 1.0, lane="retrieval"))
    ready(s, "embed", 0)
    ready(s, "rerank", 1)
    ready(s, "large", 2)
    assert s.on_request(1, "chat", 30) == [Unload("large")]
    assert s.on_unloaded("large", 31) == [Load("chat")]


def test_a_retrieval_model_evicts_its_own_lane_even_if_a_chat_model_is_idle_for_longer() -> None:
    s = make(chat=Limits(80, 2.0), embed=Limits(15, 1.0, lane="retrieval"), rerank=Limits(15, 1.0, lane="retrieval"))
    ready(s, "chat", 0)
    ready(s, "embed", 90)
    assert s.on_request(1, "rerank", 100) == [Unload("embed")]


def test_a_chat_model_evicts_its_own_lane_even_if_a_retrieval_model_beyond_its_share_is_idle_for_longer() -> None:
    s = make(chat=Limits(30, 2.0), other=Limits(30, 2.0), embed=Limits(50, 1.0, lane="retrieval"))
    ready(s, "embed", 0)
    ready(s, "chat", 90)
    assert s.on_request(1, "other", 100) == [Unload("chat")]


def test_a_busy_retrieval_model_is_waited_for_rather_than_evicting_chat() -> None:
    s = make(chat=Limits(80, 2.0), embed=Limits(15, 1.0, lane="retrieval"), rerank=Limits(15, 1.0, lane="retrieval"))
    ready(s, "chat", 0)
    ready(s, "embed", 0)
    s.on_request(1, "embed", 1)
    assert s.on_request(2, "rerank", 2) == []
    assert s.on_release(1, 3) == [Unload("embed")]


def test_retrieval_models_take_turns_though_two_chat_models_wait_for_a_busy_one() -> None:
    large, small = Limits(80, 20.0), Limits(15, 1.0, lane="retrieval")
    s = make(a=large, b=large, c=large, embed=small, rerank=small)
    ready(s, "a")
    ready(s, "embed")
    for ticket, model in enumerate(("a", "b", "c", "embed")):
        s.on_request(ticket, model, 1)
    assert s.on_request(4, "rerank", 1) == []
    s.on_tick(10)
    assert s.entries["embed"].state is State.DRAINING
    assert s.entries["a"].state is State.READY
    assert s.on_release(3, 10) == [Unload("embed")]


def test_a_retrieval_model_that_takes_long_to_load_makes_no_chat_model_late() -> None:
    slow = Limits(10, 30.0, lane="retrieval")
    s = make(Policy(retrieval_share=0.2, max_wait_s=20.0), a=CHAT, b=CHAT, embed=slow)
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    assert s.on_request(3, "embed", 1) == []
    s.on_tick(s.next_deadline_s(1) or 0)
    assert s.on_release(1, 18) == [Unload("a")]
    assert s.on_unloaded("a", 19) == [Load("b")]
    assert s.on_loaded("b", 21, 2.0) == [Grant(2), Load("embed")]


def test_a_retrieval_model_that_cannot_fit_beside_an_idle_chat_model_evicts_it() -> None:
    s = make(chat=LARGE_CHAT, embed=Limits(20, 1.0, lane="retrieval"))
    ready(s, "chat")
    s.on_request(1, "chat", 1)
    assert s.on_request(2, "embed", 1) == []  # busy, and its turn is not over
    assert s.on_release(1, 2) == [Unload("chat")]


def test_a_retrieval_model_is_loaded_before_a_chat_model_when_both_could_be() -> None:
    s = make(chat=CHAT, other=Limits(15, 1.0), embed=SMALL)
    s.on_request(1, "chat", 0)
    s.on_request(2, "other", 0.1)
    s.on_request(3, "embed", 0.2)
    assert s.on_loaded("chat", 2, 2.0) == [Grant(1), Load("embed")]


def test_a_retrieval_model_does_not_take_the_room_that_was_made_for_a_chat_model() -> None:
    s = make(a=Limits(80, 2.0), b=LARGE_CHAT, embed=Limits(15, 1.0, lane="retrieval"))
    ready(s, "a")
    assert s.on_request(1, "b", 30) == [Unload("a")]
    assert s.on_request(2, "embed", 30.1) == []
    assert s.on_unloaded("a", 31) == [Load("b")]


def test_requests_for_a_retrieval_model_are_granted_while_a_chat_model_leaves_and_the_next_one_loads() -> None:
    s = make(a=CHAT, b=CHAT, embed=SMALL)
    ready(s, "a")
    ready(s, "embed")
    assert s.on_request(1, "b", 1) == [Unload("a")]
    assert s.on_request(2, "embed", 1.1) == [Grant(2)]
    assert s.on_unloaded("a", 1.5) == [Load("b")]
    assert s.on_request(3, "embed", 1.6) == [Grant(3)]


def test_a_place_that_a_retrieval_request_leaves_is_given_to_the_next_while_chat_swaps() -> None:
    s = make(a=CHAT, b=CHAT, embed=replace(SMALL, concurrency=1))
    ready(s, "a")
    ready(s, "embed")
    s.on_request(1, "b", 1)
    assert s.on_request(2, "embed", 1.1) == [Grant(2)]
    assert s.on_request(3, "embed", 1.2) == s.on_request(4, "embed", 1.3) == []
    assert s.on_release(2, 1.4) == [Grant(3)]
    assert s.on_unloaded("a", 1.5) == [Load("b")]
    assert s.on_release(3, 1.6) == [Grant(4)]


def test_a_retrieval_model_is_loaded_while_a_fenced_chat_model_gives_its_last_answers() -> None:
    s = make(a=CHAT, b=CHAT, embed=SMALL)
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    s.on_tick(s.next_deadline_s(0) or 0)
    assert s.entries["a"].state is State.DRAINING
    assert s.on_request(3, "embed", 20) == [Load("embed")]


def test_retrieval_within_its_share_is_loaded_once_and_then_waits_for_nothing_while_busy_chats_swap() -> None:
    chats = {"a": CHAT, "b": Limits(80, 2.0), "c": CHAT}
    clock = Clock(POLICY, 100, chats | {"embed": SMALL, "rerank": SMALL}, answer_s=1.0)
    for chat in chats:
        keep_busy(clock, chat, 200.0)
    for number, model in enumerate(("embed", "rerank")):
        keep_busy(clock, model, 200.0, start_s=20.0 + 40 * number)
    clock.run_all()
    loads = {model: entry.loads for model, entry in clock.scheduler.entries.items()}
    assert loads["embed"] == loads["rerank"] == 1
    assert min(loads[chat] for chat in chats) > 1
    for model in ("embed", "rerank"):
        waits = [wait_s for ticket, wait_s in clock.waits.items() if clock.models_of[ticket] == model]
        # for a swap in progress, its own load, and by chance that of the other
        assert max(waits) <= clock.unload_s + CHAT.load_cost_s + 2 * SMALL.load_cost_s + TINY_S
        assert set(waits[8:]) == {0.0}  # after those who waited for the load


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), retrieval_share=st.sampled_from([0.1, 0.2, 0.3]), sleeps=st.booleans())
def test_retrieval_within_its_share_never_leaves_for_chat(seed: int, retrieval_share: float, sleeps: bool) -> None:
    chance = random.Random(seed)
    room = int(100 * retrieval_share)
    models = {f"r{n}": Limits(room // 3, 1.0, priority=chance.randint(0, 1), lane="retrieval") for n in range(3)}
    for number in range(chance.randint(2, 5)):
        size, load_s = chance.randint(20, 100 - 3 * (room // 3)), chance.choice([0.5, 2.0, 20.0])
        limits = Limits(size, load_s, priority=chance.randint(0, 1))
        if sleeps:
            limits = replace(limits, sleep_levels=(1, 2), wake_cost_s=0.5, asleep_bytes=2, weights_bytes=10)
        models[f"c{number}"] = limits
    policy = Policy(retrieval_share=retrieval_share, max_wait_s=chance.choice([5.0, 60.0]), sleep_memory_bytes=50)
    clock = Clock(policy, 100, models, chance.choice([0.1, 1.0, 4.0]))
    send_traffic(clock, chance, 60.0)
    clock.run_all()
    changes = [change for change in clock.scheduler.changes if change.model_id.startswith("r")]
    assert {change.after for change in changes} <= {State.LOADING, State.READY}


def test_of_waiting_models_the_one_with_the_highest_priority_is_next() -> None:
    s = make(a=CHAT, b=CHAT, urgent=Limits(60, 2.0, priority=1))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 1)
    s.on_request(3, "urgent", 2)
    s.on_tick(20)
    assert s.on_release(1, 20) == [Unload("a")]
    assert s.on_unloaded("a", 20) == [Load("urgent")]


def test_priority_passes_nobody_over_who_would_then_wait_too_long() -> None:
    s = make(Policy(max_wait_s=20), a=CHAT, b=CHAT, urgent=Limits(60, 30.0, priority=1))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 1)
    s.on_request(3, "urgent", 2)
    s.on_tick(15)
    s.on_release(1, 15)
    assert s.on_unloaded("a", 15) == [Load("b")]


def test_a_model_is_passed_over_by_the_same_one_only_once() -> None:
    s = make(a=CHAT, b=CHAT, urgent=Limits(60, 2.0, priority=1))
    ready(s, "a")
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 1)
    s.on_request(3, "urgent", 2)
    s.on_tick(20)
    s.on_release(1, 20)
    s.on_unloaded("a", 20)
    assert s.on_loaded("urgent", 22, 2.0) == [Grant(3)]
    assert s.on_release(3, 23) == [Unload("urgent")]
    assert s.on_request(4, "urgent", 23) == []
    assert s.on_unloaded("urgent", 24) == [Load("b")]


def test_of_busy_models_the_one_that_fewest_use_gives_way() -> None:
    s = make(hot=Limits(40, 1.0), cold=Limits(40, 1.0), c=Limits(40, 1.0))
    ready(s, "hot", 0)
    ready(s, "cold", 1)
    for ticket in range(8):
        s.on_request(ticket, "hot", 2)
    s.on_request(8, "cold", 2)
    s.on_request(9, "c", 60)
    s.on_tick(61)
    assert s.entries["hot"].state is State.READY
    assert s.entries["cold"].state is State.DRAINING


def test_models_that_few_ask_for_take_one_place_after_the_other_not_two_busy_ones_at_once() -> None:
    s = make(hot=Limits(40, 1.0), cold=Limits(40, 1.0), c=Limits(40, 1.0), d=Limits(40, 1.0))
    ready(s, "hot", 0)
    ready(s, "cold", 1)
    for ticket in range(8):
        s.on_request(ticket, "hot", 2)
    s.on_request(8, "cold", 2)
    s.on_request(9, "c", 40)
    s.on_request(10, "d", 40)
    s.on_tick(41)
    assert s.entries["cold"].state is State.DRAINING
    assert s.entries["hot"].state is State.READY


def test_a_model_that_can_never_fit_is_refused_while_the_device_is_busy() -> None:
    s = make(a=CHAT, huge=Limits(101, 2.0))
    s.on_request(1, "a", 0)
    (refusal,) = s.on_request(2, "huge", 0)
    assert isinstance(refusal, Reject)


def test_priority_is_not_lost_while_the_answers_that_its_model_waits_for_come_to_their_end() -> None:
    s = make(Policy(max_wait_s=12), a=CHAT, b=Limits(50, 2.0), urgent=Limits(90, 1.0, priority=1))
    ready(s, "a")
    s.entries["a"].answer_s = 4.0
    s.on_request(1, "a", 0)
    s.on_request(2, "b", 0)
    s.on_request(3, "urgent", 0)
    assert [entry.model_id for entry in turns.line(s.device, 0)] == ["urgent", "b"]
    s.on_tick(s.next_deadline_s(0) or 0)
    assert s.entries["a"].state is State.DRAINING
    assert [entry.model_id for entry in turns.line(s.device, 10.0)] == ["urgent", "b"]
