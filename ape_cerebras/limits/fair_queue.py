"""A limited number of slots, and a fair queue of requests that wait for one.

Each client has a queue of its own, first in, first out; the queues are served round-robin, one
request each. So a thousand requests of one client delay a single request of another by one slot
at most. A client may have a slot limit of its own; while it is reached, its queue is skipped. When
the queue is full, the newest request of the longest per-client queue is rejected.

``join`` and ``leave`` decide without waiting, and read no clock: ``now`` is a value. ``slot`` adds
the waiting: the slot is held by a context manager and released when it exits.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

import anyio

from ..errors import NotAdmitted
from ..telemetry.exchange import Exchange

__all__ = ("FairQueue", "Stage", "Ticket", "recording_wait", "time_left")

_RELEASES_MEASURED = 32  # the latest ones, of which the release rate is estimated


class Stage(Enum):
    """The state of a ticket."""

    WAITING = auto()
    ADMITTED = auto()
    REFUSED = auto()
    LEFT = auto()


class Ticket:
    """A request's place in the queue."""

    __slots__ = ("decided", "name", "stage")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.stage = Stage.WAITING
        self.decided: anyio.Event | None = None
        """Set when another request's ``join`` or ``leave`` admits or refuses this one."""

    def decide(self, stage: Stage) -> None:
        self.stage = stage
        if self.decided is not None:
            self.decided.set()


@dataclass(slots=True)
class _Slots:
    """Slots in use, and how fast they are released while all of them are in use."""

    limit: float
    in_use: int = 0
    # First, when all slots came into use, or later; then, when each was released since.
    released_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RELEASES_MEASURED))

    @property
    def full(self) -> bool:
        return self.in_use >= self.limit

    def estimated_wait(self, releases: int, now: float) -> float:
        """Seconds until so many slots are released; 0 if nothing is known."""
        if not self.released_at:
            return 0.0
        return releases * (now - self.released_at[0]) / max(1, len(self.released_at) - 1)


@dataclass(slots=True, eq=False)
class _ClientQueue:
    """One client's slots and waiting tickets; a dictionary, because tickets leave in any order."""

    slots: _Slots = field(default_factory=lambda: _Slots(inf))
    tickets: dict[Ticket, None] = field(default_factory=dict)


class FairQueue:
    """``slots`` are held at a time; at most ``max_waiting`` tickets wait."""

    def __init__(self, slots: float, max_waiting: int) -> None:
        self._slots = _Slots(slots)
        self._max_waiting = max_waiting
        self._queues: dict[str | None, _ClientQueue] = {}
        self._rotation: dict[_ClientQueue, None] = {}  # with waiting tickets; the next one first
        self.waiting = 0

    @property
    def in_use(self) -> int:
        return self._slots.in_use

    def join(self, name: str | None, now: float, max_slots: float = inf) -> Ticket:
        """A new ticket: admitted, waiting or refused. ``max_slots`` is the client's own limit from
        now on."""
        queue = self._queues.setdefault(name, _ClientQueue())
        queue.slots.limit = max_slots
        ticket = Ticket(name)
        queue.tickets[ticket] = None
        self._rotation[queue] = None
        self.waiting += 1
        self._admit(now)
        if self.waiting > self._max_waiting:
            longest = max(self._rotation, key=lambda each: len(each.tickets))
            is_longest = len(queue.tickets) == len(longest.tickets)
            newest = next(reversed((queue if is_longest else longest).tickets))
            self._remove(newest)
            newest.decide(Stage.REFUSED)
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """Release the ticket's slot, or its place in the queue. A second call does nothing."""
        stage, ticket.stage = ticket.stage, Stage.LEFT
        if stage is Stage.WAITING:
            self._remove(ticket)
        elif stage is Stage.ADMITTED:
            both = (self._slots, self._queues[ticket.name].slots)
            for slots in both:
                slots.in_use -= 1
            self._admit(now)
            for slots in both:  # only now: a waiting request may have taken the slot
                if slots.full:
                    slots.released_at.append(now)
                else:
                    slots.released_at.clear()

    def estimated_wait(self, name: str | None, now: float) -> float:
        """Seconds that a request of that client would wait if it came now, at the rate at which
        slots have been released since all were in use: all there are, or all of the client."""
        queue = self._queues.get(name, _ClientQueue())
        own = queue.slots.estimated_wait(len(queue.tickets) + 1, now)
        return max(own, self._slots.estimated_wait(self.waiting + 1, now))

    @asynccontextmanager
    async def slot(
        self,
        exchange: Exchange,
        clock: Callable[[], float],
        max_slots: float = inf,
        timeout: float = inf,
    ) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the block. ``max_slots`` is the client's own limit.

        Raises NotAdmitted when the queue is full, or once the exchange has waited ``timeout``
        seconds in all.
        """
        ticket = self.join(exchange.client, clock(), max_slots)
        try:
            if ticket.stage is Stage.WAITING:
                ticket.decided = anyio.Event()
                left = time_left(exchange, timeout)
                with recording_wait(exchange, clock), anyio.move_on_after(left):
                    await ticket.decided.wait()
            if ticket.stage is not Stage.ADMITTED:
                self.leave(ticket, clock())  # before the estimate: it waits no longer
                raise NotAdmitted(self.estimated_wait(exchange.client, clock()))
            yield
        finally:
            self.leave(ticket, clock())

    def _admit(self, now: float) -> None:
        while not self._slots.full:
            queue = next((each for each in self._rotation if not each.slots.full), None)
            if queue is None:
                return
            ticket = next(iter(queue.tickets))
            self._remove(ticket)
            if queue in self._rotation:  # more of it waits: after all other clients
                self._rotation[queue] = self._rotation.pop(queue)
            for slots in (self._slots, queue.slots):
                slots.in_use += 1
                if slots.full and not slots.released_at:
                    slots.released_at.append(now)
            ticket.decide(Stage.ADMITTED)

    def _remove(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.name]
        del queue.tickets[ticket]
        if not queue.tickets:
            del self._rotation[queue]
        self.waiting -= 1


@contextmanager
def recording_wait(exchange: Exchange, clock: Callable[[], float]) -> Iterator[None]:
    """Add the duration of the block to the exchange's admission wait."""
    began_at = clock()
    try:
        yield
    finally:
        waited = (exchange.admission_wait_seconds or 0.0) + clock() - began_at
        exchange.admission_wait_seconds = round(waited, 6)


def time_left(exchange: Exchange, timeout: float) -> float:
    """Seconds that an exchange may still wait, of ``timeout`` in all."""
    return max(0.0, round(timeout - (exchange.admission_wait_seconds or 0.0), 6))
