"""Whether a chat request may go up now, has to wait for its turn, or is refused.

A request first takes its part of the limits on requests per minute, and is refused at once where
those are spent: it could only wait for what those behind it want as well. Then it waits for one of
``MAX_CONCURRENT_REQUESTS`` slots, in the order of ``turns``, and holds it until its exchange ends.
The slot is a block's: whatever ends the block, and be it that the client leaves, gives the slot
back, or the place in the line.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from .config import Config
from .exchange import Exchange
from .limit_errors import NoTurn, RateLimited
from .limits import Bucket, Charge, Limits, LocalLimits
from .stamps import loop_clock
from .turns import Stage, Ticket, Turns

__all__ = ("Admission",)

_MINUTE = 60.0  # seconds


class Admission:
    """The limits of one proxy, and those who wait."""

    def __init__(self, config: Config, limits: Limits | None = None) -> None:
        self._limits = limits or LocalLimits()
        self._clock = loop_clock()
        self._patience = config.max_queue_seconds
        slots = config.max_concurrent_requests
        self._turns = Turns(float("inf") if slots is None else slots, config.max_queue_length)
        self._charges: tuple[Charge, ...] = ()
        if config.rate_limit_per_minute is not None:
            in_all = Bucket("requests", config.rate_limit_per_minute, _MINUTE)
            self._charges = (Charge(in_all, 1),)
        self.is_limited = bool(self._charges) or slots is not None
        """Whether there is anything to ask before a request goes up."""

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._turns.waiting

    @asynccontextmanager
    async def turn(self, exchange: Exchange) -> AsyncIterator[None]:
        """Hold a slot for as long as the block takes. Raises RateLimited, NoTurn."""
        verdict = await self._limits.take(self._charges, self._clock())
        if verdict.wait:
            raise RateLimited(verdict)
        ticket = self._turns.join(exchange.client, self._clock())
        try:
            if ticket.stage is Stage.WAITING:
                await self._wait(ticket, exchange)
            if ticket.stage is not Stage.ADMITTED:
                self._turns.leave(ticket, self._clock())
                raise NoTurn(self._turns.seconds_to_a_turn(self._clock()))
            yield
        finally:
            self._turns.leave(ticket, self._clock())

    async def _wait(self, ticket: Ticket, exchange: Exchange) -> None:
        """Return when the ticket's turn has come, or it is refused, or the time is over."""
        turn = anyio.Event()
        ticket.wake = turn.set
        began_at = self._clock()
        try:
            with anyio.move_on_after(self._patience):
                await turn.wait()
        finally:
            exchange.admission_wait_seconds = round(self._clock() - began_at, 6)
