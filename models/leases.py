"""What is handed out to those who have a request to send: the right to send it, to an engine that is ready for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from engines.base import AdapterRefused, Endpoint, EngineUnavailable, Outcome
from models import adapters
from models.dispatcher import Dispatcher
from models.errors import EngineGone, ModelUnusable, Unavailable
from models.preparations import Preparations
from models.roster import Roster
from models.runner import AdapterUse, Resident, Runner
from models.types import ModelSpec

log = logging.getLogger(__name__)

TRIES = 3  # an engine that dies at once each time is not tried for ever
END_POLL_S = 0.05  # how often the end looks whether running answers have finished

# Asks the scheduler: `ask(ticket, base, holds=…)`, None where it is granted at once.
Ask = Callable[[int, ModelSpec, str], asyncio.Future[None] | None]  # ticket, model, client


@dataclass(slots=True)
class Lease:
    """The right to send one request to `endpoint`, which knows the model as `served_name`.

    Whoever sends it notes the `outcome`, by `answers` and `fails` or directly.
    """

    endpoint: Endpoint
    spec: ModelSpec
    served_name: str
    outcome: Outcome = Outcome.ABANDONED
    why: str = ""  # of a failure
    adapter_use: AdapterUse | None = None  # of the adapter that `spec` is

    def answers(self) -> None:
        """The engine has begun to answer, with a status below 500."""
        self.outcome = Outcome.ANSWERED
        if self.endpoint.watcher is not None:
            self.endpoint.watcher.answers()

    def fails(self, why: str) -> None:
        """The engine failed the request; `why` is a phrase for people."""
        self.outcome = Outcome.FAILED
        self.why = why


class LeaseContext:
    """`async with` a lease: entering waits until the model is ready, leaving gives it back, whatever happened between.

    Left with an exception (the engine ended, the client went away), nothing counts as answered.

    A class and not a generator: this is entered once per request, and a generator costs several times as much.
    """

    __slots__ = ("_client", "_lease", "_leases", "_spec", "_ticket")

    def __init__(self, leases: Leases, spec: ModelSpec, client: str) -> None:
        self._leases = leases
        self._spec = spec
        self._client = client
        self._ticket = 0
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        self._ticket, self._lease = await self._leases.acquire(self._spec, self._client)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        self._leases.release(self._ticket, self._lease, served=kind is None)


class Leases:
    """Those given out and not yet back. Only the manager makes one."""

    def __init__(self, roster: Roster, runner: Runner, loop: Dispatcher, ask: Ask, preparations: Preparations) -> None:
        self._roster = roster
        self._runner = runner
        self._loop = loop
        self._ask = ask
        self._preparations = preparations
        self.count = 0

    async def acquire(self, spec: ModelSpec, client: str = "") -> tuple[int, Lease]:
        """A ticket and its lease, to be given to `release` exactly once. Raises a RoundhouseError."""
        for _ in range(TRIES):
            spec = self._roster.current(spec)
            base = self._roster.base(spec)
            if self._preparations.needed(base):
                await self._preparations.make(base)
                continue
            ticket = self._loop.tickets.next()
            future = self._ask(ticket, base, client)
            if future is not None:
                await self._loop.wait(ticket, future)
            resident = self._runner.get(base.id)
            try:
                there = resident is not None and resident.awake
                if resident is not None and there and (resident.made_for(spec) or await self._put_in(resident, spec)):
                    return ticket, self._make(resident, spec)
            except BaseException:
                self._loop.give_back(ticket, served=False)
                raise
            self._loop.give_back(ticket, served=False)  # the engine died between the grant and this task's turn
        raise EngineGone(f"The engine of '{base.id}' ended as soon as it was ready. See its log.", param="model")

    def release(self, ticket: int, lease: Lease, *, served: bool) -> None:
        """`served`: the engine answered to the end."""
        self.count -= 1
        if lease.endpoint.watcher is not None:
            lease.endpoint.watcher.end(lease.outcome, lease.why)
        if lease.adapter_use is not None:
            lease.adapter_use.end()
        self._loop.give_back(ticket, served=served)

    async def ended(self, limit_s: float) -> None:
        """Returns when every running answer has finished, or after `limit_s`."""
        deadline = self._loop.clock() + limit_s
        # Polled, once and at the end: an event would cost every request.
        while self.count and self._loop.clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(END_POLL_S)

    def _make(self, resident: Resident, spec: ModelSpec) -> Lease:
        try:
            endpoint = resident.engine.endpoint
        except EngineUnavailable as error:
            raise Unavailable(error.message, retry_after_s=error.retry_after_s) from None
        if endpoint.watcher is not None:
            endpoint.watcher.begin()
        self.count += 1
        return Lease(endpoint, spec, endpoint.model or spec.id, adapter_use=adapters.in_use(resident, spec))

    async def _put_in(self, resident: Resident, adapter: ModelSpec) -> bool:
        """Whether the engine serves `adapter` now; if not, it is to be asked for again. Raises ModelUnusable."""
        base_id = resident.spec.id
        try:
            there = await adapters.ensure(resident, self._roster.current(adapter))
        except AdapterRefused as refusal:
            if not refusal.reload:
                text = f"The adapter '{adapter.id}' cannot be loaded into '{base_id}': {refusal.message}"
                raise ModelUnusable(text, param="model") from None
            if self._runner.get(base_id) is resident:  # it may have ended meanwhile
                log.info("%s is loaded anew for the adapter %s: %s", base_id, adapter.id, refusal.message)
                self._loop.feed(self._loop.scheduler.on_changed, base_id)
            return False
        return there and self._runner.get(base_id) is resident and resident.awake
