"""Who is next: a limited number of slots, and fair turns for those who wait for one.

Each name has a line of its own, first come, first served; the lines take turns, one ticket each. So
one name's thousand requests delay another's single one by no more than a turn. A name may have a
limit of its own; while that is reached its line is passed over. Where more wait than may, the
youngest of the longest line has to go, not whoever came last.

Nothing here waits, and nothing reads a clock: ``now`` is a value. A ticket that stops waiting by
what another does is told by its ``wake``.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from math import inf

__all__ = ("Stage", "Ticket", "FairQueue")

_PACE_OF = 32  # slots given back, over which the pace is measured


class Stage(Enum):
    """Where a ticket is."""

    WAITING = auto()
    ADMITTED = auto()
    REFUSED = auto()
    LEFT = auto()


class Ticket:
    """One request's. ``wake`` is called when somebody else's step admits or refuses it."""

    __slots__ = ("name", "stage", "wake")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.stage = Stage.WAITING
        self.wake: Callable[[], object] = lambda: None


class _Slots:
    """``most`` of them, and how fast they are given back while all are in use."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.in_use = 0
        # When all had come into use, or later, and when each was given back since.
        self._freed = deque[float](maxlen=_PACE_OF)

    @property
    def full(self) -> bool:
        return self.in_use >= self.most

    def take(self, now: float) -> None:
        self.in_use += 1
        if self.full and not self._freed:
            self._freed.append(now)

    def note_given_back(self, now: float) -> None:
        """To be told once whoever was waiting for it has had the chance to take it."""
        if self.full:
            self._freed.append(now)
        else:
            self._freed.clear()

    def seconds_for(self, turns: int, now: float) -> float:
        if not self._freed:
            return 0.0
        return turns * (now - self._freed[0]) / max(1, len(self._freed) - 1)


class _Line:
    """A name's: its slots in use, and who waits. A dictionary is a line whose middle can leave."""

    def __init__(self) -> None:
        self.slots = _Slots(inf)
        self.tickets: dict[Ticket, None] = {}


class FairQueue:
    """``slots`` that tickets have at a time; at most ``most_waiting`` wait."""

    def __init__(self, slots: float, most_waiting: int) -> None:
        self._all = _Slots(slots)
        self._most_waiting = most_waiting
        self._lines: dict[str | None, _Line] = {}
        self._rotation: dict[_Line, None] = {}  # those in which somebody waits; the next one first
        self.waiting = 0

    @property
    def in_use(self) -> int:
        return self._all.in_use

    def join(self, name: str | None, now: float, most: float = inf) -> Ticket:
        """A ticket, which is admitted, or waits, or is refused. ``most``: how many slots the name
        may have, from now on."""
        line = self._lines.setdefault(name, _Line())
        line.slots.most = most
        ticket = Ticket(name)
        line.tickets[ticket] = None
        self._rotation[line] = None
        self.waiting += 1
        self._admit(now)
        if self.waiting > self._most_waiting:
            self._refuse_one(line)
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """Give back the ticket's slot, or its place in the line; once is enough."""
        stage, ticket.stage = ticket.stage, Stage.LEFT
        if stage is Stage.WAITING:
            self._drop(ticket)
        elif stage is Stage.ADMITTED:
            both = (self._all, self._lines[ticket.name].slots)
            for slots in both:
                slots.in_use -= 1
            self._admit(now)
            for slots in both:
                slots.note_given_back(now)

    def estimated_wait(self, name: str | None, now: float) -> float:
        """How long one of that name that came now would wait, at the pace at which slots were given
        back since all have been in use: all there are, or all that the name may have."""
        line = self._lines.get(name, _Line())
        of_its_own = line.slots.seconds_for(len(line.tickets) + 1, now)
        return max(of_its_own, self._all.seconds_for(self.waiting + 1, now))

    def _admit(self, now: float) -> None:
        while not self._all.full:
            line = next((each for each in self._rotation if not each.slots.full), None)
            if line is None:
                return
            ticket = next(iter(line.tickets))
            self._drop(ticket)
            if line in self._rotation:  # its next turn is after all others'
                self._rotation[line] = self._rotation.pop(line)
            self._all.take(now)
            line.slots.take(now)
            self._settle(ticket, Stage.ADMITTED)

    def _refuse_one(self, newcomers: _Line) -> None:
        longest = max(self._rotation, key=lambda line: len(line.tickets))
        line = newcomers if len(newcomers.tickets) == len(longest.tickets) else longest
        ticket = next(reversed(line.tickets))
        self._drop(ticket)
        self._settle(ticket, Stage.REFUSED)

    def _drop(self, ticket: Ticket) -> None:
        line = self._lines[ticket.name]
        del line.tickets[ticket]
        if not line.tickets:
            del self._rotation[line]
        self.waiting -= 1

    def _settle(self, ticket: Ticket, stage: Stage) -> None:
        ticket.stage = stage
        ticket.wake()
