"""Models that are to be on the device without anybody's waiting for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from models.dispatcher import Dispatcher
from models.errors import RoundhouseError
from models.preparations import Preparations
from models.roster import Roster
from models.tickets import let_go
from models.types import ModelSpec

log = logging.getLogger(__name__)


class Preloads:
    """Only the manager calls it. `names` may be aliases; models may also be configured so one by one."""

    def __init__(
        self,
        names: tuple[str, ...],
        roster: Roster,
        loop: Dispatcher,
        preparations: Preparations,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._names = names
        self._roster = roster
        self._loop = loop
        self._preparations = preparations
        self._spawn = spawn
        self._begun: set[str] = set()

    def begin(self) -> None:
        """Each that is to be preloaded is asked for once, as soon as it is known."""
        for model_id in sorted(self._roster.to_preload(self._names) - self._begun):
            self._begun.add(model_id)
            self.load(self._roster[model_id])

    def load(self, spec: ModelSpec) -> None:
        """Asks for a load, at once or when it can be had."""
        if self._preparations.needed(spec):
            self._spawn(self._prepare_and_load(spec))
            return
        future = self._loop.ask(self._loop.tickets.next(), spec.id, holds=False)
        if future is not None:
            let_go(future)

    def forget(self) -> None:
        """All are asked for again with the next `begin`."""
        self._begun.clear()

    async def _prepare_and_load(self, spec: ModelSpec) -> None:
        try:
            await self._preparations.make(spec)
        except RoundhouseError as error:
            log.warning("%s is not loaded: %s", spec.id, error.message)
        else:
            if self._roster.get(spec.id) is not None:
                self.load(spec)
