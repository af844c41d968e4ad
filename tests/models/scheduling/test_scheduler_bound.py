"""How long a request waits at most: measured on a virtual clock, on random traffic, against what was promised."""

from __future__ import annotations

import random
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from models.scheduling import turns
from models.scheduling.policy import Limits, Policy
from tests.models.scheduling.scheduling_clock import TINY_S, Clock, keep_busy, send_traffic


def random_models(chance: random.Random) -> dict[str, Limits]:
    """Up to seven, of one size or mixed, of one lane and priority or mixed."""
    mixed, lanes, priorities = (chance.random() < 0.4 for _ in range(3))
    return {
        f"m{number}": Limits(
            chance.choice([3, 5, 8, 10]) if mixed else 8,
            chance.choice([0.5, 1.0, 2.0, 5.0, 20.0]),
            priority=chance.choice([0, 0, 1, 2]) if priorities else 0,
            lane="retrieval" if lanes and chance.random() < 0.4 else "generation",
        )
        for number in range(chance.randint(2, 7))
    }


def broken_promises(clock: Clock) -> dict[int, tuple[float, float]]:
    """By ticket: how long it waited, and what it was promised."""
    waits = {ticket: (clock.waits[ticket], most_s) for ticket, most_s in clock.bounds.items()}
    return {ticket: wait for ticket, wait in waits.items() if wait[0] > wait[1] + TINY_S}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    swap_share=st.sampled_from([0.1, 0.2, 0.5]),
    max_wait_s=st.sampled_from([5.0, 10.0, 30.0, 60.0]),
    residency=st.sampled_from(["auto", "auto", "one"]),
    answer_s=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_nobody_waits_for_longer_than_was_promised(
    seed: int, swap_share: float, max_wait_s: float, residency: str, answer_s: float
) -> None:
    policy = Policy(
        swap_share=swap_share,
        max_wait_s=max_wait_s,
        residency=residency,  # type: ignore[arg-type]
        retrieval_share=0.3,
        max_queued=1_000_000,
        max_queued_per_model=1_000_000,
    )
    chance = random.Random(seed)
    clock = Clock(policy, 10, random_models(chance), answer_s)
    send_traffic(clock, chance, end_s=60.0)
    clock.run_all()
    assert clock.scheduler.queued == 0
    assert broken_promises(clock) == {}


def one_fits(load_s: float, *models: str, answer_s: float = 1.0, **policy: float) -> Clock:
    limits = {model: Limits(8, load_s) for model in models}
    return Clock(Policy(**policy), 10, limits, answer_s)  # type: ignore[arg-type]


def test_two_busy_models_swap_for_no_more_than_their_share_of_the_time() -> None:
    clock = one_fits(2.0, "a", "b")
    keep_busy(clock, "a", 300.0)
    keep_busy(clock, "b", 300.0)
    clock.run_all()
    loads = sum(entry.loads for entry in clock.scheduler.entries.values())
    assert loads * (2.0 + clock.unload_s) <= 0.2 * clock.now + 2.0 + clock.unload_s
    assert max(clock.waits.values()) < 60


def test_where_max_wait_cannot_be_kept_it_does_not_add_swaps() -> None:
    """Ten busy models, 60 s to load each: fair turns, not the shortest ones, and a wait of one round at most."""
    names = [f"m{number}" for number in range(10)]
    clock = one_fits(60.0, *names)
    for name in names:
        keep_busy(clock, name, 6000.0, clients=2)
    clock.run_all()
    swap_s = 60.0 + clock.unload_s
    assert max(clock.waits.values()) <= 10 * (turns.fair_turn_s(clock.scheduler.device, swap_s) + swap_s + 1.0)
    loads = sum(entry.loads for entry in clock.scheduler.entries.values())
    assert loads * swap_s < 0.3 * clock.now


def test_a_burst_for_several_models_swaps_once_for_each() -> None:
    clock = one_fits(2.0, "a", "b", "c")
    chance = random.Random(1)
    for number in range(180):
        clock.at(number / 1000, lambda: clock.request(chance.choice("abc")))
    clock.run_all()
    assert sum(entry.loads for entry in clock.scheduler.entries.values()) == 3
    assert len(clock.waits) == 180


def test_answers_that_end_together_do_not_swap_a_busy_model_away() -> None:
    """Eight clients in step, who ask again 10 ms after: idle for these moments, the model is kept for its turn."""
    clock = one_fits(2.0, "a", "b")

    def ask(model: str) -> None:
        if clock.now < 100:
            clock.request(model, then=lambda: clock.at(clock.now + 0.01, lambda: ask(model)))

    for model in "ab":
        for _ in range(8):
            clock.at(0.0, partial(ask, model))
    clock.run_all()
    loads = sum(entry.loads for entry in clock.scheduler.entries.values())
    assert loads * (2.0 + clock.unload_s) <= 0.25 * clock.now + 2.5


def test_a_flood_for_one_model_delays_another_by_no_more_than_promised() -> None:
    clock = one_fits(2.0, "a", "b", concurrency=4)
    for _ in range(1000):
        clock.at(0.0, lambda: clock.request("a"))
    clock.at(5.0, lambda: clock.request("b"))
    clock.run_all()
    (ticket,) = (ticket for ticket, model in clock.models_of.items() if model == "b")
    assert clock.waits[ticket] <= clock.bounds[ticket]


def test_floods_for_all_models_ahead_count_with_the_whole_of_their_turns() -> None:
    """Long answers, one at a time: their drains make fair turns long, and max_wait_s is promised to fewer."""
    clock = one_fits(1.0, *"abcde", answer_s=4.0, concurrency=1)
    for number, model in enumerate("abcd"):
        for _ in range(50):
            clock.at(number / 1000, partial(clock.request, model))
    clock.at(0.5, lambda: clock.request("e"))
    clock.run_all()
    assert broken_promises(clock) == {}
