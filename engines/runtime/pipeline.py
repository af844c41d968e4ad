"""From the inputs of a request to its outputs: tokenized in chunks by one thread, computed in batches by another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from engines.runtime.batching import BatchLimits, BatchWorker
from engines.runtime.retrieval import WHOLE, Encoded, EncodeOptions, Outputs, RetrievalModel, Source, encode_within

CHUNK_TEXTS = 256  # of one turn of the tokenizer thread: about 10 ms
CHUNK_CHARACTERS = 262_144
CLOSE_S = 30.0  # for the forward pass that is running at the end

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One output for each input, in their order, and how many tokens each input had."""

    outputs: Outputs
    input_tokens: Sequence[int]

    @property
    def tokens(self) -> int:
        return sum(self.input_tokens)


class Pipeline:
    """One model's threads. Made inside a running event loop, and used from it."""

    def __init__(self, model: RetrievalModel, limits: BatchLimits, max_waiting_tokens: int) -> None:
        self._encoder = model.encoder
        self._worker = BatchWorker(model.forward, limits, max_waiting_tokens)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    @property
    def healthy(self) -> bool:
        return self._worker.healthy

    @property
    def batches(self) -> int:
        """Forward passes so far, failed ones included."""
        return self._worker.batches

    async def run(
        self, sources: Sequence[Source], options: EncodeOptions = WHOLE, *, truncate: bool = False, param: str = "input"
    ) -> Result:
        """The outputs of `sources`, in their order. Cancelled, what has not begun is dropped.

        An input of more tokens than `options.limit` (None: than the model takes) is cut with `truncate`, else refused.
        Raises TooLong or InvalidRequest naming `param`, and Busy where too much waits already.
        """
        encoded: list[Encoded] = []
        for start, chunk in _chunks(sources):
            encoded += await self.tokenizer_call(
                lambda start=start, chunk=chunk: encode_within(  # type: ignore[misc]  # bound now, not when it runs
                    self._encoder, chunk, options, param, truncate=truncate, first_index=start
                )
            )
        return Result(await self._worker.run(encoded), [item.tokens for item in encoded])

    async def tokenizer_call(self, call: Callable[[], T]) -> T:
        """What `call` returns; nothing else uses the tokenizer meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, call)

    async def between_passes(self, work: Callable[[], None]) -> None:
        """Runs `work` while no forward pass runs. Raises what it raises."""
        await self._worker.between_passes(work)

    def close(self) -> None:
        self._tokenizing.shutdown(cancel_futures=True)
        self._worker.close(CLOSE_S)


def _chunks(sources: Sequence[Source]) -> Iterator[tuple[int, Sequence[Source]]]:
    """Runs of `sources`, small enough for one turn of the tokenizer thread, with the index of their first."""
    start = size = 0
    for index, source in enumerate(sources):
        length = sum(map(len, source)) if isinstance(source, tuple) else len(source)
        if index > start and (index - start == CHUNK_TEXTS or size + length > CHUNK_CHARACTERS):
            yield start, sources[start:index]
            start, size = index, 0
        size += length
    yield start, sources[start:]
