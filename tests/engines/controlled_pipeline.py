"""A pipeline around a model that a test controls: each character is a token, and each pass waits to be let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from engines.runtime.batching import BatchLimits
from engines.runtime.pipeline import Pipeline
from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, Outputs, Rows, Source
from models.types import Task

WAIT_S = 10.0
LIMITS = BatchLimits(tokens=64, items=4, fixed_tokens=64)


class Characters:
    """An encoder for which each character is a token."""

    max_tokens = 1_000_000
    splits_at_spaces = False

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def encode(self, sources: Sequence[Source], options: EncodeOptions = WHOLE) -> list[Encoded]:
        return [Encoded(source, len(source[: options.limit])) for source in sources]

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Any]:
        return {}


class Gate:
    """A forward pass that gives each input's number of tokens, held up until opened."""

    def __init__(self, opened: bool = False) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.batches: list[list[int]] = []
        if opened:
            self.open.set()

    def __call__(self, batch: Sequence[Encoded]) -> Rows:
        self.entered.release()
        assert self.open.wait(WAIT_S)
        self.batches.append([item.tokens for item in batch])
        return np.array([[item.tokens] for item in batch], dtype=np.float32)


class Model:
    task = Task.EMBED
    kind, width = "dense", 1
    prompts: Mapping[str, str] = {}
    weights = None

    def __init__(self, forward: Callable[[Sequence[Encoded]], Outputs]) -> None:
        self.encoder = Characters()
        self.forward = forward


@asynccontextmanager
async def pipeline_of(
    forward: Callable[[Sequence[Encoded]], Outputs], max_waiting_tokens: int = 10**6, limits: BatchLimits = LIMITS
) -> AsyncIterator[Pipeline]:
    line = Pipeline(Model(forward), limits, max_waiting_tokens)
    try:
        yield line
    finally:
        await asyncio.to_thread(line.close)
        assert not line.healthy


def texts(*lengths: int) -> list[Source]:
    return ["x" * length for length in lengths]


async def computed(line: Pipeline, *lengths: int) -> list[float]:
    result = await asyncio.wait_for(line.run(texts(*lengths)), WAIT_S)
    assert isinstance(result.outputs, np.ndarray)
    assert result.input_tokens.tolist() == list(lengths)
    return result.outputs[:, 0].tolist()


async def waits(line: Pipeline, tokens: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while line.waiting_tokens < tokens:  # noqa: ASYNC110  # lets the tasks go on that queue their inputs
            await asyncio.sleep(0)


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.acquire, timeout=WAIT_S)
