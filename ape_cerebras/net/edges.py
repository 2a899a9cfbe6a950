"""What the kernel has to say of sockets, told by edges: once for each change.

anyio's waits tell the kernel of a descriptor and, once it is ready, to forget it: two system calls
for each wait. Here the kernel is told once for each connection (epoll(7), "edge-triggered"), by an
epoll instance of our own, whose one descriptor the event loop watches. Whoever is told of an edge
has to read or write until the kernel has no more before waiting for the next.

Linux only, on asyncio's loops and on trio.
"""

import asyncio
import select
from collections.abc import Callable

import sniffio
import trio
from anyio.lowlevel import RunVar

__all__ = ("ENDED", "READABLE", "WRITABLE", "EdgePoller", "edge_poller")

_HERE = hasattr(select, "epoll")
_AT_ONCE = 256  # sockets that one look reports; the loop looks again at once if there are more

READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR if _HERE else 0
"""Bits of what is told: there is something to read, if only that the connection has ended."""
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR if _HERE else 0
"""The peer has ended its sending, or the connection is broken."""
WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR if _HERE else 0


class EdgePoller:
    """The sockets of one event loop, by their descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[int], None]] = {}

    def fileno(self) -> int:
        """Readable when there is something to tell."""
        return self._epoll.fileno()

    def watch(self, descriptor: int, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called with the bits of each edge. It must not raise."""
        self._register(descriptor, select.EPOLLIN, tell)

    def watch_end(self, descriptor: int, tell: Callable[[int], None]) -> None:
        """The same, but nothing before the end is told: it costs nothing until then."""
        self._register(descriptor, 0, tell)

    def _register(self, descriptor: int, bits: int, tell: Callable[[int], None]) -> None:
        self._epoll.register(descriptor, bits | select.EPOLLRDHUP | select.EPOLLET)
        self._told[descriptor] = tell

    def watch_writing_too(self, descriptor: int) -> None:
        """Few sockets ever are too full to be written, so this has to be asked for."""
        bits = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
        self._epoll.modify(descriptor, bits)

    def forget(self, descriptor: int) -> None:
        """To be called before the socket is closed; once is enough."""
        if self._told.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def tell(self) -> None:
        """Tell what has come."""
        for descriptor, bits in self._epoll.poll(0, _AT_ONCE):
            told = self._told.get(descriptor)
            if told is not None:  # else it was forgotten by one who was told before it
                told(bits)

    def close(self) -> None:
        self._epoll.close()


_poller_of_this_loop: RunVar[EdgePoller] = RunVar("ape_cerebras edge poller")


def edge_poller() -> EdgePoller | None:
    """Those of the running event loop; None where there are none."""
    try:
        return _poller_of_this_loop.get()
    except LookupError:
        if not _HERE:
            return None
    found = EdgePoller()
    if sniffio.current_async_library() == "trio":
        trio.lowlevel.spawn_system_task(_tell_on_trio, found)
    else:
        # The loop holds them, and they hold no loop: so they end with it.
        asyncio.get_running_loop().add_reader(found.fileno(), found.tell)
    _poller_of_this_loop.set(found)
    return found


async def _tell_on_trio(found: EdgePoller) -> None:
    try:
        while True:
            await trio.lowlevel.wait_readable(found.fileno())
            found.tell()
    finally:
        found.close()
