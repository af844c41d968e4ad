"""The single writer: feeds events to the scheduler and has its commands carried out on real engines.

Everything runs in one event loop. Only `_feed` and `_ask` call the scheduler's events, and neither awaits, so no event
ever sees half of another. Nobody reads a state and then acts on it; they ask for an outcome:

    async with manager.lease(spec) as lease:   # loads, waits, evicts as need be
        …lease.endpoint…
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.base import EngineFactory
from models import refusals
from models.catalog import Catalog
from models.errors import EngineGone, ModelUnusable, RoundhouseError, UnknownModel
from models.footprints import Footprint, FootprintStore
from models.leases import Lease, LeaseContext, MemoryStatus
from models.policy import Limits, Policy
from models.runner import Runner
from models.scheduler import Scheduler
from models.scheduling import Command, Entry, Grant, Load, Reject, Unload
from models.servable import Servable, must_reload
from models.types import LoadReport, ModelSpec, ModelStatus, State, Task

log = logging.getLogger(__name__)

MEASURE_WAIT_S = 5.0  # for an explicit load to tell the memory, too
CLOSE_POLL_S = 0.05  # how often close() looks whether running answers have finished
MINIMAL_TICK_S = 0.001  # a deadline in the past is due at once, but never in a busy loop
ACQUIRE_TRIES = 3  # an engine that dies at once each time is not tried for ever
AT_REST = frozenset({State.COLD, State.FAILED})

__all__ = ["Lease", "MemoryStatus", "ModelManager"]


class ModelManager:
    """Models on one device: leases for the data plane, explicit loads and unloads, statuses."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        factories: Mapping[str, EngineFactory],
        policy: Policy,
        budget_bytes: int,
        state_dir: Path,
        preload: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self.factories = factories
        self.servable = Servable(catalog, factories)
        self.scheduler = Scheduler(policy, budget_bytes)
        self._runner = Runner(self)
        self._footprints = FootprintStore(state_dir / "footprints.json")
        self._preload = preload
        self._preloaded: set[str] = set()
        self._clock = clock
        self._tickets = itertools.count(1)
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._known: dict[str, ModelSpec] = {}  # what the scheduler was told of
        self._measured_bytes: dict[str, int] = {}
        self._unload_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._started = self._closing = False
        catalog.subscribe(self.refresh)

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Lets the factories warm up in the background, and preloads what is to be preloaded."""
        self._started = True
        for factory in self.factories.values():
            await factory.start()
        self.refresh()

    async def close(self, drain_s: float) -> None:
        """Refuses new leases, waits up to `drain_s` for running answers, ends every engine and every launcher."""
        self._closing = True
        for ticket in list(self._futures):
            self._resolve(ticket, refusals.shutting_down())
            if self.scheduler.is_waiting(ticket):  # or a load that ends now would grant it, and it would never release
                self._feed(self.scheduler.on_cancel, ticket)
        deadline = self._clock() + drain_s
        # Polled, once and at the end: an event would cost every request.
        while self._any_running() and self._clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_S)
        if self._timer:
            self._timer.cancel()
        for model_id in list(self._unload_waiters):
            self._gone(model_id)
        await self._runner.close(self.scheduler.policy.stop_grace_s)
        await asyncio.gather(*(factory.close() for factory in self.factories.values()), return_exceptions=True)

    def refresh(self) -> None:
        """The catalog has changed: tells the scheduler what appeared, changed and went."""
        specs = {spec.id: spec for spec in self.catalog.specs() if self.servable.refusal(spec) is None}
        specs = {model_id: spec for model_id, spec in specs.items() if spec.task is not Task.ADAPTER}
        for model_id in self._known.keys() - specs.keys():
            del self._known[model_id]
            self._carry_out(self.scheduler.forget(model_id, self._clock(), self._removal(model_id)))
        for model_id, spec in specs.items():
            before = self._known.get(model_id)
            self._known[model_id] = spec
            if before == spec:
                continue
            self.scheduler.configure(model_id, self._limits(spec))
            if before is not None and must_reload(before, spec):
                log.info("%s has changed: it will be loaded anew", model_id)
                self._carry_out(self.scheduler.on_changed(model_id, self._clock()))
        self._begin_preloads()
        self._tick()  # once for all: what changed takes effect now

    def set_policy(self, policy: Policy) -> None:
        """Takes effect with the next decision, which is made at once."""
        self.scheduler.policy = policy
        self._tick()

    # -- outcomes to ask for ---------------------------------------------------------------------------------------

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelUnusable, with the reasons, for a model that cannot be served."""
        if self._known.get(spec.id) is spec:  # the hot path: it was judged when it became known
            return
        refusal = self.servable.refusal(spec)
        if refusal is not None:
            raise ModelUnusable(refusal, param="model")

    def lease(self, spec: ModelSpec) -> LeaseContext:
        """The right to send one request to `spec`'s engine, loaded if need be. Entering raises a RoundhouseError."""
        return LeaseContext(self, spec)

    async def load(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Brings a model onto the device. Raises what a request for it would raise (`wait=False`: only at once)."""
        base = self._base(spec)
        ticket = next(self._tickets)
        future = self._ask(ticket, base.id, holds=False)
        if future is not None and (wait or future.done()):
            await self._wait(ticket, future)
        elif future is not None:
            future.add_done_callback(_retrieve)
        if wait:
            await self._wait_measured(base.id)
        return self.status(base.id)

    async def unload(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Takes a model off the device after its running answers; with `wait`, returns when it is confirmed gone."""
        if self._closing:
            raise refusals.shutting_down()
        base = self._base(spec)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unload_waiters.setdefault(base.id, []).append(gone)
        self._feed(self.scheduler.on_unload_asked, base.id)
        if self.scheduler.entries[base.id].state in AT_REST:
            self._gone(base.id)
        if wait:
            await gone
        return self.status(base.id)

    def status(self, model_id: str) -> ModelStatus:
        """Raises UnknownModel for a model without an engine of its own (an adapter, or one that cannot be served)."""
        spec = self._known.get(model_id)
        entry = self.scheduler.entries.get(model_id)
        if spec is None or entry is None:
            raise UnknownModel(f"The model '{model_id}' does not exist or cannot be served.", param="model")
        return self._status(spec, entry)

    def statuses(self) -> list[ModelStatus]:
        """Every model that has an engine of its own, sorted by id."""
        return [self.status(model_id) for model_id in sorted(self._known)]

    def memory(self) -> MemoryStatus:
        return MemoryStatus(self.scheduler.ledger.budget_bytes, self.scheduler.ledger.charged_bytes)

    # -- for LeaseContext ------------------------------------------------------------------------------------------

    async def acquire(self, spec: ModelSpec) -> tuple[int, Lease]:
        """A ticket, to be given to `release` exactly once, and its lease."""
        for _ in range(ACQUIRE_TRIES):
            spec = self._current(spec)
            base = self._base(spec)
            resident = self._runner.get(base.id)
            if resident is not None and not resident.serves(spec):
                self._feed(self.scheduler.on_changed, base.id)  # the adapter came or changed after its base was started
            ticket = next(self._tickets)
            future = self._ask(ticket, base.id, holds=True)
            if future is not None:
                await self._wait(ticket, future)
            resident = self._runner.get(base.id)
            if resident is not None and resident.serves(spec):
                return ticket, Lease(resident.engine.endpoint, spec, spec.id)
            self.release(ticket)  # the engine died between the grant and this task's turn
        raise EngineGone(f"The engine of '{base.id}' ended as soon as it was ready. See its log.", param="model")

    def release(self, ticket: int) -> None:
        commands = self.scheduler.on_release(ticket, self._clock())
        if commands or self.scheduler.queued:  # else no deadline has come closer: this is the hot path
            self._carry_out(commands)
            self._set_timer()

    # -- Outcomes of the runner ------------------------------------------------------------------------------------

    def loaded(self, model_id: str, report: LoadReport) -> None:
        self._feed(self.scheduler.on_loaded, model_id, report.duration_s)

    def measured(self, model_id: str, memory_bytes: int) -> None:
        self._measured_bytes[model_id] = memory_bytes
        resident = self._runner.get(model_id)
        entry = self.scheduler.entries.get(model_id)
        if resident is None or entry is None:
            return
        self._footprints.put(model_id, Footprint(memory_bytes, entry.cost_s, resident.spec.fingerprint))
        if (spec := self._known.get(model_id)) is not None:
            self.scheduler.configure(model_id, self._limits(spec))
        self._feed(self.scheduler.on_measured, model_id, entry.limits.footprint_bytes)

    def load_failed(self, model_id: str, cause: str) -> None:
        self._feed(self.scheduler.on_load_failed, model_id, cause)
        self._gone(model_id)

    def unloaded(self, model_id: str) -> None:
        self._measured_bytes.pop(model_id, None)
        self._feed(self.scheduler.on_unloaded, model_id)
        self._gone(model_id)

    def exited(self, model_id: str) -> None:
        self._feed(self.scheduler.on_exited, model_id)

    # -- the loop --------------------------------------------------------------------------------------------------

    def _feed(self, event: Callable[..., list[Command]], *args: object) -> None:
        """One event in, its commands carried out. The time is put in after the model or ticket that it is about."""
        self._carry_out(event(*args[:1], self._clock(), *args[1:]))
        self._set_timer()

    def _ask(self, ticket: int, model_id: str, *, holds: bool) -> asyncio.Future[None] | None:
        """None: granted at once. A future is made only where somebody must wait: this is the hot path."""
        if self._closing:
            raise refusals.shutting_down()
        commands = self.scheduler.on_request(ticket, model_id, self._clock(), holds=holds)
        if len(commands) == 1 and type(commands[0]) is Grant and commands[0].ticket == ticket:
            return None
        future = self._futures[ticket] = asyncio.get_running_loop().create_future()
        self._carry_out(commands)
        self._set_timer()
        return future

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Grant(ticket):
                    self._resolve(ticket, None)
                case Reject(ticket, error):
                    self._resolve(ticket, error)
                case Load(model_id) if not self._closing:
                    self._begin_load(model_id)
                case Unload(model_id):
                    self._runner.unload(model_id, self.scheduler.policy.stop_grace_s)

    def _begin_load(self, model_id: str) -> None:
        spec = self._known[model_id]
        adapters = self.servable.adapters(spec)
        self._runner.load(spec, adapters, self.factories[spec.engine], self.scheduler.policy.load_timeout_s)

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        deadline = self.scheduler.next_deadline_s(now)
        if deadline is not None and deadline != float("inf") and not self._closing:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(MINIMAL_TICK_S, deadline - now), self._tick)

    def _tick(self) -> None:
        self._carry_out(self.scheduler.on_tick(self._clock()))
        self._set_timer()

    def _resolve(self, ticket: int, error: RoundhouseError | None) -> None:
        future = self._futures.pop(ticket, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(copy.copy(error))  # one each: raising adds to an exception's own traceback

    async def _wait(self, ticket: int, future: asyncio.Future[None]) -> None:
        """Waits for the grant. Cancelled at the very moment of the grant, it gives the grant back."""
        try:
            await future
        except asyncio.CancelledError:
            self._futures.pop(ticket, None)
            if self.scheduler.is_waiting(ticket):
                self._feed(self.scheduler.on_cancel, ticket)
            elif self.scheduler.is_running(ticket):
                self._feed(self.scheduler.on_release, ticket)
            raise

    def _gone(self, model_id: str) -> None:
        for waiter in self._unload_waiters.pop(model_id, []):
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_measured(self, model_id: str) -> None:
        resident = self._runner.get(model_id)
        if resident is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEASURE_WAIT_S):
                    await resident.measured.wait()

    # -- small questions -------------------------------------------------------------------------------------------

    def _any_running(self) -> bool:
        return any(entry.running for entry in self.scheduler.entries.values())

    def _current(self, spec: ModelSpec) -> ModelSpec:
        """What the catalog has of it now: it may have changed since the caller asked, or gone. Raises UnknownModel."""
        found = self.catalog.get(spec.id)
        if found is None:
            raise self._removal(spec.id)
        return found

    def _base(self, spec: ModelSpec) -> ModelSpec:
        """The model whose engine serves `spec`. Raises as `check` does."""
        if self._known.get(spec.id) is spec:
            return spec
        self.check(spec)
        base = self.catalog.base_of(spec)
        if base.id not in self._known:
            raise self._removal(base.id)
        return base

    def _removal(self, model_id: str) -> RoundhouseError:
        """What waiting requests are told when their model can no longer be served."""
        spec = self.catalog.get(model_id)
        refusal = self.servable.refusal(spec) if spec else None
        if refusal:
            return ModelUnusable(refusal, param="model")
        return UnknownModel(f"The model '{model_id}' was removed from the models folder.", param="model")

    def _limits(self, spec: ModelSpec) -> Limits:
        return self.servable.limits(spec, self._footprints.get(spec.id, spec.fingerprint))

    def _begin_preloads(self) -> None:
        """Asks for each model to preload once, as soon as it is known."""
        if not self._started or self._closing:
            return
        wanted = {spec.id for spec in self._known.values() if spec.overrides.preload} - self._preloaded
        wanted |= {spec.id for name in self._preload if (spec := self._find(name)) and spec.id not in self._preloaded}
        for model_id in sorted(wanted):
            self._preloaded.add(model_id)
            future = self._ask(next(self._tickets), model_id, holds=False)
            if future is not None:
                future.add_done_callback(_retrieve)

    def _find(self, name: str) -> ModelSpec | None:
        try:
            spec = self.catalog.base_of(self.catalog.resolve(name))
        except RoundhouseError:
            return None
        return spec if spec.id in self._known else None

    def _status(self, spec: ModelSpec, entry: Entry) -> ModelStatus:
        now = self._clock()
        keep_alive_s = entry.limits.keep_alive_s
        return ModelStatus(
            id=spec.id,
            state=entry.state,
            task=spec.task,
            engine=spec.engine,
            pinned=entry.limits.pinned,
            running=len(entry.running),
            queued=len(entry.waiting),
            memory_bytes=self._measured_bytes.get(spec.id),
            estimated_bytes=entry.limits.footprint_bytes,
            load_s=entry.load_s,
            loads=entry.loads,
            idle_s=now - entry.last_used_s if entry.state is State.READY and not entry.running else None,
            keep_alive_s=self.scheduler.policy.keep_alive_s if keep_alive_s is None else keep_alive_s,
            error=entry.error,
            retry_after_s=max(0.0, entry.retry_at_s - now) if entry.state is State.FAILED else None,
        )


def _retrieve(future: asyncio.Future[None]) -> None:
    """Nobody waits for this outcome; it is in the log and in the model's status."""
    if not future.cancelled() and future.exception() is not None:
        log.warning("%s", future.exception())
