"""Which connections have been closed by their peers, also while nobody reads from them.

The kernel is told of each connection once, by an epoll instance that wants to know of nothing but
its end, and that as an edge (epoll(7), "edge-triggered"). So an end becomes known at once, and no
arrival before it wakes the loop on this account: holding connections and using them costs nothing
more, however many there are.
"""

import select
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import anyio
from anyio.abc import ByteStream, SocketAttribute

__all__ = ("Closings",)

Watched = TypeVar("Watched")


class Closings(Generic[Watched]):
    """What is watched is known by its socket, and forgotten with it: by the kernel when the socket
    is closed, here when nobody else holds it any more."""

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._watched: WeakValueDictionary[int, Watched] = WeakValueDictionary()

    def watch(self, stream: ByteStream, watched: Watched) -> bool:
        """Have ``next`` tell of ``watched`` when the stream's peer has closed it. Returns whether
        that can be done: there is a socket, and the system has epoll."""
        sock = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - this is not Django's
        if self._epoll is None or sock is None:
            return False
        self._watched[sock.fileno()] = watched
        self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        return True

    async def next(self) -> list[Watched]:
        """Wait until peers have closed what is watched, and return that."""
        while not (closed := self._look()):
            if self._epoll is None:
                await anyio.sleep_forever()
            else:
                await anyio.wait_readable(self._epoll.fileno())
        return closed

    def _look(self) -> list[Watched]:
        events = [] if self._epoll is None else self._epoll.poll(0)
        found = (self._watched.get(descriptor) for descriptor, _ in events)
        return [watched for watched in found if watched is not None]
