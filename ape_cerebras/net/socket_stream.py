"""A timestamped stream over a plain socket.

It tries first, and waits only when the operation would block. For a stream of tokens that saves
most of the event-loop iterations that anyio's own stream takes (a checkpoint for each send, a
change of epoll interest for each receive).

Bytes have arrived when the kernel got them, where it provides timestamps (``timestamps``); else
when they are read.
"""

import math
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock
from anyio.abc import SocketAttribute

from .event_loop import of_this_loop
from .readiness import readiness_of
from .stream import READ_BYTES, PeerStalled, TimestampedStream
from .timestamps import (
    TIMESTAMP_SPACE,
    Arrival,
    ArrivalClock,
    ArrivalPeeker,
    Arrivals,
    CoalescingWatch,
    enable_timestamps,
    timestamp_in,
)

__all__ = ("SocketStream",)

# After so many operations in a row without a wait, yield to the event loop all the same: a fast
# upstream with a fast client would otherwise keep every other connection, and every cancellation,
# waiting. A large operation counts once more for each so many bytes. It comes before an operation,
# never after: a cancellation there must not lose what was received.
_YIELD_EVERY = 32
_BYTES_OF_ONE = 4 * 1024


class SocketStream(TimestampedStream):
    """A byte stream over a connected, non-blocking stream socket, which it owns.

    ``silent_until``: nothing had arrived before that; by default, before now.
    """

    def __init__(self, sock: socket.socket, *, silent_until: float | None = None) -> None:
        super().__init__()
        if silent_until is not None:
            self.arrived_at = silent_until
        self._socket = sock
        self._readiness = readiness_of(sock)
        self._reading = self._readiness.reading
        self._until_yield = _YIELD_EVERY
        self._silent_until = self.arrived_at
        kernel_timestamps = enable_timestamps(sock)
        self._arrival_clock = of_this_loop(ArrivalClock) if kernel_timestamps else None
        self._peeker = of_this_loop(ArrivalPeeker) if kernel_timestamps else None
        self._arrivals: Arrivals = deque()  # those that were peeked at, and wait to be read
        self._coalescing: CoalescingWatch | None = None  # while these are peeked at
        # Whether the latest read has left nothing, so that to read again would be in vain until
        # more has come (epoll(7), question 9). Where urgent data is about, a short read leaves
        # something, and only a read that would block shows that nothing is left.
        self._drained = False
        self._wait_began_at = self._wait_ended_at = 0.0
        self._waits = False
        self._read_since_wait = 0
        self._handler: Callable[[], bool] | None = None

    def peek_arrivals(self, on: bool) -> None:
        super().peek_arrivals(on)
        on = on and self.kernel_timestamps
        if on is (self._coalescing is not None) or self._peeker is None:
            return
        if on:
            with suppress(OSError):  # no room for one more: its arrivals may be coalesced
                self._peeker.watch(self._socket, self._arrivals)
                self._coalescing = CoalescingWatch(self._socket, self.now())
        else:
            self._peeker.forget(self._socket)
            self._coalescing, self.arrival_seconds = None, 0.0

    def watch(self, hook: Callable[[], None] | None, *, end_only: bool = False) -> bool:
        watches = self._readiness.watch(hook, end_only=end_only)
        if watches and hook is not None and not end_only and self.may_have_arrived:
            hook()
        return watches

    def handle_arrivals(self, handler: Callable[[], bool] | None) -> bool:
        self._handler = handler
        return self._readiness.handle(None if handler is None else self._handle_arrival)

    def _handle_arrival(self) -> bool:
        if self._peeker is not None and self._peeker.watched:
            self._peeker.poll()
        self._end_wait()
        self._drained = False  # until a read shows it: TLS reads until it would block
        goes_on = self._handler is not None and self._handler() and self._drained
        if goes_on:
            self._reading.set_deadline(self._begin_wait())
        return goes_on

    def set_deadline(self, seconds: float | None) -> None:
        super().set_deadline(seconds)
        self._reading.set_deadline(self.deadline)

    @property
    def may_have_arrived(self) -> bool:
        return self._reading.ready or not self._drained

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        if self._peeker is not None and self._peeker.watched:
            self._peeker.poll()
        self._until_yield -= 1
        if self._until_yield <= 0:
            self._until_yield = _YIELD_EVERY
            if self.read_timeout:  # else it must not wait
                await anyio.lowlevel.checkpoint()
        if self._drained and not self._reading.ready:
            await self._wait_to_read()
        while True:
            try:
                if self._coalescing is None:
                    return self._read_arrived(max_bytes)
                return self._read_peeked(self._coalescing, max_bytes)
            except WouldBlock:
                await self._wait_to_read()

    def receive_nowait(self, max_bytes: int = READ_BYTES) -> bytes:
        if self._drained and not self._reading.ready:
            raise WouldBlock
        if self._coalescing is None:
            return self._read_arrived(max_bytes)
        return self._read_peeked(self._coalescing, max_bytes)

    def _read_peeked(self, coalescing: CoalescingWatch, max_bytes: int) -> bytes:
        since = self._arrivals[0].absent_at if self._arrivals else -math.inf
        coalescing.before_read(self.now())
        try:
            data = self._read_arrived(max_bytes)
        except WouldBlock:
            coalescing.found_empty()
            raise
        self.arrival_seconds = coalescing.possible_delay(self.arrived_at, since, self._arrivals)
        if self._drained:
            coalescing.found_empty()
        return data

    def _read_arrived(self, max_bytes: int) -> bytes:
        began_at = self.now()
        at_most = min(max_bytes, self._arrivals[0][0]) if self._arrivals else max_bytes
        try:
            data, ancillary, _, _ = self._socket.recvmsg(at_most, TIMESTAMP_SPACE)
        except BlockingIOError:
            self._drained = True
            self._silent_until = began_at
            raise WouldBlock from None
        except OSError:
            is_closed = self._socket.fileno() < 0
            raise (ClosedResourceError if is_closed else BrokenResourceError) from None
        if not data:
            self.arrived_at = self.now()
            raise EndOfStream
        size = len(data)
        if not self._arrivals:
            timestamp = timestamp_in(ancillary)
        else:
            peeked, timestamp, absent_at = self._arrivals.popleft()
            if size < peeked:
                self._arrivals.appendleft(Arrival(peeked - size, timestamp, absent_at))
        self._note_arrival(timestamp)
        self._drained = size < at_most and not self._reading.reads_stop_short
        if self._drained:
            self._silent_until = began_at
        self._until_yield -= size // _BYTES_OF_ONE
        self.reads_without_timestamp += not self.has_timestamp
        self._read_since_wait += size
        if self._read_since_wait > self.most_at_once:
            self.most_at_once = self._read_since_wait
        return data

    def _note_arrival(self, timestamp: int) -> None:
        arrived_at, now = None, self.now()
        if timestamp and self.kernel_timestamps and self._arrival_clock is not None:
            arrived_at = self._arrival_clock.arrival(timestamp, self._silent_until, now)
        self.has_timestamp = arrived_at is not None
        if arrived_at is None:
            arrived_at = now
        if arrived_at > self.arrived_at:  # else its segment overtook those that it follows
            self.arrived_at = arrived_at
        if self._wait_ended_at > self.arrived_at:  # since then the event loop was waited for
            waited_from = max(self.arrived_at, self._wait_began_at)
            self.read_wait_seconds -= self._wait_ended_at - waited_from
        self._wait_ended_at = 0.0

    async def _wait_to_read(self) -> None:
        if self.read_timeout == 0:
            raise PeerStalled
        if self.before_wait is not None:
            await self.before_wait()
        until = self._begin_wait()
        try:
            if not await self._reading.wait(until):
                raise PeerStalled
        finally:
            self._end_wait()

    def _begin_wait(self) -> float:
        """Note that a wait begins; return when it ends at the latest."""
        self._waits = True
        self._read_since_wait = 0
        self._until_yield = _YIELD_EVERY
        self._wait_began_at = self.now()
        return min(self._wait_began_at + self.read_timeout, self.deadline)

    def _end_wait(self) -> None:
        if self._waits:
            self._waits = False
            self._wait_ended_at = self.now()
            self.read_wait_seconds += self._wait_ended_at - self._wait_began_at

    async def send(self, item: bytes) -> None:
        # As in receive: a helper would be one more coroutine for every read and every write.
        if self._peeker is not None and self._peeker.watched:
            self._peeker.poll()
        self._until_yield -= 1
        if self._until_yield <= 0:
            self._until_yield = _YIELD_EVERY
            if self.read_timeout:  # else it is for a read through TLS, which must not wait
                await anyio.lowlevel.checkpoint()
        self._until_yield -= len(item) // _BYTES_OF_ONE
        unsent = memoryview(item)
        while unsent:
            began_at = self.left_at = self.now()
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except BlockingIOError:
                if not self.read_timeout:  # likewise; on trio it would wait in the poller's task
                    raise BrokenResourceError from None
                self._until_yield = _YIELD_EVERY
                until = min(began_at + self.write_timeout, self.deadline)
                try:
                    if not await self._readiness.writing.wait(until):
                        raise PeerStalled from None
                finally:
                    self.write_wait_seconds += self.now() - began_at
            except OSError:
                is_closed = self._socket.fileno() < 0
                raise (ClosedResourceError if is_closed else BrokenResourceError) from None
        self.written_at = self.now()

    def send_nowait(self, item: bytes) -> int:
        """Send what the socket takes of ``item`` at once; return how many bytes, perhaps 0."""
        try:
            return self._socket.send(item)
        except OSError:
            return 0

    def send_now(self, item: bytes) -> int:
        if self._peeker is not None and self._peeker.watched:
            self._peeker.poll()
        self.left_at = self.now()
        try:  # as ``send_nowait``, without its call
            sent = self._socket.send(item)
        except OSError:
            return 0
        self.written_at = self.now()
        return sent

    async def send_eof(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self.peek_arrivals(False)
            self._readiness.close()
            self._socket.close()

    def reset(self) -> None:
        """Close with a TCP reset, so that the peer cannot take what it got for complete."""
        self.reset_on_close(True)
        self.close()

    def reset_on_close(self, on: bool) -> None:
        """Whether the kernel resets the connection when it is closed, also by the process's end."""
        linger_for_0_seconds = bytes((on, 0, 0, 0, 0, 0, 0, 0))
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_0_seconds)

    def peer_is_gone(self) -> bool:
        """True after a reset, or once both directions are shut; a half-closed peer is there."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLERR and POLLHUP are always reported
        return bool(poll.poll(0))

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket}
