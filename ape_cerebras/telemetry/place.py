"""A worker's place among the processes that serve one port together, and the board on which they
tell each other how they are.

The board is memory that parent and workers share: whole numbers, each written by one process at a
time and read by all. A number is one machine word, so that nobody reads half of one.
"""

import mmap
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ("Board", "Place", "Ports")

_WORD = 8  # bytes


class Ports(NamedTuple):
    """The listening sockets of a service: for its clients, and for scrapers, where these have a
    port of their own."""

    clients: Sequence[socket.socket] = ()
    scrapers: Sequence[socket.socket] = ()

    def close(self) -> None:
        for listener in (*self.clients, *self.scrapers):
            listener.close()


class Board:
    """To be made before the processes are; ``workers`` is how many there should be."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        words = memoryview(mmap.mmap(-1, _WORD * (3 + 2 * workers))).cast("q")
        self._of_all, self._up, self._open = words[:3], words[3 : 3 + workers], words[-workers:]

    # What the parent writes

    @property
    def restarts(self) -> int:
        return self._of_all[0]

    def count_restart(self) -> None:
        self._of_all[0] += 1

    def is_hurried(self) -> bool:
        """Whether what is under way has to end now."""
        return bool(self._of_all[1])

    def hurry(self) -> None:
        self._of_all[1] = 1

    # What a worker writes of itself, by its number (from 1)

    @property
    def up(self) -> int:
        """How many workers serve."""
        return sum(self._up)

    @property
    def was_up(self) -> bool:
        """Whether any worker has served."""
        return bool(self._of_all[2])

    def set_up(self, number: int) -> None:
        self._up[number - 1] = self._of_all[2] = 1

    def set_down(self, number: int) -> None:
        """Also by the parent, of a worker that could not do so itself any more."""
        self._up[number - 1] = self._open[number - 1] = 0

    def set_open(self, number: int, connections: int) -> None:
        self._open[number - 1] = connections

    def is_ahead(self, number: int) -> bool:
        """Whether another worker that serves has fewer connections open."""
        own = self._open[number - 1]
        return any(up and count < own for up, count in zip(self._up, self._open, strict=True))


@dataclass(frozen=True)
class Place:
    """One worker's; all but ``number`` is the same for all."""

    number: int
    """From 1; who takes the place of a worker that died has the same."""
    board: Board
    ports: Ports
    metrics: str
    """The directory of the files in which the workers' metrics are."""
