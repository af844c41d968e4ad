"""What fails in a pass: one input, the memory, or the whole device."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from engines.runtime import transformers_server
from engines.runtime.pipeline import ModelFault
from engines.runtime.protocol import EngineRequest
from engines.runtime.retrieval import Encoded, Outputs, Rows, Source
from engines.runtime.transformers_args import TransformersArgs
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


async def test_an_input_that_fails_fails_its_own_request_and_no_other_of_its_batch() -> None:
    gate = Gate()

    def forward(batch: Sequence[Encoded]) -> Rows:
        rows = gate(batch)
        if 13 in rows:
            raise RuntimeError("bad luck")
        return rows

    async with pipeline_of(forward) as line:
        first = asyncio.create_task(computed(line, 9))
        await entered(gate)
        others = [asyncio.create_task(computed(line, count)) for count in (12, 13, 14)]
        await waits(line, 12 + 13 + 14)
        gate.open.set()
        answers = await asyncio.wait_for(asyncio.gather(first, *others, return_exceptions=True), WAIT_S)
        assert line.healthy
    assert [answers[0], answers[1], answers[3]] == [[9], [12], [14]]
    assert str(answers[2]) == "The model failed on input[0], of 13 tokens: RuntimeError; the engine's log says more."
    assert [14, 13, 12] in gate.batches


async def test_one_who_is_short_of_memory_learns_for_which_input_and_all_others_are_answered() -> None:
    def forward(batch: Sequence[Encoded]) -> Rows:
        if max(item.tokens for item in batch) > 40:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate …")
        return np.array([[item.tokens] for item in batch], dtype=np.float32)

    async with pipeline_of(forward) as line:
        large, small = line.run(texts(3, 50, 20), param="documents"), computed(line, *[4] * 300)
        answers = await asyncio.wait_for(asyncio.gather(large, small, return_exceptions=True), WAIT_S)
        assert (await computed(line, 7), line.healthy, line.lost.done()) == ([7], True, False)
    assert isinstance(answers[0], ModelFault)
    assert (answers[0].param, answers[1]) == ("documents", [4] * 300)
    assert str(answers[0]).startswith("The model failed on documents[1], of 50 tokens: the memory does not suffice.")


async def test_where_nothing_can_be_computed_any_more_that_is_told_and_nobody_is_answered() -> None:
    works = True

    def forward(batch: Sequence[Encoded]) -> Rows:
        if not works:
            raise RuntimeError("the device is lost")
        return np.zeros((len(batch), 1), dtype=np.float32)

    async with pipeline_of(forward) as line:
        assert await computed(line, 4) == [0]
        works = False
        requests = [asyncio.create_task(computed(line, *[4] * count)) for count in (1, 300)]
        await asyncio.wait_for(line.lost, WAIT_S)
        assert not any(request.done() for request in requests)
        assert not line.healthy
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)


async def test_an_engine_that_cannot_compute_any_more_ends_before_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        """In place of the process's end."""

    def leave(code: int) -> None:
        raise Ended(code)

    def forward(_: Sequence[Encoded]) -> Rows:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(transformers_server, "DRAIN_S", 0.01)
    ready = asyncio.Event()
    model: Any = Model(forward)
    request = EngineRequest("m", str(tmp_path / "engine"), str(tmp_path), str(tmp_path / "log"), notify=ready.set)
    serving = asyncio.create_task(
        transformers_server.serve(request, model, TransformersArgs(task="embed", device="cpu"))
    )
    await asyncio.wait_for(ready.wait(), WAIT_S)
    async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(request.uds)) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post("/v1/embeddings", json={"input": "a text"}, timeout=aiohttp.ClientTimeout(WAIT_S))
    with pytest.raises(Ended, match=str(transformers_server.EXIT_LOST)):
        await serving


@pytest.mark.parametrize("characters", [10, 5000])
async def test_a_tokenizer_that_panics_is_told_to_its_client_and_no_other(
    monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    class PanicException(BaseException):  # pyo3's name for it
        """As Rust's libraries raise it."""

    encode = Characters.encode

    def panicking(encoder: Characters, sources: Sequence[Source], *options: Any) -> list[Encoded]:
        if sources == texts(characters):
            raise PanicException("AddedVocabulary bad split")
        return encode(encoder, sources, *options)

    async with pipeline_of(lambda batch: np.zeros((len(batch), 1), dtype=np.float32)) as line:
        monkeypatch.setattr(Characters, "encode", panicking)
        with pytest.raises(ModelFault, match="tokenizer failed on a text"):
            await asyncio.wait_for(line.run(texts(characters)), WAIT_S)
        assert await computed(line, characters + 1) == [0]


async def test_outputs_that_cannot_be_kept_fail_their_request_instead_of_leaving_gaps_in_it() -> None:
    def forward(batch: Sequence[Encoded]) -> Outputs:
        return [np.ones(item.tokens, dtype=np.float32) for item in batch]

    async with pipeline_of(forward) as line:
        answers = await asyncio.wait_for(
            asyncio.gather(line.run(texts(5, 3)), line.run(texts(2)), return_exceptions=True), WAIT_S
        )
        assert (await line.run(texts(2))).tokens == 2
    assert isinstance(answers[0], ModelFault)
    assert not isinstance(answers[1], BaseException)


async def test_outputs_that_are_fewer_than_the_inputs_are_an_error() -> None:
    def forward(batch: Sequence[Encoded]) -> Outputs:
        return [np.ones(1, dtype=np.float32)] * (0 if batch[0].tokens == 4 else 1)

    async with pipeline_of(forward) as line:
        with pytest.raises(ModelFault, match="of 4 tokens: ValueError"):
            await line.run(texts(4))
