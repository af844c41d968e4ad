"""From the inputs of a request to its outputs: tokenized in chunks by one thread, computed in batches by another."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engines.runtime.batch_worker import BatchWorker, PassFailed
from engines.runtime.batching import BatchLimits
from engines.runtime.retrieval import (
    WHOLE,
    EncodeOptions,
    InvalidRequest,
    Outputs,
    RetrievalModel,
    Rows,
    Source,
    encode_within,
)
from models.errors import Busy, RoundhouseError
from models.types import Task

CHUNK_TEXTS = 64  # of one turn of the tokenizer thread: a few ms
CHUNK_CHARACTERS = 16_384
INLINE_CHARACTERS = 2_048  # tokenized in less time than it takes to hand them to a thread and back
CHARACTERS_PER_TOKEN = 4  # a guess, good enough to tell how much waits before it is tokenized
LARGE_ROWS_BYTES = 1 << 20  # smaller answers are not counted among those
MOST_ROWS_BYTES = 2 << 30  # of the answers that are computed and sent; 70 with 10,000 rows of 768 numbers
BUSY_RETRY_S = 5.0
PROBE_TEXT = "a"
CLOSE_S = 30.0  # for the forward pass that is running at the end

CLIENT: ContextVar[str] = ContextVar("client", default="")  # whose request runs; clients take turns

T = TypeVar("T")
S = TypeVar("S", bound=Source)

logger = logging.getLogger(__name__)


class ModelFault(RoundhouseError):
    """The fault is in the model, not in the request."""

    code = "model_fault"


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One output for each input, in their order, and how many tokens each input had."""

    outputs: Outputs
    input_tokens: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.input_tokens.sum())


class Pipeline:
    """One model's threads. Made inside a running event loop, and used from it."""

    def __init__(self, model: RetrievalModel, limits: BatchLimits, max_waiting_tokens: int) -> None:
        self._encoder = model.encoder
        text: Source = (PROBE_TEXT, PROBE_TEXT) if model.task is Task.RERANK else PROBE_TEXT
        probe = model.encoder.encode([text], EncodeOptions(side="document"))
        self._worker = BatchWorker(model.forward, probe, limits, max_waiting_tokens)
        self._tokenizer = model.encoder.lock
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._tokenizing.submit(bool).result()  # starts its thread now: later there may be no memory for one
        self._large_turn = asyncio.Lock()  # in order of arrival
        self._row_bytes = 4 * model.width if model.kind == "dense" else 0
        self._computing_bytes = 0  # of large answers
        self._large_rows: list[weakref.ref[Rows]] = []  # of answers that may still be on their way

    @property
    def healthy(self) -> bool:
        return self._worker.healthy

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when nothing can be computed any more. Whoever waits then waits for ever."""
        return self._worker.lost

    @property
    def batches(self) -> int:
        """Forward passes so far, failed ones included."""
        return self._worker.batches

    @property
    def waiting_tokens(self) -> int:
        """Tokens of inputs whose pass has not begun."""
        return self._worker.waiting_tokens

    async def run(
        self,
        sources: Sequence[Source],
        options: EncodeOptions = WHOLE,
        *,
        truncate: bool = False,
        param: str = "input",
        most_tokens: int | None = None,
    ) -> Result:
        """The outputs of `sources`, in their order. Cancelled, what has not begun is dropped.

        An input of more tokens than `options.limit` (None: than the model takes) is cut with `truncate`, else refused.
        `most_tokens` bounds what all inputs have together. Raises TooLong or InvalidRequest naming `param`, Busy where
        too much waits already, and ModelFault for an input that the model fails on.
        """
        if not sources:
            return Result(np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.int64))
        with self._room_for_rows(len(sources) * self._row_bytes):
            return await self._run(sources, options, truncate, param, most_tokens)

    async def _run(
        self, sources: Sequence[Source], options: EncodeOptions, truncate: bool, param: str, most_tokens: int | None
    ) -> Result:
        expected_tokens = sum(map(characters_of, sources)) // CHARACTERS_PER_TOKEN
        job = self._worker.open(len(sources), expected_tokens, CLIENT.get())
        try:
            for start, chunk, characters in chunks(sources):
                encode = partial(
                    encode_within, self._encoder, chunk, options, param, truncate=truncate, first_index=start
                )
                part = len(chunk) < len(sources)
                await self._worker.add(job, await self.tokenizer_call(encode, characters, part=part))
                if most_tokens is not None and job.input_tokens.sum() > most_tokens:
                    raise InvalidRequest(
                        f"{param} has more than {most_tokens} tokens in all, each of which would get a vector. Send it "
                        "in several requests.",
                        param=param,
                    )
                if job.future.done():  # failed
                    break
            outputs = await job.future
            if isinstance(outputs, np.ndarray) and outputs.nbytes >= LARGE_ROWS_BYTES:
                self._large_rows.append(weakref.ref(outputs))
            return Result(outputs, job.input_tokens)
        except PassFailed as error:
            raise _fault(error, param) from error
        finally:
            self._worker.discard(job)

    @contextmanager
    def _room_for_rows(self, size_bytes: int) -> Iterator[None]:
        """Around what computes so many bytes of rows. Raises Busy where those of others leave no room."""
        if size_bytes < LARGE_ROWS_BYTES:
            yield
            return
        alive = [(each, rows.nbytes) for each in self._large_rows if (rows := each()) is not None]
        self._large_rows = [each for each, _ in alive]
        others_bytes = self._computing_bytes + sum(nbytes for _, nbytes in alive)
        if others_bytes and others_bytes + size_bytes > MOST_ROWS_BYTES:
            raise Busy("Too many large answers of this model are on their way; try again.", retry_after_s=BUSY_RETRY_S)
        self._computing_bytes += size_bytes
        try:
            yield
        finally:
            self._computing_bytes -= size_bytes

    async def tokenizer_call(self, call: Callable[[], T], characters: int, *, part: bool = False) -> T:
        """What `call` returns, which tokenizes so many characters; nothing else uses the tokenizer meanwhile.

        A few are tokenized at once where the tokenizer is free. Of large requests (one of them: `part`) a single chunk
        waits in the thread's queue, so that a small request waits for that one only, however many of them there are.
        """
        if part or characters > CHUNK_CHARACTERS:
            async with self._large_turn:
                return await self._in_thread(call)
        if characters <= INLINE_CHARACTERS and self._tokenizer.acquire(blocking=False):
            try:
                return _guarded(call)
            finally:
                self._tokenizer.release()
        return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._alone, call)

    def _alone(self, call: Callable[[], T]) -> T:
        with self._tokenizer:
            return _guarded(call)

    async def between_passes(self, work: Callable[[], None]) -> None:
        """Runs `work` while no forward pass runs. Raises what it raises."""
        await self._worker.between_passes(work)

    def close(self) -> None:
        self._tokenizing.shutdown(cancel_futures=True)
        self._worker.close(CLOSE_S)


def _guarded(call: Callable[[], T]) -> T:
    """What `call` returns. Raises ModelFault where tokenizers panics, which is no Exception: nobody would answer."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which cannot be imported
            raise
        logger.exception("The tokenizer failed")
        raise ModelFault(
            "The model's tokenizer failed on a text of this request; the engine's log says more."
        ) from error


def _fault(error: PassFailed, param: str) -> ModelFault:
    cause = error.__cause__
    why = f"{type(cause).__name__}; the engine's log says more"
    if is_out_of_memory(cause):
        why = "the memory does not suffice. Send shorter inputs, or leave more memory free for this model"
    return ModelFault(f"The model failed on {param}[{error.index}], of {error.tokens} tokens: {why}.", param=param)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Of the host or the device; each library has its own words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("can't allocate memory", "bad_alloc", "failed to allocate memory"))


def chunks(sources: Sequence[S]) -> Iterator[tuple[int, Sequence[S], int]]:
    """Runs of `sources`, small enough for one turn of the tokenizer thread: the index of their first, they themselves,
    and how many characters they have."""
    start = size = 0
    for index, source in enumerate(sources):
        length = characters_of(source)
        if index > start and (index - start == CHUNK_TEXTS or size + length > CHUNK_CHARACTERS):
            yield start, sources[start:index], size
            start, size = index, 0
        size += length
    yield start, sources[start:], size


def characters_of(source: Source) -> int:
    """Those of a text or a pair; of token ids, as many as would make them."""
    if isinstance(source, list):
        return len(source) * CHARACTERS_PER_TOKEN
    return sum(map(len, source)) if isinstance(source, tuple) else len(source)
