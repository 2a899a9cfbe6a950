"""Who is next: a limited number of slots, and fair turns for those who wait for one.

Each name has a line of its own, first come, first served; the lines take turns, one ticket each. So
one name's thousand requests delay another's single one by no more than a turn. Where more wait than
may, the youngest of the longest line has to go, not whoever came last.

Nothing here waits, and nothing reads a clock: ``now`` is a value. A ticket that stops waiting by
what another does is told by its ``wake``.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

__all__ = ("Stage", "Ticket", "Turns")

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


class Turns:
    """``slots`` that tickets have at a time; at most ``most_waiting`` wait."""

    def __init__(self, slots: float, most_waiting: int) -> None:
        self._slots = slots
        self._most_waiting = most_waiting
        # Names that wait, whose turn is next first. A dictionary is a line whose middle can leave.
        self._lines: dict[str | None, dict[Ticket, None]] = {}
        # When all slots had come into use, or later, and when each was given back since.
        self._freed = deque[float](maxlen=_PACE_OF)
        self.in_use = 0
        self.waiting = 0

    def join(self, name: str | None, now: float) -> Ticket:
        """A ticket, which is admitted, or waits, or is refused."""
        ticket = Ticket(name)
        self._lines.setdefault(name, {})[ticket] = None
        self.waiting += 1
        self._admit()
        if self.in_use == self._slots and not self._freed:
            self._freed.append(now)
        if self.waiting > self._most_waiting:
            self._refuse_one(self._lines[name])
        return ticket

    def leave(self, ticket: Ticket, now: float) -> None:
        """Give back the ticket's slot, or its place in the line; once is enough."""
        stage, ticket.stage = ticket.stage, Stage.LEFT
        if stage is Stage.WAITING:
            self._drop(ticket)
        elif stage is Stage.ADMITTED:
            self.in_use -= 1
            self._admit()
            if self.in_use == self._slots:
                self._freed.append(now)
            else:
                self._freed.clear()

    def seconds_to_a_turn(self, now: float) -> float:
        """How long one that came now would wait, at the pace at which slots were given back since
        all of them have been in use; 0 where they are not."""
        if not self._freed:
            return 0.0
        pace = (now - self._freed[0]) / max(1, len(self._freed) - 1)
        return pace * (self.waiting + 1)

    def _admit(self) -> None:
        while self._lines and self.in_use < self._slots:
            name, line = next(iter(self._lines.items()))
            ticket = next(iter(line))
            self._drop(ticket)
            if line:
                self._lines[name] = self._lines.pop(name)  # its next turn is after all others'
            self.in_use += 1
            self._settle(ticket, Stage.ADMITTED)

    def _refuse_one(self, newcomers: dict[Ticket, None]) -> None:
        longest = max(self._lines.values(), key=len)
        line = newcomers if len(newcomers) == len(longest) else longest
        ticket = next(reversed(line))
        self._drop(ticket)
        self._settle(ticket, Stage.REFUSED)

    def _drop(self, ticket: Ticket) -> None:
        line = self._lines[ticket.name]
        del line[ticket]
        if not line:
            del self._lines[ticket.name]
        self.waiting -= 1

    def _settle(self, ticket: Ticket, stage: Stage) -> None:
        ticket.stage = stage
        ticket.wake()
