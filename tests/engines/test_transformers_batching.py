"""Which inputs share a forward pass, and in what order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engines.runtime.batching import Backlog, BatchLimits, Job, Slot
from engines.runtime.pass_cost import PassCost
from engines.runtime.retrieval import Encoded

LIMITS = BatchLimits(tokens=64, items=4, fixed_tokens=64)
FULL = 64


def items(*tokens: int) -> list[Encoded]:
    return [Encoded(f"text of {count}", count) for count in tokens]


def add(waiting: Backlog, *tokens: int, client: str = "") -> Job:
    """A request whose inputs all come at once."""
    job = Job(len(tokens), client=client)
    waiting.add(job, items(*tokens))
    return job


def lengths(batch: Sequence[Slot]) -> list[int]:
    return [slot.item.tokens for slot in batch]


@pytest.fixture
async def waiting() -> Backlog:
    return Backlog(LIMITS)


async def test_waiting_requests_share_a_batch(waiting: Backlog) -> None:
    for count in (5, 7, 6):
        add(waiting, count)
    assert lengths(waiting.next_batch(FULL, FULL)) == [7, 6, 5]
    assert not waiting
    assert waiting.next_batch(FULL, FULL) == []


async def test_a_batch_never_exceeds_its_tokens_with_padding_nor_its_items(waiting: Backlog) -> None:
    for count in (30, 1, 30, 1, 1, 1, 1):
        add(waiting, count)
    seen = []
    while waiting:
        batch = waiting.next_batch(FULL, FULL)
        assert len(batch) <= LIMITS.items
        assert len(batch) * max(lengths(batch)) <= LIMITS.tokens
        seen += lengths(batch)
    assert sorted(seen) == [1, 1, 1, 1, 1, 30, 30]
    assert waiting.tokens == 0


async def test_an_input_longer_than_a_whole_batch_runs_alone(waiting: Backlog) -> None:
    add(waiting, 500)
    add(waiting, 3)
    assert sorted([lengths(waiting.next_batch(FULL, FULL)), lengths(waiting.next_batch(FULL, FULL))]) == [[3], [500]]


async def test_the_oldest_request_is_in_the_next_batch_though_others_are_longer(waiting: Backlog) -> None:
    oldest = add(waiting, 2)
    for _ in range(8):
        add(waiting, 16)
    assert oldest in {slot.job for slot in waiting.next_batch(FULL, FULL)}


async def test_padding_that_costs_more_than_a_pass_is_not_computed() -> None:
    waiting = Backlog(BatchLimits(tokens=64, items=4, fixed_tokens=5))
    for count in (16, 15, 3, 2):
        add(waiting, count)
    assert [lengths(waiting.next_batch(FULL, FULL)) for _ in range(2)] == [[16, 15], [3, 2]]


async def test_a_single_query_runs_before_the_second_batch_of_a_bulk_request(waiting: Backlog) -> None:
    bulk = add(waiting, *[16] * 40)
    assert {slot.job for slot in waiting.next_batch(FULL, FULL)} == {bulk}
    single = add(waiting, 4)
    batches = [waiting.next_batch(FULL, FULL), waiting.next_batch(FULL, FULL)]
    assert [single] in [[slot.job for slot in batch] for batch in batches]


async def test_a_bulk_request_goes_on_while_single_queries_keep_coming(waiting: Backlog) -> None:
    bulk = add(waiting, *[16] * 8)
    for _ in range(4):
        add(waiting, 4)
        waiting.next_batch(FULL, FULL)
    assert len(bulk.pending) <= 4


async def test_bulk_requests_take_turns(waiting: Backlog) -> None:
    first, second = add(waiting, *[16] * 8), add(waiting, *[16] * 8)
    assert waiting.next_batch(FULL, FULL)[0].job is first
    assert waiting.next_batch(FULL, FULL)[0].job is second


async def test_a_client_with_many_requests_holds_up_no_other_whether_they_are_small_or_large(waiting: Backlog) -> None:
    for size in (1, 8):
        many = [add(waiting, *[16] * size, client="indexer") for _ in range(20)]
        few = [add(waiting, *[16] * size, client=name) for name in ("editor", "chat")]
        firsts = [{slot.job for slot in waiting.next_batch(FULL, FULL)} for _ in range(3)]
        assert many[0] in firsts[0]
        assert set(few) <= set().union(*firsts)
        while waiting:
            waiting.next_batch(FULL, FULL)
        assert not any(job.pending for job in (*many, *few))


async def test_who_has_requests_for_more_than_a_pass_is_a_crowd_to_others(waiting: Backlog) -> None:
    for count, crowded in ((4, False), (1, True)):
        for _ in range(count):
            add(waiting, 16, client="indexer")
        assert (waiting.is_crowded("editor"), waiting.is_crowded("indexer")) == (crowded, False)
    assert lengths(waiting.next_batch(FULL, 33)) == [16, 16]


async def test_large_requests_of_one_client_take_turns_too_while_another_has_one(waiting: Backlog) -> None:
    names = {add(waiting, *[16] * 8, client=name[0]): name for name in ("a1", "a2", "b1")}
    assert [names[waiting.next_batch(FULL, FULL)[0].job] for _ in range(6)] == ["a1", "b1", "a2", "b1", "a1", "a2"]


async def test_a_bulk_batch_is_as_small_as_it_is_asked_to_be(waiting: Backlog) -> None:
    add(waiting, *[16] * 8)
    assert lengths(waiting.next_batch(33, FULL)) == [16, 16]
    assert lengths(waiting.next_batch(1, FULL)) == [16]


async def test_inputs_of_one_request_may_come_in_parts_the_longest_first(waiting: Backlog) -> None:
    job = Job(7)
    waiting.add(job, items(16, 3))
    assert lengths(waiting.next_batch(FULL, FULL)) == [16, 3]
    assert not waiting
    waiting.add(job, items(5, 6))
    waiting.add(job, items(7, 2, 9))
    batches = [waiting.next_batch(FULL, FULL), waiting.next_batch(FULL, FULL)]
    assert [lengths(batch) for batch in batches] == [[9, 7, 6, 5], [2]]
    assert [slot.index for batch in batches for slot in batch] == [6, 4, 3, 2, 5]
    assert not waiting
    assert waiting.tokens == 0


async def test_a_discarded_request_leaves_nothing_in_the_backlog(waiting: Backlog) -> None:
    running = add(waiting, 3)
    waiting.next_batch(FULL, FULL)
    for job in (running, add(waiting, 3), add(waiting, *[16] * 9)):
        waiting.discard(job)
        waiting.discard(job)
    assert not waiting
    assert waiting.tokens == 0


def test_how_long_a_pass_takes_is_learned_from_those_before_it() -> None:
    cost = PassCost(fixed_tokens=20)
    assert cost.tokens_within(0.024, most=512) == 512
    for tokens in (10, 200, 60, 400, 30, 120):
        cost.observe(tokens, 0.0002 * (tokens + 20))
    assert cost.tokens_within(0.024, most=512) == pytest.approx(100, abs=1)
    assert (cost.tokens_within(0.001, most=512), cost.tokens_within(1.0, most=512)) == (1, 512)


def test_one_pass_held_up_by_the_machine_hardly_changes_what_is_expected_of_others() -> None:
    cost = PassCost(fixed_tokens=0)
    for tokens in (10, 200, 60, 400, 30, 120) * 5:
        cost.observe(tokens, tokens * 0.0002)
    cost.observe(100, 60.0)
    assert 80 < cost.tokens_within(0.02, most=512) <= 100
