"""Which waiting inputs go into the next forward pass: decided here, and nothing else.

A request small enough for one batch is interactive, a larger one is bulk. Where both wait they take turns, so neither
holds up the other: a single query waits for at most the batch that is running and one more. Within a lane clients take
turns, so that who sends a thousand texts one by one, all at once, does not hold up others either. Inputs of similar
length go together, because a batch costs what its longest input costs times their number.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from engines.runtime.retrieval import Encoded, Outputs, Rows
from utils.turns import Turns

# What a forward pass costs beside its tokens, in tokens. On 2 CPU cores, all-MiniLM-L6-v2: 22 with torch, 26 with
# OpenVINO; larger models have a smaller share. A GPU is launching kernels for some ms meanwhile.
FIXED_TOKENS = {"cpu": 24, "cuda": 2048}
CANDIDATE_BATCHES = 8  # as many batches' worth of the next interactive inputs are looked at for the next one


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one forward pass may take: `tokens` counts padding, so it bounds time and activations.

    `fixed_tokens` is what a pass costs beside its tokens, in tokens: as much padding is worth a pass less.
    """

    tokens: int
    items: int
    fixed_tokens: int

    def fits(self, count: int, longest: int) -> bool:
        return count <= self.items and count * longest <= self.tokens


class Job:
    """One request's inputs: those that wait for their pass, and the outputs that they have become so far.

    Made in the event loop that waits for it; inputs may come in several parts.
    """

    def __init__(self, total: int, expected_tokens: int = 0, client: str = "") -> None:
        self.total = total
        self.client = client
        self.interactive = False
        self.failed = False
        self.pending: list[tuple[int, int, Encoded]] = []  # a heap: -tokens, index, input; the longest comes first
        self.added = 0
        self.waiting_tokens = 0  # of those pending
        self.guessed_tokens = expected_tokens  # of all inputs, before any was tokenized
        self.expected_tokens = expected_tokens  # a guess at those of the inputs that are still to come
        self.input_tokens = np.zeros(total, dtype=np.int64)
        self.stalled = False  # whoever adds inputs waits for `room`
        self.room = asyncio.Event()
        self.future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(_retrieve)
        self._stored = bytearray(total)  # 1 for each input whose output is there
        self._missing = total
        self._rows: Rows | None = None
        self._arrays: list[NDArray[np.float32] | None] = []

    def add(self, items: Sequence[Encoded]) -> None:
        for index, item in enumerate(items, self.added):
            heapq.heappush(self.pending, (-item.tokens, index, item))
            self.input_tokens[index] = item.tokens
            self.waiting_tokens += item.tokens
        self.expected_tokens -= self.expected_tokens * len(items) // max(self.total - self.added, 1)
        self.added += len(items)

    @property
    def longest(self) -> int:
        return -self.pending[0][0]

    def take_longest(self) -> Slot:
        _, index, item = heapq.heappop(self.pending)
        self.waiting_tokens -= item.tokens
        return Slot(self, index, item)

    def take(self, indices: set[int]) -> None:
        kept = []
        for entry in self.pending:
            if entry[1] in indices:
                self.waiting_tokens += entry[0]
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self.pending = kept

    def drop_pending(self) -> None:
        self.pending.clear()
        self.waiting_tokens = self.expected_tokens = 0

    def store(self, index: int, output: NDArray[np.float32]) -> bool:
        """True with the last of this request's outputs. Rows of one width go into one array.

        May be called again for the same input, where the rest of its batch failed.
        """
        if output.ndim == 1:
            if self._rows is None:
                self._rows = np.empty((self.total, output.shape[0]), dtype=np.float32)
            self._rows[index] = output
        else:
            if not self._arrays:
                self._arrays = [None] * self.total
            self._arrays[index] = output.copy()  # not a view, which would keep the whole padded batch
        self._missing -= not self._stored[index]
        self._stored[index] = 1
        return self._missing == 0

    def resolve(self, error: Exception | None = None) -> None:
        """Tells the waiting request. In its event loop."""
        self.room.set()
        if self.future.done():  # the client went away meanwhile
            return
        if error is not None:
            self.future.set_exception(error)
        elif self._rows is not None:
            self.future.set_result(self._rows)
        else:
            self.future.set_result([array for array in self._arrays if array is not None])


def _retrieve(future: asyncio.Future[Outputs]) -> None:
    """Says that an error was seen: a request may have failed otherwise before it learns of this one."""
    if not future.cancelled():
        future.exception()


@dataclass(frozen=True, slots=True)
class Slot:
    """One input's place in a batch."""

    job: Job
    index: int
    item: Encoded


class Backlog:
    """The inputs that wait. Not thread-safe; no clock, no I/O."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._interactive: Turns[Job] = Turns()
        self._bulk: Turns[Job] = Turns()
        self._bulk_turn = False
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._interactive or self._bulk)

    @property
    def has_bulk(self) -> bool:
        return bool(self._bulk)

    def add(self, job: Job, items: Sequence[Encoded]) -> None:
        """More inputs of `job`, in their order. Those that do not come all at once are bulk."""
        before, waits = job.waiting_tokens, bool(job.pending)
        job.add(items)
        self.tokens += job.waiting_tokens - before
        job.interactive = len(items) == job.total and self._limits.fits(len(items), job.longest)
        if job.interactive:
            self._interactive.add(job.client, job)
        elif not waits:
            self._bulk.add(job.client, job)

    def discard(self, job: Job) -> None:
        """Forgets what of `job` is not running yet."""
        (self._interactive if job.interactive else self._bulk).remove(job.client, job)
        self.tokens -= job.waiting_tokens
        job.drop_pending()

    def is_crowded(self, client: str) -> bool:
        """Whether another client has small requests for more than one pass."""
        return any(
            any(total > self._limits.tokens for total in accumulate(job.waiting_tokens for job in jobs))
            for jobs in self._interactive.of_others(client)
        )

    def next_batch(self, bulk_tokens: int, interactive_tokens: int) -> list[Slot]:
        """Takes out the inputs of the next forward pass, where they are several not more than so many tokens of bulk
        or of interactive work; empty where nothing waits."""
        if self._bulk and (self._bulk_turn or not self._interactive):
            self._bulk_turn = False
            batch = self._take_bulk(bulk_tokens)
        elif self._interactive:
            self._bulk_turn = True
            batch = self._take_interactive(interactive_tokens)
        else:
            return []
        self.tokens -= sum(slot.item.tokens for slot in batch)
        return batch

    def _take_interactive(self, tokens: int) -> list[Slot]:
        """Of what is next, cut by length into batches, the one with the longest input of the first request."""
        limits = replace(self._limits, tokens=min(tokens, self._limits.tokens))
        due = next(iter(self._interactive))
        first = due.pending[0][1]
        waiting = sorted(self._candidates(), key=lambda slot: slot.item.tokens, reverse=True)
        batch: list[Slot] = []
        wasted = 0
        for slot in waiting:
            if batch:
                longest = batch[0].item.tokens
                wasted += longest - slot.item.tokens
                if wasted > limits.fixed_tokens or not limits.fits(len(batch) + 1, longest):
                    if any(taken.job is due and taken.index == first for taken in batch):
                        break
                    batch, wasted = [], 0
            batch.append(slot)
        self._interactive.end_turn(due.client)
        self._remove_from_interactive(batch)
        return batch

    def _candidates(self) -> Iterator[Slot]:
        """The interactive inputs, those first whose turn it is, as many as are worth sorting."""
        count = tokens = 0
        for job in self._interactive:
            for _, index, item in job.pending:
                yield Slot(job, index, item)
                tokens += item.tokens
                count += 1
            if tokens > CANDIDATE_BATCHES * self._limits.tokens or count > CANDIDATE_BATCHES * self._limits.items:
                return

    def _remove_from_interactive(self, batch: Sequence[Slot]) -> None:
        taken: dict[Job, set[int]] = {}
        for slot in batch:
            taken.setdefault(slot.job, set()).add(slot.index)
        for job, indices in taken.items():
            job.take(indices)
            if not job.pending:
                self._interactive.remove(job.client, job)

    def _take_bulk(self, tokens: int) -> list[Slot]:
        """The longest inputs left of the request whose turn it is; then it is the turn of its client's next request,
        once the other clients had theirs."""
        job = next(iter(self._bulk))
        self._bulk.end_turn(job.client)
        self._bulk.remove(job.client, job)
        longest = job.longest
        batch = [job.take_longest()]
        while job.pending:
            count = len(batch) + 1
            if count * longest > tokens or not self._limits.fits(count, longest):
                break
            batch.append(job.take_longest())
        if job.pending:
            self._bulk.add(job.client, job)
        return batch
