"""The single writer: feeds events to the scheduler and has its commands carried out on real engines.

Everything runs in one event loop, and only `models.dispatcher` calls the scheduler's events. Nobody reads a state and
then acts on it; they ask for an outcome:

    async with manager.lease(spec) as lease:   # loads, waits, evicts as need be
        …lease.endpoint…
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engines.base import Engine, EngineFactory
from models import adapters
from models.background import Background
from models.bookkeeping import Bookkeeper
from models.catalog import Catalog
from models.dispatcher import Dispatcher
from models.errors import ModelUnusable, UnknownModel
from models.events import EventLog
from models.footprints import FootprintStore
from models.leases import Lease, LeaseContext, Leases
from models.measuring import Measurer
from models.preloads import Preloads
from models.preparations import Preparations
from models.probing import Prober
from models.readahead import ReadAhead
from models.reporting import Reporter
from models.roster import Roster
from models.runner import Runner, close_factories
from models.scheduling.forecast import Forecast
from models.scheduling.policy import Policy
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Action, Load, Sleep, Unload, Wake
from models.servable import Servable, must_reload
from models.statuses import MemoryStatus, memory_status, model_status
from models.tickets import let_go
from models.types import ModelSpec, ModelStatus, State
from models.watchdog import Watchdog

log = logging.getLogger(__name__)

MOVED_POLL_S = 0.2  # rare: only where one id goes from the models folder to another server, or back
RECOVERY_DRAIN_S = 30.0  # for running answers, once the scheduler has failed
MAX_RECOVERY_PAUSE_S = 60.0  # a fault that comes back at once must not end engines again and again
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
        hang_timeout_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self.factories = factories
        self.servable = Servable(catalog, factories)
        self.events = EventLog()
        self._reporter = Reporter(self.events, lambda: self.scheduler, clock)
        on_change = self._reporter.report_changes
        self._loop = Dispatcher(policy, budget_bytes, self._perform, on_change, self._on_fault, clock)
        footprints = FootprintStore(state_dir / "footprints.json")
        self._roster = Roster(catalog, self.servable, footprints)
        self._read_ahead = ReadAhead()
        self._books = Bookkeeper(
            self._loop, self._roster, self.servable, footprints, self._read_ahead, lambda name: self._runner.get(name)
        )
        self._runner = Runner(self._books)
        self._preparations = Preparations(factories, lambda: self.scheduler.policy.max_queued)
        self._leases = Leases(self._roster, self._runner, self._loop, self._ask, self._preparations)
        self._watchdog = Watchdog(lambda: self.scheduler.stuck(clock()), self._loop.tick, clock)
        self._measurer = Measurer(self._runner, lambda: self.scheduler, clock)
        self._prober = Prober(self.residents, self.hung, hang_timeout_s, clock=clock)
        self._clock = clock
        self._background = Background()
        self._preloads = Preloads(preload, self._roster, self._loop, self._preparations, self._background.spawn)
        self._faults = 0  # of the scheduler
        self._started = self._closing = False
        catalog.subscribe(self.refresh)

    @property
    def scheduler(self) -> Scheduler:
        return self._loop.scheduler

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Lets the factories warm up in the background, and preloads what is to be preloaded."""
        if self._closing:
            return
        self._started = True
        for work in (self._watchdog, self._measurer, self._prober, self._reporter):
            self._background.spawn(work.run())
        # All at once: each may wait a moment for servers elsewhere to say what they have.
        await asyncio.gather(*(factory.start() for factory in self.factories.values()))
        self.refresh()

    async def close(self, drain_s: float) -> None:
        """Refuses new leases, waits up to `drain_s` for running answers, ends every engine and every launcher."""
        self._closing = True
        self._loop.refuse_all()
        self._preparations.close()
        await self._leases.ended(drain_s)
        self._loop.stop_timer()
        self._books.let_waiters_go()
        await self._background.close()
        await self._read_ahead.close()
        await self._runner.close(self.scheduler.policy.stop_grace_s)
        self.events.close()
        await close_factories(self.factories)

    def refresh(self) -> None:
        """The catalog has changed: tells the scheduler what appeared, changed and went."""
        gone, changed = self._roster.renew({name: each.limits.remote for name, each in self.scheduler.entries.items()})
        for model_id in gone:
            self._loop.feed(self.scheduler.forget, model_id, self._roster.removal(model_id))
            self._runner.disconnect(model_id)
        for before, spec in changed:
            self._books.configure(spec.id)
            if self.servable.is_remote(spec):
                self._runner.connect(spec, self.factories[spec.engine])
            elif before is not None and must_reload(before, spec):
                log.info("%s has changed: it will be loaded anew", spec.id)
                self._loop.feed(self.scheduler.on_changed, spec.id)
        for model_id in self._roster.readapted:
            self._books.configure(model_id)  # it is started with room for them
        self._remove_adapters()
        if self._roster.moving:
            self._background.spawn(self._await_moved())
        if self._started and not self._closing and self._loop.fault is None:
            self._preloads.begin()
        self._loop.tick()  # once for all: what changed takes effect now

    def set_policy(self, policy: Policy) -> None:
        """Takes effect with the next decision, which is made at once."""
        self.scheduler.policy = policy
        self._loop.tick()

    # -- outcomes to ask for ---------------------------------------------------------------------------------------

    def check(self, spec: ModelSpec) -> None:
        """Raises ModelUnusable, with the reasons, for a model that cannot be served."""
        self._roster.check(spec)

    def lease(self, spec: ModelSpec, client: str = "") -> LeaseContext:
        """The right to send one request to `spec`'s engine, loaded if need be. Entering raises a RoundhouseError.

        Where more wait than the engine takes at a time, clients are let in in turn.
        """
        return LeaseContext(self._leases, spec, client)

    async def load(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Brings a model onto the device. Raises what a request for it would raise (`wait=False`: only at once)."""
        base = self._roster.base(spec)
        if wait and spec is not base:
            async with self.lease(spec):  # an adapter is put in by its first request
                return self.status(base.id)
        if self._preparations.needed(base):
            if not wait:
                self._preloads.load(base)
                return self.status(base.id)
            await self._preparations.make(base)
            base = self._roster.base(self._roster.current(spec))  # it may have gone meanwhile
        ticket = self._loop.tickets.next()
        future = self._ask(ticket, base, holds=False)
        if future is not None and (wait or future.done()):
            await self._loop.wait(ticket, future)
        elif future is not None:
            let_go(future)
        if wait:
            await self._runner.wait_measured(base.id)
        return self.status(base.id)

    async def unload(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Takes a model off the device after its running answers; with `wait`, returns when it is confirmed gone.

        An adapter is taken out of its base, which stays.
        """
        self._loop.check_open()
        base = self._roster.base(spec)
        if self.servable.is_remote(base):
            raise ModelUnusable(f"'{base.id}' is served elsewhere, by {base.engine}: there is nothing to unload here.")
        if spec.id != base.id:
            if (resident := self._runner.get(base.id)) is not None:
                removal = adapters.remove(resident, spec.id)
                if wait:
                    await removal
                else:
                    self._background.spawn(removal)
            return self.status(base.id)
        gone = self._books.until_gone(base.id)
        self._loop.feed(self.scheduler.on_unload_asked, base.id)
        if self.scheduler.entries[base.id].state in AT_REST:
            self._books.gone(base.id)
        if wait:
            await gone
        return self.status(base.id)

    # -- questions -------------------------------------------------------------------------------------------------

    def status(self, model_id: str) -> ModelStatus:
        """Raises UnknownModel for a model without an engine of its own (an adapter, or one that cannot be served)."""
        spec = self._roster.get(model_id)
        if spec is None or model_id not in self.scheduler.entries:
            raise UnknownModel(f"The model '{model_id}' does not exist or cannot be served.", param="model")
        resident = self._runner.get(model_id)
        served = resident.serves() if resident is not None else ()
        return model_status(self.scheduler, spec, self._books.measured_bytes(model_id), served, self._clock())

    def statuses(self) -> list[ModelStatus]:
        """Every model that has an engine of its own, sorted by id."""
        return [self.status(model_id) for model_id in self._roster.ids()]

    def memory(self) -> MemoryStatus:
        return memory_status(self.scheduler)

    def forecast(self, spec: ModelSpec) -> Forecast:
        """What would happen if a request for `spec` came now, and why. Raises as `check` does."""
        return self.scheduler.forecast(self._roster.base(spec).id, self._clock())

    def preparing(self, spec: ModelSpec) -> str | None:
        """What is being made before `spec` can be loaded at all; None where nothing has to be."""
        return self._preparations.what(self._roster.base(spec))

    def expected_wait_s(self, model_id: str) -> float:
        """How long a request for this model, which has an engine of its own, would wait if it came now."""
        return self.scheduler.predicted_wait_s(model_id, self._clock())

    def trouble(self) -> str | None:
        """Why nothing can be served now, although it should be; None when all is well."""
        return self._loop.fault or self._watchdog.trouble()

    def residents(self) -> list[tuple[str, Engine, int]]:
        """Every engine here that is awake, with its model's id and how many requests run on it."""
        entries = self.scheduler.entries
        awake = ((model_id, self._runner.get(model_id)) for model_id in self._runner.model_ids())
        return [
            (model_id, resident.engine, len(entries[model_id].running))
            for model_id, resident in awake
            if resident is not None and resident.awake and not resident.remote and model_id in entries
        ]

    # -- carrying out ----------------------------------------------------------------------------------------------

    def hung(self, model_id: str, cause: str) -> None:
        """Its engine has work and gets nothing done: it is ended, and started again for those who wait.

        Without a grace, in which it could only tell its clients of errors that a fresh engine spares them.
        """
        resident = self._runner.get(model_id)
        if resident is not None:
            resident.hangs = True
        self._loop.feed(self.scheduler.on_exited, model_id, cause)

    def _perform(self, command: Action) -> None:
        policy = self.scheduler.policy
        match command:
            case Load(model_id) if not self._closing:
                spec = self._roster[model_id]
                self._read_ahead.load_begins(model_id)
                adapters, factory = self.servable.adapters(spec), self.factories[spec.engine]
                self._runner.load(spec, adapters, factory, policy.load_timeout_s)
            case Sleep(model_id, level):
                self._runner.sleep(model_id, level, policy.load_timeout_s)
            case Wake(model_id) if not self._closing:
                self._runner.wake(model_id, policy.load_timeout_s)
            case Unload(model_id):
                # One that answers nobody has nothing to end in order, and somebody may wait for its memory.
                answers = bool(self.scheduler.entries[model_id].running)
                self._runner.unload(model_id, policy.stop_grace_s if answers else 0.0)

    def _ask(
        self, ticket: int, base: ModelSpec, client: str = "", *, holds: bool = True
    ) -> asyncio.Future[None] | None:
        future = self._loop.ask(ticket, base.id, holds=holds, client=client)
        if future is not None and not future.done() and self.scheduler.entries[base.id].state in AT_REST:
            self._read_ahead.want(base)
        return future

    def _remove_adapters(self) -> None:
        for resident in self._runner.residents():
            if not resident.adapters.keys() <= self._roster.accepted.keys():
                self._background.spawn(adapters.remove_gone(resident, self._roster.accepted))

    async def _await_moved(self) -> None:
        """Takes models in anew that are served elsewhere now, or here again, once nothing of them is left."""
        while not self._roster.moving.isdisjoint(self.scheduler.entries):  # noqa: ASYNC110
            await asyncio.sleep(MOVED_POLL_S)
        self.refresh()

    # -- after a fault of the scheduler ----------------------------------------------------------------------------

    def _on_fault(self) -> None:
        self._books.let_waiters_go()
        if not self._closing:
            self._background.spawn(self._recover())

    async def _recover(self) -> None:
        """Ends every engine, after its running answers, and begins anew with an empty device."""
        self._faults += 1
        await asyncio.sleep(min(MAX_RECOVERY_PAUSE_S, (self._faults - 1) ** 2))
        await self._leases.ended(RECOVERY_DRAIN_S)
        await self._runner.end_all(self.scheduler.policy.stop_grace_s)
        self._reporter.report_reset(self._loop.fault or "")
        self._books.begin_anew()
        self._roster.clear()
        self._preloads.forget()
        self._loop.begin_anew()
        log.warning("a new scheduler has begun, with nothing on the device")
        self.refresh()
