"""Models that are to be on the device without anybody's asking: each is asked for once, as soon as it is known."""

from __future__ import annotations

from models.dispatcher import Dispatcher
from models.roster import Roster
from models.tickets import let_go


class Preloads:
    """Only the manager calls it. `names` may be aliases; models may also be configured so one by one."""

    def __init__(self, names: tuple[str, ...], roster: Roster, loop: Dispatcher) -> None:
        self._names = names
        self._roster = roster
        self._loop = loop
        self._begun: set[str] = set()

    def begin(self) -> None:
        for model_id in sorted(self._roster.to_preload(self._names) - self._begun):
            self._begun.add(model_id)
            future = self._loop.ask(self._loop.tickets.next(), model_id, holds=False)
            if future is not None:
                let_go(future)

    def forget(self) -> None:
        """All are asked for again with the next `begin`."""
        self._begun.clear()
