"""Waiting for one's turn: ``turns``, with the waiting. A slot is a block's, so that whatever ends
the block gives it back."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from math import inf

import anyio

from ..errors import NotAdmitted
from ..net.timestamps import loop_clock
from ..telemetry.exchange import Exchange
from .fair_queue import FairQueue, Stage

__all__ = ("SlotQueue", "recording_wait")


@contextmanager
def recording_wait(exchange: Exchange, clock: Callable[[], float]) -> Iterator[None]:
    """Count the time that the block takes as waited for the exchange's turn."""
    began_at = clock()
    try:
        yield
    finally:
        waited = (exchange.admission_wait_seconds or 0.0) + clock() - began_at
        exchange.admission_wait_seconds = round(waited, 6)


class SlotQueue:
    """For ``slots`` that exchanges have at a time; at most ``most_waiting`` wait."""

    def __init__(self, slots: float, most_waiting: int) -> None:
        self._turns = FairQueue(slots, most_waiting)
        self._clock = loop_clock()

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    def estimated_wait(self, name: str | None) -> float:
        """How long one of that name that came now would wait."""
        return self._turns.estimated_wait(name, self._clock())

    @asynccontextmanager
    async def slot(self, exchange: Exchange, most: float = inf) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for as long as the block takes. ``most``: how many its
        client may have. Raises NotAdmitted."""
        ticket = self._turns.join(exchange.client, self._clock(), most)
        try:
            if ticket.stage is Stage.WAITING:
                turn = anyio.Event()
                ticket.wake = turn.set
                with recording_wait(exchange, self._clock):
                    await turn.wait()
            if ticket.stage is not Stage.ADMITTED:
                raise NotAdmitted(self.estimated_wait(exchange.client))
            yield
        finally:
            self._turns.leave(ticket, self._clock())
