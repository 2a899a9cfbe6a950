"""A connection inside the process: two byte streams, joined, that need no sockets and no clock.

Each ``send`` arrives as one ``receive``, so that a test decides how bytes are cut. Both directions
end independently, as those of a TCP connection do. Closing awaits nothing.
"""

from collections import deque
from collections.abc import Awaitable, Callable

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from ape_cerebras.net.stream import READ_BYTES, PeerStalled, TimestampedStream

__all__ = ("MemoryStream", "memory_pair")


class _Way:
    """One direction: what was sent and has not been received yet."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity  # bytes
        self.chunks: deque[bytes] = deque()
        self.ended = False  # the sender sends no more
        self.unread = False  # the receiver receives no more
        self._changed = anyio.Event()

    @property
    def has_room(self) -> bool:
        return sum(map(len, self.chunks)) < self.capacity

    def notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def change(self) -> None:
        await self._changed.wait()


class MemoryStream(TimestampedStream):
    """One end; see ``memory_pair``. ``sent`` are the chunks sent from it so far."""

    def __init__(self, incoming: _Way, outgoing: _Way) -> None:
        super().__init__()
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        self._waiting = anyio.CancelScope()
        self.sent: list[bytes] = []

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        await anyio.lowlevel.checkpoint()
        way = self._incoming
        while not (way.chunks or way.ended or self._closed):
            if self.read_timeout == 0:
                raise PeerStalled
            if self.before_wait is not None:
                await self.before_wait()
            if not (way.chunks or way.ended or self._closed):
                self.read_wait_seconds += await self._wait(way.change, self.read_timeout)
        if self._closed:
            raise ClosedResourceError
        self.arrived_at = anyio.current_time()
        self.reads_without_timestamp += 1
        if not way.chunks:
            raise EndOfStream
        chunk = way.chunks.popleft()
        if len(chunk) > max_bytes:
            way.chunks.appendleft(chunk[max_bytes:])
        way.notify()
        return chunk[:max_bytes]

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        way = self._outgoing
        while not (way.has_room or way.unread or self._closed):
            self.write_wait_seconds += await self._wait(way.change, self.write_timeout)
        if self._closed or way.ended:
            raise ClosedResourceError
        if way.unread:
            raise BrokenResourceError
        self.left_at = anyio.current_time()
        if item:
            self.sent.append(bytes(item))
            way.chunks.append(bytes(item))
            way.notify()
        self.written_at = anyio.current_time()

    async def _wait(self, change: Callable[[], Awaitable[None]], timeout: float) -> float:
        """Wait for the other end; the seconds that took."""
        began_at = anyio.current_time()
        with anyio.CancelScope(deadline=min(began_at + timeout, self.deadline)) as self._waiting:
            await change()
        if self._waiting.cancelled_caught:
            raise PeerStalled
        return anyio.current_time() - began_at

    def set_deadline(self, seconds: float | None) -> None:
        super().set_deadline(seconds)
        self._waiting.deadline = self.deadline

    async def send_eof(self) -> None:
        self._outgoing.ended = True
        self._outgoing.notify()

    def close(self) -> None:
        self._closed = True
        self._outgoing.ended = True
        self._incoming.unread = True
        self._outgoing.notify()
        self._incoming.notify()

    def peer_is_gone(self) -> bool:
        """True once the other end is closed; one that has only ended its sending is there."""
        return self._outgoing.unread


def memory_pair(capacity: float = float("inf")) -> tuple[MemoryStream, MemoryStream]:
    """Two joined ends. With a ``capacity`` in bytes, ``send`` waits while the other end has as
    many still to receive."""
    there, back = _Way(capacity), _Way(capacity)
    return MemoryStream(back, there), MemoryStream(there, back)
