"""Which inputs share a forward pass, in what order, and what becomes of those whose client has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from engines.runtime.batching import Backlog, BatchLimits, BatchWorker, Job, Slot
from engines.runtime.retrieval import Encoded, Rows
from models.errors import Busy

WAIT_S = 10.0
LIMITS = BatchLimits(tokens=64, items=4)


def items(*tokens: int) -> list[Encoded]:
    return [Encoded(f"text of {count}", count) for count in tokens]


def lengths(batch: Sequence[Slot]) -> list[int]:
    return [slot.item.tokens for slot in batch]


def backlog(*jobs: Job) -> Backlog:
    result = Backlog(LIMITS)
    for job in jobs:
        result.add(job)
    return result


async def test_waiting_requests_share_a_batch() -> None:
    waiting = backlog(Job(items(5)), Job(items(7)), Job(items(6)))
    assert lengths(waiting.next_batch()) == [7, 6, 5]
    assert not waiting
    assert waiting.next_batch() == []


async def test_a_batch_never_exceeds_its_tokens_with_padding_nor_its_items() -> None:
    waiting = backlog(*(Job(items(count)) for count in (30, 1, 30, 1, 1, 1, 1)))
    seen = []
    while waiting:
        batch = waiting.next_batch()
        assert len(batch) <= LIMITS.items
        assert len(batch) * max(lengths(batch)) <= LIMITS.tokens
        seen += lengths(batch)
    assert sorted(seen) == [1, 1, 1, 1, 1, 30, 30]
    assert waiting.tokens == 0


async def test_an_input_longer_than_a_whole_batch_runs_alone() -> None:
    waiting = backlog(Job(items(500)), Job(items(3)))
    assert sorted([lengths(waiting.next_batch()), lengths(waiting.next_batch())]) == [[3], [500]]


async def test_the_oldest_request_is_in_the_next_batch_though_others_are_longer() -> None:
    oldest = Job(items(2))
    waiting = backlog(oldest, *(Job(items(16)) for _ in range(8)))
    assert oldest in {slot.job for slot in waiting.next_batch()}


async def test_a_single_query_runs_before_the_second_batch_of_a_bulk_request() -> None:
    bulk = Job(items(*[16] * 40))
    waiting = backlog(bulk)
    assert {slot.job for slot in waiting.next_batch()} == {bulk}
    single = Job(items(4))
    waiting.add(single)
    batches = [waiting.next_batch(), waiting.next_batch()]
    assert [single] in [[slot.job for slot in batch] for batch in batches]


async def test_a_bulk_request_goes_on_while_single_queries_keep_coming() -> None:
    bulk = Job(items(*[16] * 8))
    waiting = backlog(bulk)
    for _ in range(4):
        waiting.add(Job(items(4)))
        waiting.next_batch()
    assert len(bulk.pending) <= 4


async def test_bulk_requests_take_turns() -> None:
    first, second = Job(items(*[16] * 8)), Job(items(*[16] * 8))
    waiting = backlog(first, second)
    assert waiting.next_batch()[0].job is first
    assert waiting.next_batch()[0].job is second


async def test_a_discarded_request_leaves_nothing_in_the_backlog() -> None:
    jobs = [Job(items(3)), Job(items(*[16] * 9))]
    waiting = backlog(*jobs)
    for job in jobs:
        waiting.discard(job)
        waiting.discard(job)
    assert not waiting
    assert waiting.tokens == 0


class Gate:
    """A forward pass that gives each input's number of tokens, held up until opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[Encoded]) -> Rows:
        self.entered.release()
        assert self.open.wait(WAIT_S)
        self.batches.append([item.tokens for item in batch])
        return np.array([[item.tokens] for item in batch], dtype=np.float32)


@asynccontextmanager
async def worker_of(forward: Callable[[Sequence[Encoded]], Rows], max_tokens: int = 1000) -> AsyncIterator[BatchWorker]:
    worker = BatchWorker(forward, LIMITS, max_tokens)
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.close, WAIT_S)
        assert not worker.healthy


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.acquire, timeout=WAIT_S)


async def test_rows_come_back_in_the_order_of_their_inputs() -> None:
    gate = Gate()
    gate.open.set()
    async with worker_of(gate) as worker:
        tokens = [3, 40, 1, 17, 40, 2, 60]
        rows = await asyncio.wait_for(worker.run(items(*tokens)), WAIT_S)
    assert rows[:, 0].tolist() == tokens


async def test_requests_that_arrive_during_a_pass_share_the_next_one() -> None:
    gate = Gate()
    async with worker_of(gate) as worker:
        first = asyncio.create_task(worker.run(items(9)))
        await entered(gate)
        others = [asyncio.create_task(worker.run(items(count))) for count in (5, 6, 7)]
        await asyncio.sleep(0)  # lets the tasks queue their inputs
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(first, *others), WAIT_S)
    assert gate.batches == [[9], [7, 6, 5]]


async def test_a_request_cancelled_while_it_waits_never_runs() -> None:
    gate = Gate()
    async with worker_of(gate) as worker:
        first = asyncio.create_task(worker.run(items(9)))
        await entered(gate)
        gone = asyncio.create_task(worker.run(items(5)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        await asyncio.wait_for(first, WAIT_S)
    assert gate.batches == [[9]]


async def test_a_request_cancelled_while_it_runs_harms_nobody() -> None:
    gate = Gate()
    async with worker_of(gate) as worker:
        gone = asyncio.create_task(worker.run(items(9)))
        await entered(gate)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        assert (await asyncio.wait_for(worker.run(items(4)), WAIT_S)).tolist() == [[4]]


async def test_a_failed_pass_fails_its_own_requests_and_the_worker_lives_on() -> None:
    def forward(batch: Sequence[Encoded]) -> Rows:
        if batch[0].tokens == 13:
            raise RuntimeError("bad luck")
        return np.zeros((len(batch), 1), dtype=np.float32)

    async with worker_of(forward) as worker:
        with pytest.raises(RuntimeError, match="bad luck"):
            await asyncio.wait_for(worker.run(items(13)), WAIT_S)
        assert worker.healthy
        assert (await asyncio.wait_for(worker.run(items(4)), WAIT_S)).shape == (1, 1)


async def test_passes_that_fail_again_and_again_make_the_worker_unhealthy() -> None:
    def forward(_: Sequence[Encoded]) -> Rows:
        raise RuntimeError("the device is lost")

    async with worker_of(forward) as worker:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await asyncio.wait_for(worker.run(items(4)), WAIT_S)
        assert not worker.healthy


async def test_beyond_the_bound_a_request_is_told_to_come_back() -> None:
    gate = Gate()
    async with worker_of(gate, max_tokens=20) as worker:
        first = asyncio.create_task(worker.run(items(9)))
        await entered(gate)
        second = asyncio.create_task(worker.run(items(15)))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as busy:
            await worker.run(items(15))
        assert busy.value.retry_after_s
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(first, second), WAIT_S)
