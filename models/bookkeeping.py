"""What became of engines, as the runner tells it: measured, kept for the next time, and told to the scheduler."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

from models.dispatcher import Dispatcher
from models.footprints import FootprintStore
from models.readahead import ReadAhead
from models.roster import Roster
from models.runner import Resident
from models.scheduling.scheduler import Scheduler
from models.servable import Servable
from models.types import LoadReport, SleepReport, State

log = logging.getLogger(__name__)


class Bookkeeper:
    """Takes the outcomes of the runner. `resident` finds the engine of a model. Only the manager makes one."""

    def __init__(
        self,
        loop: Dispatcher,
        roster: Roster,
        servable: Servable,
        footprints: FootprintStore,
        read_ahead: ReadAhead,
        resident: Callable[[str], Resident | None],
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._servable = servable
        self._footprints = footprints
        self._read_ahead = read_ahead
        self._resident = resident
        self._measured_bytes: dict[str, int] = {}
        self._unload_waiters: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def _scheduler(self) -> Scheduler:
        return self._loop.scheduler

    def measured_bytes(self, model_id: str) -> int | None:
        """What its engine was last measured to take; None where there is none."""
        return self._measured_bytes.get(model_id)

    def configure(self, model_id: str) -> None:
        """Tells the scheduler what is known of a model now."""
        spec = self._roster.get(model_id)
        if spec is None:
            return
        try:
            limits = self._roster.limits(spec)
        except Exception:  # an engine's factory tripped over it, perhaps as its folder is going: what was known stands
            log.exception("what %s takes cannot be told anew", model_id)
        else:
            self._scheduler.configure(model_id, limits)
            return
        if model_id not in self._scheduler.entries:  # nothing was known
            self._roster.drop(model_id)

    def until_gone(self, model_id: str) -> asyncio.Future[None]:
        """Done once its engine is confirmed gone, or could not be loaded."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unload_waiters.setdefault(model_id, []).append(gone)
        return gone

    def gone(self, model_id: str) -> None:
        for waiter in self._unload_waiters.pop(model_id, []):
            if not waiter.done():
                waiter.set_result(None)

    def let_waiters_go(self) -> None:
        """Nobody will tell them any more."""
        for model_id in list(self._unload_waiters):
            self.gone(model_id)

    def begin_anew(self) -> None:
        """There are no engines any more."""
        self._read_ahead.load_ended()
        self._measured_bytes.clear()

    # -- outcomes of the runner ------------------------------------------------------------------------------------

    def loaded(self, model_id: str, report: LoadReport) -> None:
        self._read_ahead.load_ended()
        self._note(model_id, self._footprints.note_load, report.duration_s)
        self._loop.feed(self._scheduler.on_loaded, model_id, report.duration_s)

    def measured(self, model_id: str, memory_bytes: int) -> None:
        resident = self._resident(model_id)
        entry = self._scheduler.entries.get(model_id)
        if resident is None or entry is None or entry.state not in (State.READY, State.DRAINING):
            return  # asleep, it takes little; that is no measure of what it needs
        self._measured_bytes[model_id] = memory_bytes
        self._note(model_id, self._footprints.note_memory, memory_bytes, self._servable.estimate_bytes(resident.spec))
        self._loop.feed(self._scheduler.on_measured, model_id, self._roster.limits(resident.spec).footprint_bytes)

    def load_failed(self, model_id: str, cause: str, *, interrupted: bool = False) -> None:
        self._read_ahead.load_ended()
        self._loop.feed(functools.partial(self._scheduler.on_load_failed, interrupted=interrupted), model_id, cause)
        self.gone(model_id)

    def slept(self, model_id: str, report: SleepReport) -> None:
        self._note(model_id, self._footprints.note_sleep, report.duration_s, report.device_bytes)
        self._measured_bytes[model_id] = report.device_bytes
        self._loop.feed(self._scheduler.on_slept, model_id, report)

    def woken(self, model_id: str, wake_s: float) -> None:
        self._note(model_id, self._footprints.note_wake, wake_s)
        self._loop.feed(self._scheduler.on_woken, model_id, wake_s)

    def sleep_failed(self, model_id: str, cause: str, *, forever: bool) -> None:
        if forever:
            self._note(model_id, self._footprints.note_no_sleep, cause)
        self._loop.feed(functools.partial(self._scheduler.on_sleep_failed, forever=forever), model_id, cause)

    def unloaded(self, model_id: str) -> None:
        self._measured_bytes.pop(model_id, None)
        self._loop.feed(self._scheduler.on_unloaded, model_id)
        self.gone(model_id)

    def exited(self, model_id: str, cause: str) -> None:
        self._loop.feed(self._scheduler.on_exited, model_id, cause)

    def _note(self, model_id: str, note: Callable[..., None], *figures: object) -> None:
        """Records what was measured of the engine that is there, and lets the scheduler know."""
        resident = self._resident(model_id)
        if resident is not None:
            note(model_id, resident.spec.fingerprint, *figures)
            self.configure(model_id)
