"""The thread that runs forward passes over whatever waits; requests that arrive meanwhile share the next one.

A bulk pass is as long as is worth its while where no interactive requests come, and short where they do: about as long
as one of theirs, so that a query which arrives during one waits for no more than it takes itself. Interactive passes
are short, too, where others come upon the many small requests of a client.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from engines.runtime.batching import Backlog, BatchLimits, Job, Slot
from engines.runtime.pass_cost import PassCost
from engines.runtime.retrieval import Encoded, Outputs
from models.errors import Busy

IDLE_WAIT_S = 60.0  # how often an idle worker looks around; it is woken at once when there is work
BUSY_RETRY_S = 1.0  # what a client is told to wait when the backlog is full
# Of bulk work with nobody else there: for slow models. Where the machine is busy, passes bounded to 0.1 s got ever
# smaller and took half as much CPU time again for each text.
BULK_PASS_S = 0.5
RECENT_S = 2.0  # after an interactive request came upon bulk work, bulk passes stay short for so long
SHORT_PASS_S = (0.004, 0.02)  # bounds of a short bulk pass
SMOOTHING = 0.2  # weight of the last interactive pass in their mean duration
LOOKAHEAD_TOKENS = 4_000_000  # of one request, tokenized and waiting: 16 MB
TRIM_AFTER_S = 1.0  # of idleness
TRIM_AFTER_TOKENS = 50_000  # of requests that ended since the last time, by their characters; fewer leave little

logger = logging.getLogger(__name__)


class PassFailed(Exception):
    """The forward pass of one input alone failed, for the reason that is this error's cause."""

    def __init__(self, index: int, tokens: int) -> None:
        super().__init__(f"the pass over input {index} of {tokens} tokens failed")
        self.index = index
        self.tokens = tokens


class BatchWorker:
    """Owns the backlog, behind one lock. Jobs are made, filled and waited for in one event loop.

    `probe` can always be computed. When it cannot any more, as on a device that was lost, `lost` gets a result, the
    thread ends, and nobody is answered: a fresh engine can do that.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Encoded]], Outputs],
        probe: Sequence[Encoded],
        limits: BatchLimits,
        max_waiting_tokens: int,
    ) -> None:
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._forward = forward
        self._limits = limits
        self._backlog = Backlog(limits)
        self._expected_tokens = 0  # of inputs that are still to be added
        self._max_waiting_tokens = max_waiting_tokens
        self._changed = threading.Condition()
        self._closing = False
        self._between: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._cost = PassCost(limits.fixed_tokens)
        self._interactive_pass_s = SHORT_PASS_S[1]
        self._interactive_until_s = 0.0  # monotonic; bulk passes are short until then
        self._crowded_until_s = 0.0  # likewise; interactive passes are, too
        self._untrimmed_tokens = 0
        self.batches = 0  # finished or failed so far
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive() and not self.lost.done()

    @property
    def waiting_tokens(self) -> int:
        return self._backlog.tokens

    def open(self, total: int, expected_tokens: int, client: str = "") -> Job:
        """A job of `total` inputs, to be added. Raises Busy where too much waits already."""
        job = Job(total, expected_tokens, client)
        with self._changed:
            waiting = self._backlog.tokens + self._expected_tokens
            if waiting and waiting + expected_tokens > self._max_waiting_tokens:
                raise Busy("Too many inputs wait for this model; try again.", retry_after_s=BUSY_RETRY_S)
            self._expected_tokens += expected_tokens
        return job

    async def add(self, job: Job, items: Sequence[Encoded]) -> None:
        """Adds inputs; returns when there is room for more of the same request."""
        with self._changed:
            if job.failed:
                return
            self._expected_tokens -= job.expected_tokens
            self._backlog.add(job, items)
            self._expected_tokens += job.expected_tokens
            if job.interactive:
                self._note_who_waits(job)
            job.stalled = job.waiting_tokens > LOOKAHEAD_TOKENS
            if job.stalled:
                job.room.clear()
            self._changed.notify()
        if job.stalled and not job.future.done():
            await job.room.wait()

    def _note_who_waits(self, job: Job) -> None:
        """An interactive one that came upon others' work makes passes of that short for a while."""
        if self._backlog.has_bulk:
            self._interactive_until_s = time.monotonic() + RECENT_S
        if self._backlog.is_crowded(job.client):
            self._crowded_until_s = time.monotonic() + RECENT_S

    def discard(self, job: Job) -> None:
        """Drops what of `job` is not running yet; nobody waits for it any more. Call it once for each job."""
        with self._changed:
            self._expected_tokens -= job.expected_tokens
            self._backlog.discard(job)
            self._untrimmed_tokens += job.guessed_tokens
            if self._untrimmed_tokens > TRIM_AFTER_TOKENS:
                self._changed.notify()
        job.future.cancel()

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
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Waits, and does one thing. False where it was the last. What it leaves behind would keep answers in memory
        for as long as nothing is asked, so its variables end with it."""
        with self._changed:
            self._wait()
            if self._closing:
                return False
            between = self._between.popleft() if self._between else None
            batch = self._next_batch() if between is None else []
        if between is not None:
            _carry_out(*between)
        elif not batch:
            self._trim()
        elif not self._run_batch(batch):
            self._loop.call_soon_threadsafe(self.lost.set_result, None)
            return False
        return True

    def _wait(self) -> None:
        """Until there is something to do; memory to give back is something, after a while."""
        while not (self._backlog or self._between or self._closing):
            trims = self._untrimmed_tokens > TRIM_AFTER_TOKENS
            if not self._changed.wait(TRIM_AFTER_S if trims else IDLE_WAIT_S) and trims:
                return

    def _next_batch(self) -> list[Slot]:
        low_s, high_s = SHORT_PASS_S
        now, most = time.monotonic(), self._limits.tokens
        short = self._cost.tokens_within(min(max(self._interactive_pass_s, low_s), high_s), most)
        batch = self._backlog.next_batch(
            short if now < self._interactive_until_s else self._cost.tokens_within(BULK_PASS_S, most),
            short if now < self._crowded_until_s else most,
        )
        for job in {slot.job for slot in batch}:
            if job.stalled and job.waiting_tokens <= LOOKAHEAD_TOKENS // 2:
                job.stalled = False
                self._loop.call_soon_threadsafe(job.room.set)
        return batch

    def _run_batch(self, batch: Sequence[Slot]) -> bool:
        """Computes a batch; one that fails runs again in halves, so that an input fails no request but its own.

        False where nothing can be computed any more.
        """
        ended: list[tuple[Job, Exception | None]] = []
        passed = False
        parts = [batch]
        while parts:
            part = [slot for slot in parts.pop() if not slot.job.failed]
            if not part:
                continue
            try:
                ended += [(job, None) for job in self._pass(part)]
                passed = True
            except Exception as error:  # the top of this thread: a failed batch must not end the engine
                half = len(part) // 2
                if half:
                    parts += [part[half:], part[:half]]
                    logger.warning("A pass over %d inputs failed (%s); they run again in halves", len(part), error)
                else:
                    ended.append((part[0].job, self._fail(part[0], error)))
        self.batches += 1
        if ended and not passed and not self._computes():
            return False
        if ended:
            self._loop.call_soon_threadsafe(_resolve, ended)
        return True

    def _pass(self, batch: Sequence[Slot]) -> list[Job]:
        """Runs one forward pass, keeps its outputs, and returns the jobs that were finished by it."""
        begin_s = time.monotonic()
        outputs = self._forward([slot.item for slot in batch])
        seconds = time.monotonic() - begin_s
        if len(outputs) != len(batch):
            raise ValueError(f"the model gave {len(outputs)} outputs for {len(batch)} inputs")
        self._cost.observe(len(batch) * max(slot.item.tokens for slot in batch), seconds)
        if batch[0].job.interactive:
            self._interactive_pass_s += SMOOTHING * (seconds - self._interactive_pass_s)
        return [slot.job for slot, output in zip(batch, outputs, strict=True) if slot.job.store(slot.index, output)]

    def _fail(self, slot: Slot, cause: Exception) -> PassFailed:
        logger.exception("A pass over one input of %d tokens failed, and with it its request", slot.item.tokens)
        with self._changed:
            slot.job.failed = True
            self._expected_tokens -= slot.job.expected_tokens
            self._backlog.discard(slot.job)
        error = PassFailed(slot.index, slot.item.tokens)
        error.__cause__ = cause.with_traceback(None)  # its frames hold what the pass had allocated
        return error

    def _computes(self) -> bool:
        try:
            self._forward(self._probe)
        except Exception:  # whatever it is: the model has computed this before
            logger.exception("Not even the least input can be computed any more")
            return False
        return True

    def _trim(self) -> None:
        """Gives freed memory back to the system, which the allocator would keep for later."""
        self._untrimmed_tokens = 0
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def _resolve(ended: Sequence[tuple[Job, Exception | None]]) -> None:
    for job, error in ended:
        job.resolve(error)


def _carry_out(work: Callable[[], None], done: Future[None]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        work()
    except Exception as error:
        done.set_exception(error)
    else:
        done.set_result(None)
