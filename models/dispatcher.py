"""Between what happens and what is done about it: the only caller of the scheduler's events.

An event goes in, its commands are carried out, a timer is set for when time alone will change something. None of this
awaits, so no event ever sees half of another.

Should the scheduler ever trip over an event, which would be a bug of ours, its books cannot be trusted any more. All
who wait are told so, nothing goes in or out until `begin_anew`, and `fault` says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from models.scheduling import refusals
from models.scheduling.policy import Policy
from models.scheduling.scheduler import Scheduler
from models.scheduling.values import Action, Command, Grant, Reject
from models.tickets import Tickets

log = logging.getLogger(__name__)

MINIMAL_TICK_S = 0.001  # a deadline in the past is due at once, but never in a busy loop


class Dispatcher:
    """Feeds the scheduler.

    `perform` carries out what is no answer to a waiter, `on_change` takes the scheduler's `changes`, `on_fault` is told
    once of each fault.
    """

    def __init__(
        self,
        policy: Policy,
        budget_bytes: int,
        perform: Callable[[Action], None],
        on_change: Callable[[], None],
        on_fault: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.scheduler = Scheduler(policy, budget_bytes)
        self.tickets = Tickets()
        self.fault: str | None = None
        self.clock = clock
        self._perform = perform
        self._on_change = on_change
        self._on_fault = on_fault
        self._timer: asyncio.TimerHandle | None = None
        self._first_ticket = 0  # of the present scheduler
        self._closing = False

    def check_open(self) -> None:
        """Raises ShuttingDown or InternalFault where nothing new is taken."""
        if self._closing:
            raise refusals.shutting_down()
        if self.fault is not None:
            raise refusals.internal_fault(self.fault)

    def feed(self, event: Callable[..., list[Command]], *args: object) -> None:
        """One event in, its commands carried out. The time is put in after the model or ticket that it is about."""
        if self.fault is not None:
            return
        try:
            self._carry_out(event(*args[:1], self.clock(), *args[1:]))
        except Exception as error:
            self._break(error)

    def ask(self, ticket: int, model_id: str, *, holds: bool, client: str = "") -> asyncio.Future[None] | None:
        """None: granted at once. A future is made only where somebody must wait: this is the hot path."""
        self.check_open()
        try:
            commands = self.scheduler.on_request(ticket, model_id, self.clock(), holds=holds, client=client)
            if len(commands) == 1 and type(commands[0]) is Grant and commands[0].ticket == ticket:
                return None
            future = self.tickets.wait_for(ticket)
            self._carry_out(commands)
        except Exception as error:
            self.tickets.drop(ticket)  # it is told by what is raised here
            raise refusals.internal_fault(self._break(error)) from error
        return future

    async def wait(self, ticket: int, future: asyncio.Future[None]) -> None:
        """Waits for the grant. Cancelled at the very moment of the grant, it gives the grant back."""
        try:
            await future
        except asyncio.CancelledError:
            self.tickets.drop(ticket)
            if self.scheduler.is_waiting(ticket):
                self.feed(self.scheduler.on_cancel, ticket)
            elif self.scheduler.is_running(ticket):
                self.give_back(ticket, served=False)
            raise

    def give_back(self, ticket: int, *, served: bool) -> None:
        """A granted ticket has ended. `served`: with an answer."""
        if ticket < self._first_ticket or self.fault is not None:
            return
        try:
            commands = self.scheduler.on_release(ticket, self.clock(), served=served)
            if commands or self.scheduler.queued:  # else no deadline has come closer: this is the hot path
                self._carry_out(commands)
        except Exception as error:
            self._break(error)

    def tick(self) -> None:
        """Time has passed, or what the scheduler was told of has changed."""
        self.feed(self.scheduler.on_tick)

    def refuse_all(self) -> None:
        """Shutting down: whoever waits is told, and nothing new is taken."""
        self._closing = True
        for ticket in self.tickets.waiting():
            self.tickets.resolve(ticket, refusals.shutting_down())
            if self.scheduler.is_waiting(ticket):  # or a load that ends now would grant it, and it would never release
                self.feed(self.scheduler.on_cancel, ticket)

    def begin_anew(self) -> None:
        """After a fault, with nothing left on the device: an empty scheduler of the same policy and budget."""
        self.scheduler = Scheduler(self.scheduler.policy, self.scheduler.ledger.budget_bytes)
        self._first_ticket = self.tickets.next()
        self.fault = None

    def stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _carry_out(self, commands: list[Command]) -> None:
        if self.scheduler.changes:
            self._on_change()
        for command in commands:
            match command:
                case Grant(ticket):
                    self.tickets.resolve(ticket, None)
                case Reject(ticket, error):
                    self.tickets.resolve(ticket, error)
                case _:
                    self._perform(command)
        self._set_timer()

    def _set_timer(self) -> None:
        self.stop_timer()
        now = self.clock()
        deadline = self.scheduler.next_deadline_s(now)
        if deadline is not None and deadline != float("inf") and not self._closing:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(MINIMAL_TICK_S, deadline - now), self.tick)

    def _break(self, error: Exception) -> str:
        log.critical("the scheduler failed: this is a bug, please report it with what follows", exc_info=error)
        if self.fault is None:
            self.fault = f"the scheduler failed ({type(error).__name__}: {error})"
            self.stop_timer()
            for ticket in self.tickets.waiting():
                self.tickets.resolve(ticket, refusals.internal_fault(self.fault))
            self._on_fault()
        return self.fault
