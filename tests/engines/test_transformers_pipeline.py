"""From inputs to outputs: order, cancellation, bounds, and who goes first."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from engines.base import CLIENT_HEADER
from engines.runtime import batch_worker, pipeline
from engines.runtime.batching import BatchLimits
from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, Outputs, Rows, Source, TooLong
from engines.runtime.retrieval_service import RetrievalService
from engines.runtime.transformers_args import TransformersArgs
from engines.runtime.transformers_server import make_app
from engines.runtime.transformers_sleep import Residence
from models.errors import Busy
from tests.engines.controlled_pipeline import (
    WAIT_S,
    Characters,
    Gate,
    Model,
    computed,
    entered,
    pipeline_of,
    texts,
    waits,
)
from utils import procfs


async def test_rows_come_back_in_the_order_of_their_inputs_whatever_the_batches() -> None:
    lengths = np.random.default_rng(4).integers(1, 90, size=1000).tolist()
    gate = Gate(opened=True)
    async with pipeline_of(gate) as line:
        many, one, few = await asyncio.gather(computed(line, *lengths), computed(line, 7), computed(line, 3, 40, 1))
    assert (many, one, few) == (lengths, [7], [3, 40, 1])
    assert sorted(chain(*gate.batches)) == sorted([*lengths, 7, 3, 40, 1])


async def test_outputs_of_different_shapes_keep_their_order_and_hold_no_more_memory_than_their_own() -> None:
    def forward(batch: Sequence[Encoded]) -> Outputs:
        padded = np.full((len(batch), 100, 2), 5, dtype=np.float32)
        return [padded[place, : item.tokens] for place, item in enumerate(batch)]

    async with pipeline_of(forward) as line:
        result = await asyncio.wait_for(line.run(texts(3, 50, 20, 1, 7)), WAIT_S)
    assert [output.shape for output in result.outputs] == [(3, 2), (50, 2), (20, 2), (1, 2), (7, 2)]
    assert all(output.base is None for output in result.outputs)


async def test_requests_that_arrive_during_a_pass_share_the_next_one() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        first = asyncio.create_task(computed(line, 9))
        await entered(gate)
        others = [asyncio.create_task(computed(line, count)) for count in (5, 6, 7)]
        await waits(line, 5 + 6 + 7)
        gate.open.set()
        await asyncio.gather(first, *others)
    assert gate.batches == [[9], [7, 6, 5]]


async def test_a_request_does_not_wait_for_all_those_of_another_client() -> None:
    gate = Gate()
    model: Any = Model(gate)
    service = RetrievalService(model, "m", TransformersArgs(task="embed", device="cpu", batch_items=4))
    server = TestServer(make_app(service, Residence(None, service.between_passes)))
    async with TestClient(server) as client, asyncio.TaskGroup() as asking:

        async def ask(text: str, name: str) -> None:
            headers = {CLIENT_HEADER: name}
            answer = await client.post(
                "/v1/embeddings", json={"input": text}, headers=headers, timeout=aiohttp.ClientTimeout(WAIT_S)
            )
            assert answer.status == 200

        asking.create_task(ask("first", "indexer"))
        await entered(gate)
        for _ in range(40):
            asking.create_task(ask("x" * 9, "indexer"))
        await waits(service._pipeline, 40 * 9)
        asking.create_task(ask("x" * 9 + "y", "editor"))
        await waits(service._pipeline, 40 * 9 + 10)
        gate.open.set()
    service.close()
    assert 10 in gate.batches[1] + gate.batches[2]


async def test_a_large_request_is_being_computed_before_all_of_it_is_tokenized() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        held = threading.Event()
        encode = line._encoder.encode

        def encode_held(sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
            if sources[0] == "xx":  # not in the first chunk
                assert held.wait(WAIT_S)
            return encode(sources, options)

        line._encoder.encode = encode_held  # type: ignore[method-assign]
        request = asyncio.create_task(computed(line, *[1] * pipeline.CHUNK_TEXTS, *[2] * 10))
        await entered(gate)
        held.set()
        gate.open.set()
        await request


async def test_a_small_request_is_tokenized_before_what_waits_of_any_number_of_large_ones() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        tokenized: list[int] = []
        entered_first, held = threading.Event(), threading.Event()
        encode = line._encoder.encode

        def encode_held(sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
            entered_first.set()
            assert held.wait(WAIT_S)
            tokenized.append(len(sources[0]))
            return encode(sources, options)

        line._encoder.encode = encode_held  # type: ignore[method-assign]
        large = [asyncio.create_task(computed(line, *[length] * 2 * pipeline.CHUNK_TEXTS)) for length in (1, 2, 3)]
        large.append(asyncio.create_task(computed(line, pipeline.CHUNK_CHARACTERS + 1)))
        assert await asyncio.to_thread(entered_first.wait, WAIT_S)
        small = asyncio.create_task(computed(line, 9))
        await asyncio.sleep(0)
        held.set()
        gate.open.set()
        await asyncio.gather(small, *large)
    assert tokenized == [1, 9, 2, 3, pipeline.CHUNK_CHARACTERS + 1, 1, 2, 3]


async def test_an_input_that_is_too_long_is_named_and_what_waits_of_its_request_is_dropped() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        line._encoder.max_tokens = 20
        lengths = [1] * (pipeline.CHUNK_TEXTS + 5) + [21]
        with pytest.raises(TooLong, match=rf"documents\[{len(lengths) - 1}\] has 21 tokens.* at most 20"):
            await asyncio.wait_for(line.run(texts(*lengths), param="documents"), WAIT_S)
        gate.open.set()
        assert await computed(line, 9) == [9]
    assert gate.batches in ([[1] * 4, [9]], [[9]])


async def test_inputs_are_cut_where_the_client_asks_for_it() -> None:
    async with pipeline_of(Gate(opened=True)) as line:
        result = await asyncio.wait_for(line.run(texts(5, 30), EncodeOptions(limit=20), truncate=True), WAIT_S)
    assert (result.input_tokens.tolist(), result.tokens) == ([5, 20], 25)


async def test_a_request_without_inputs_has_no_outputs() -> None:
    async with pipeline_of(Gate()) as line:
        result = await asyncio.wait_for(line.run([]), WAIT_S)
    assert (len(result.outputs), result.tokens) == (0, 0)


async def test_a_request_cancelled_while_it_waits_never_runs() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        first = asyncio.create_task(computed(line, 9))
        await entered(gate)
        gone = asyncio.create_task(line.run(texts(5)))
        await waits(line, 5)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        await first
    assert gate.batches == [[9]]


async def test_of_a_large_request_whose_client_leaves_only_the_running_pass_is_computed() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        gone = asyncio.create_task(line.run(texts(*[16] * 500)))
        await entered(gate)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        assert await computed(line, 4) == [4]
    assert gate.batches == [[16] * 4, [4]]


async def test_beyond_the_bound_a_request_is_told_to_come_back() -> None:
    gate = Gate()
    async with pipeline_of(gate, max_waiting_tokens=20) as line:
        first = asyncio.create_task(computed(line, 9))
        await entered(gate)
        second = asyncio.create_task(computed(line, 15))
        await waits(line, 15)
        with pytest.raises(Busy) as busy:
            await line.run(texts(60))
        assert busy.value.retry_after_s
        gate.open.set()
        await asyncio.gather(first, second)
        assert await computed(line, 60) == [60]


async def test_what_is_tokenized_ahead_of_the_passes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_worker, "LOOKAHEAD_TOKENS", 200)
    gate = Gate(opened=True)
    most = 0

    def forward(batch: Sequence[Encoded]) -> Rows:
        nonlocal most
        most = max(most, line.waiting_tokens)
        return gate(batch)

    async with pipeline_of(forward) as line:
        lengths = [2] * 20 * pipeline.CHUNK_TEXTS
        assert await computed(line, *lengths) == lengths
    assert 0 < most <= 200 + 2 * pipeline.CHUNK_TEXTS


async def test_memory_that_passes_have_freed_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of many allocations stays, as what a model keeps may: the allocator alone gives back what is above."""
    monkeypatch.setattr(batch_worker, "TRIM_AFTER_S", 0.02)
    monkeypatch.setattr(batch_worker, "TRIM_AFTER_TOKENS", 0)
    kept: list[np.ndarray] = []
    sizes: list[int] = []

    def forward(batch: Sequence[Encoded]) -> Rows:
        activations = [np.ones(64 * 128, dtype=np.float64) for _ in range(2_000)]  # 64 KB each
        sizes.append(procfs.pss_bytes(os.getpid()))
        kept.append(activations[-1])
        return np.zeros((len(batch), 1), dtype=np.float32)

    async with pipeline_of(forward) as line:
        assert (await asyncio.wait_for(line.run(["a text"]), WAIT_S)).tokens == 6
        async with asyncio.timeout(WAIT_S):
            while procfs.pss_bytes(os.getpid()) > sizes[0] - 100 * 2**20:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)


async def test_memory_goes_back_when_a_request_has_ended_refused_or_not_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trimmed = threading.Event()
    early: list[bool] = []

    def trim(worker: batch_worker.BatchWorker) -> None:
        worker._untrimmed_tokens = 0
        trimmed.set()

    def encode(*_: object) -> list[Encoded]:
        early.append(trimmed.wait(0.1))
        raise TooLong("too long", param="input")

    monkeypatch.setattr(batch_worker, "TRIM_AFTER_S", 0.01)
    monkeypatch.setattr(batch_worker, "TRIM_AFTER_TOKENS", 100)
    monkeypatch.setattr(batch_worker.BatchWorker, "_trim", trim)
    async with pipeline_of(Gate(opened=True)) as line:
        await computed(line, 1000)
        assert await asyncio.to_thread(trimmed.wait, WAIT_S)
        trimmed.clear()
        monkeypatch.setattr(Characters, "encode", encode)
        with pytest.raises(TooLong):
            await line.run(texts(1000))
        assert early == [False]
        assert await asyncio.to_thread(trimmed.wait, WAIT_S)


async def test_bulk_passes_are_as_short_as_those_of_queries_while_such_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that passes move on, 1 ms for each token."""
    now_s = 1000.0
    loop = asyncio.get_running_loop()
    queries: list[asyncio.Task[list[float]]] = []
    bulk_batches: list[int] = []

    async def send_query() -> None:
        queries.append(asyncio.create_task(computed(line, 8)))
        await waits(line, line.waiting_tokens + 8)

    def forward(batch: Sequence[Encoded]) -> Rows:
        nonlocal now_s
        now_s += 0.001 * len(batch) * batch[0].tokens
        if batch[0].tokens != 8:
            if not bulk_batches:
                asyncio.run_coroutine_threadsafe(waits(line, 4 * (3000 - len(batch))), loop).result(WAIT_S)
            bulk_batches.append(len(batch))
            if len(bulk_batches) < 20:
                asyncio.run_coroutine_threadsafe(send_query(), loop).result(WAIT_S)
            if len(bulk_batches) == 25:
                now_s += batch_worker.RECENT_S
        return np.array([[item.tokens] for item in batch], dtype=np.float32)

    monkeypatch.setattr(batch_worker, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with pipeline_of(forward, limits=BatchLimits(tokens=1000, items=1000, fixed_tokens=0)) as line:
        bulk = await computed(line, *[4] * 3000)
        assert await asyncio.gather(*queries) == [[8]] * 19
    assert bulk == [4] * 3000
    assert bulk_batches[0] > 20  # before any query came
    assert set(bulk_batches[12:25]) == {2}
    assert all(100 < count <= 125 for count in bulk_batches[26:-1])  # BULK_PASS_S is 125


async def test_passes_over_many_requests_of_one_client_are_short_while_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that passes move on, 1 ms for each token."""
    now_s = 1000.0
    loop = asyncio.get_running_loop()
    queries: list[asyncio.Task[list[float]]] = []
    sizes: list[int] = []

    async def ask(client: str, tokens: int) -> list[float]:
        pipeline.CLIENT.set(client)
        return await computed(line, tokens)

    async def send_query() -> None:
        queries.append(asyncio.create_task(ask("editor", 8)))
        await waits(line, line.waiting_tokens + 8)

    def forward(batch: Sequence[Encoded]) -> Rows:
        nonlocal now_s
        now_s += 0.001 * len(batch) * batch[0].tokens
        if not sizes:
            asyncio.run_coroutine_threadsafe(waits(line, 4 * (400 - len(batch))), loop).result(WAIT_S)
        sizes.append(len(batch))
        if len(sizes) == 3:
            asyncio.run_coroutine_threadsafe(send_query(), loop).result(WAIT_S)
        if len(sizes) == 8:
            now_s += batch_worker.RECENT_S
        return np.array([[item.tokens] for item in batch], dtype=np.float32)

    monkeypatch.setattr(batch_worker, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with pipeline_of(forward, limits=BatchLimits(tokens=200, items=1000, fixed_tokens=0)) as line:
        crowd = await asyncio.gather(*(ask("indexer", 4) for _ in range(400)))
        assert await asyncio.gather(*queries) == [[8]]
    assert crowd == [[4]] * 400
    assert (sizes[1:3], set(sizes[8:10])) == ([50, 50], {50})
    assert all(size <= 5 for size in sizes[3:8])  # 20 ms


async def test_large_answers_are_bounded_together_until_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LARGE_ROWS_BYTES", 4 * 10)
    monkeypatch.setattr(pipeline, "MOST_ROWS_BYTES", 4 * 25)
    gate = Gate()
    async with pipeline_of(gate) as line:
        first = asyncio.create_task(line.run(texts(*[1] * 15)))
        await entered(gate)
        with pytest.raises(Busy, match="large answers"):  # beside one that is computed
            await line.run(texts(*[1] * 15))
        small = asyncio.create_task(computed(line, 1, 2, 3))
        gate.open.set()
        sent = memoryview((await asyncio.wait_for(first, WAIT_S)).outputs)  # type: ignore[arg-type]
        assert await small == [1, 2, 3]
        del first
        with pytest.raises(Busy, match="large answers"):  # beside one that is being sent
            await line.run(texts(*[1] * 15))
        del sent
        await line.between_passes(lambda: None)  # after which the worker holds nothing of it
        assert await computed(line, *[1] * 15) == [1] * 15
        await line.between_passes(lambda: None)
        assert await computed(line, *[1] * 50) == [1] * 50  # alone, it may be larger


async def test_work_between_passes_runs_alone() -> None:
    gate = Gate()
    async with pipeline_of(gate) as line:
        first = asyncio.create_task(computed(line, 9))
        await entered(gate)
        seen: list[int] = []
        between = asyncio.create_task(line.between_passes(lambda: seen.append(len(gate.batches))))
        second = asyncio.create_task(computed(line, 8))
        await waits(line, 8)
        gate.open.set()
        await asyncio.wait_for(asyncio.gather(first, between, second), WAIT_S)
    assert seen == [1]
