"""Takes note of arrivals before their readers have their turn.

The kernel joins segments that wait to be read, and keeps the stamp of the last only. A busy event
loop that comes a few milliseconds late would take the second event of a stream for its first. So
sockets from which a first token is awaited are watched here, by an epoll instance of their own, and
whenever any socket of the process is read or written a look is taken at it. That costs 0.7 µs where
nothing has come, and 17 µs where something has: its stamp is read then, not the bytes, which wait
for their reader (CPU, CPython 3.11, one core of a virtual server).
"""

import select
from collections.abc import Callable

from anyio.lowlevel import RunVar

__all__ = ("ArrivalPeeker", "arrival_peeker")

_AT_ONCE = 64  # sockets that one look reports; the next look reports the others


class ArrivalPeeker:
    """Linux only. Sockets are known by their descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, note: Callable[[], None]) -> None:
        """Have ``note`` called at the first look after each arrival, and after what has come
        before. Raises OSError where there is no room for one more."""
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        self._watched[descriptor] = note

    def forget(self, descriptor: int) -> None:
        """Watch that one no more; to be called before it is closed."""
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def poll(self) -> None:
        """Note what has come."""
        if self._watched:
            for descriptor, _ in self._epoll.poll(0, _AT_ONCE):
                self._watched[descriptor]()


_peeker_of_this_loop: RunVar[ArrivalPeeker] = RunVar("ape_cerebras arrival peeker")


def arrival_peeker() -> ArrivalPeeker:
    """The one of the running event loop."""
    try:
        return _peeker_of_this_loop.get()
    except LookupError:
        found = ArrivalPeeker()
        _peeker_of_this_loop.set(found)
        return found
