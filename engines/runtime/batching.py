"""Which waiting inputs go into the next forward pass, and the thread that runs it.

`Backlog` decides and does nothing else; `BatchWorker` owns it, behind one lock. A request small enough for one batch is
interactive, a larger one is bulk. Where both wait they take turns, so neither holds up the other: a single query waits
for at most the batch that is running and one more. Within a lane inputs of similar length go together, because a batch
costs what its longest input costs times their number.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from engines.runtime.retrieval import Encoded, Outputs, Rows
from models.errors import Busy

IDLE_WAIT_S = 60.0  # how often an idle worker looks around; it is woken at once when there is work
BUSY_RETRY_S = 1.0  # what a client is told to wait when the backlog is full
MAX_FAILURES = 3  # forward passes that failed in a row before the engine calls itself unhealthy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one forward pass may take: `tokens` counts padding, so it bounds time and activations."""

    tokens: int
    items: int

    def fits(self, count: int, longest: int) -> bool:
        return count <= self.items and count * longest <= self.tokens


class Job:
    """The inputs of one request, and the rows that they have become so far."""

    __slots__ = ("future", "items", "loop", "pending", "remaining", "rows")

    def __init__(self, items: Sequence[Encoded]) -> None:
        self.items = items
        self.pending = sorted(range(len(items)), key=lambda index: items[index].tokens, reverse=True)
        self.remaining = len(items)  # rows not computed yet, running ones included
        self.rows: Rows | None = None
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Rows] = self.loop.create_future()

    @property
    def longest(self) -> int:
        return self.items[self.pending[0]].tokens

    @property
    def waiting_tokens(self) -> int:
        return sum(self.items[index].tokens for index in self.pending)

    def store(self, index: int, row: Rows) -> None:
        if self.rows is None:
            self.rows = np.empty((len(self.items), row.shape[-1]), dtype=np.float32)
        self.rows[index] = row
        self.remaining -= 1

    def finish(self, error: Exception | None = None) -> None:
        """Tells the waiting request, from the worker's thread."""
        self.loop.call_soon_threadsafe(self._resolve, error)

    def _resolve(self, error: Exception | None) -> None:
        if self.future.done():  # the client went away meanwhile
            return
        if error is not None:
            self.future.set_exception(error)
        elif self.rows is not None:
            self.future.set_result(self.rows)


@dataclass(frozen=True, slots=True)
class Slot:
    """One input's place in a batch."""

    job: Job
    index: int

    @property
    def item(self) -> Encoded:
        return self.job.items[self.index]


class Backlog:
    """The inputs that wait. Not thread-safe; no clock, no I/O."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._interactive: dict[Job, None] = {}  # in order of arrival
        self._bulk: deque[Job] = deque()
        self._bulk_turn = False
        self.tokens = 0

    def __bool__(self) -> bool:
        return bool(self._interactive or self._bulk)

    def add(self, job: Job) -> None:
        self.tokens += job.waiting_tokens
        if self._limits.fits(len(job.items), job.longest):
            self._interactive[job] = None
        else:
            self._bulk.append(job)

    def discard(self, job: Job) -> None:
        """Forgets what of `job` is not running yet."""
        if job in self._interactive:
            del self._interactive[job]
        elif job in self._bulk:
            self._bulk.remove(job)
        else:
            return
        self.tokens -= job.waiting_tokens
        job.pending.clear()

    def next_batch(self) -> list[Slot]:
        """Takes out the inputs of the next forward pass; empty where nothing waits."""
        if self._bulk and (self._bulk_turn or not self._interactive):
            self._bulk_turn = False
            batch = self._take_bulk()
        elif self._interactive:
            self._bulk_turn = True
            batch = self._take_interactive()
        else:
            return []
        self.tokens -= sum(slot.item.tokens for slot in batch)
        return batch

    def _take_interactive(self) -> list[Slot]:
        """Of all that waits, cut by length into batches, the one with the oldest request's longest input in it."""
        oldest = next(iter(self._interactive))
        first = (oldest, oldest.pending[0])
        waiting = [Slot(job, index) for job in self._interactive for index in job.pending]
        waiting.sort(key=lambda slot: slot.item.tokens, reverse=True)
        batch: list[Slot] = []
        for slot in waiting:
            if batch and not self._limits.fits(len(batch) + 1, batch[0].item.tokens):
                if any((taken.job, taken.index) == first for taken in batch):
                    break
                batch = []
            batch.append(slot)
        self._remove_from_interactive(batch)
        return batch

    def _remove_from_interactive(self, batch: Sequence[Slot]) -> None:
        taken: dict[Job, set[int]] = {}
        for slot in batch:
            taken.setdefault(slot.job, set()).add(slot.index)
        for job, indices in taken.items():
            job.pending = [index for index in job.pending if index not in indices]
            if not job.pending:
                del self._interactive[job]

    def _take_bulk(self) -> list[Slot]:
        """The longest inputs left of the request whose turn it is; then the next request's turn."""
        job = self._bulk.popleft()
        count = 1
        while count < len(job.pending) and self._limits.fits(count + 1, job.longest):
            count += 1
        batch = [Slot(job, index) for index in job.pending[:count]]
        del job.pending[:count]
        if job.pending:
            self._bulk.append(job)
        return batch


class BatchWorker:
    """One thread that runs forward passes over whatever waits; requests that arrive meanwhile share the next one."""

    def __init__(
        self, forward: Callable[[Sequence[Encoded]], Outputs], limits: BatchLimits, max_waiting_tokens: int
    ) -> None:
        self._forward = forward
        self._backlog = Backlog(limits)
        self._max_waiting_tokens = max_waiting_tokens
        self._changed = threading.Condition()
        self._closing = False
        self._between: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._failures = 0
        self.batches = 0  # finished or failed so far
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and self._failures < MAX_FAILURES

    async def run(self, items: Sequence[Encoded]) -> Rows:
        """The rows of `items`, in their order. Cancelled, what has not begun is dropped.

        Raises Busy where too much waits already.
        """
        job = Job(items)
        with self._changed:
            if self._backlog and self._backlog.tokens + job.waiting_tokens > self._max_waiting_tokens:
                raise Busy("Too many inputs wait for this model; try again.", retry_after_s=BUSY_RETRY_S)
            self._backlog.add(job)
            self._changed.notify()
        try:
            return await job.future
        finally:
            if not job.future.done() or job.future.cancelled():
                with self._changed:
                    self._backlog.discard(job)

    async def between_passes(self, work: Callable[[], None]) -> None:
        """Runs `work` in the worker's thread, so that no forward pass runs meanwhile. Raises what it raises."""
        done: Future[None] = Future()
        with self._changed:
            self._between.append((work, done))
            self._changed.notify()
        await asyncio.wrap_future(done)

    def close(self, timeout_s: float) -> None:
        """Ends the thread after the batch that is running."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._backlog or self._between or self._closing):
                    self._changed.wait(IDLE_WAIT_S)
                if self._closing:
                    return
                between = self._between.popleft() if self._between else None
                batch = self._backlog.next_batch() if between is None else []
            if between is None:
                self._run_batch(batch)
                self.batches += 1
            else:
                _carry_out(*between)

    def _run_batch(self, batch: Sequence[Slot]) -> None:
        try:
            rows = self._forward([slot.item for slot in batch])
        except Exception as error:  # the top of this thread: a failed batch must not end the engine
            logger.exception("A forward pass over %d inputs failed", len(batch))
            self._failures += 1
            self._fail(batch, error)
            return
        self._failures = 0
        for slot, row in zip(batch, rows, strict=True):
            slot.job.store(slot.index, row)
            if slot.job.remaining == 0:
                slot.job.finish()

    def _fail(self, batch: Sequence[Slot], error: Exception) -> None:
        jobs = {slot.job for slot in batch}
        with self._changed:
            for job in jobs:
                self._backlog.discard(job)
        for job in jobs:
            job.finish(error)


def _carry_out(work: Callable[[], None], done: Future[None]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        work()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
