"""The clients' connections that are open: how many there may be, and who takes the next."""

from collections.abc import Iterator

import anyio

from ..telemetry.place import Place
from .connection import Downstream

__all__ = ("Clients",)

_COURTESY = 0.001  # seconds; a worker with fewer connections takes the next one within that


class Clients:
    """At most so many. ``place`` is a worker's; the others are told how many it has."""

    def __init__(self, most: int, place: Place | None) -> None:
        self._most = most
        self._place = place
        self._open: set[Downstream] = set()
        self._someone_left = anyio.Event()

    def __iter__(self) -> Iterator[Downstream]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, downstream: Downstream) -> None:
        self._open.add(downstream)
        self._tell()

    def discard(self, downstream: Downstream) -> None:
        self._open.discard(downstream)
        self._tell()
        self._someone_left.set()

    def _tell(self) -> None:
        if self._place is not None:
            self._place.board.set_open(self._place.number, len(self._open))

    async def wait_for_room(self) -> None:
        """Return once there is room for another connection. One of several workers that has more
        than another lets that go first."""
        while len(self._open) >= self._most:
            await self._until_someone_leaves()
        if self._place is not None and self._place.board.is_ahead(self._place.number):
            await anyio.sleep(_COURTESY)

    async def wait_for_the_last(self) -> None:
        """Return once none is open."""
        while self._open:
            await self._until_someone_leaves()

    async def _until_someone_leaves(self) -> None:
        if self._someone_left.is_set():
            self._someone_left = anyio.Event()
        await self._someone_left.wait()
