"""Streams that know when their bytes arrived, over plain sockets.

``SocketStream`` works on a non-blocking socket and tries first: it asks the event loop only when
the kernel has said "would block". For a stream of tokens that saves most trips through the loop
that anyio's own stream makes (a checkpoint for each send, a change of epoll interest for each
receive). ``wrapped`` gives the same face, ``TimestampedStream``, to any anyio byte stream.

They stamp every arrival in ``arrived_at``, keep account of the time they spent waiting, and call
the hook ``before_wait`` just before a read has to wait: the moment to send on what was held back.
An arrival is the moment when the kernel got the bytes, where it tells (``stamps``); the moment of
the read where it does not.

Times are readings of the event loop's monotonic clock (``stamps.loop_clock``).
"""

import math
import select
import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock
from anyio.abc import ByteStream, SocketAttribute

from .arrivals import Receiver
from .readiness import readiness_of
from .timestamps import loop_clock

__all__ = (
    "READ_BYTES",
    "PeerStalled",
    "SocketStream",
    "TimestampedStream",
)

READ_BYTES = 64 * 1024

# After so many operations in a row that needed no wait, the loop gets a turn all the same: a fast
# upstream with a fast client would else keep every other connection, and every cancellation, out.
# Large ones count for as many as they have times so many bytes.
_TURN_EVERY = 32
_BYTES_OF_ONE = 4 * 1024


class PeerStalled(Exception):
    """A read or a write made no progress for as long as it may. Not an OSError, as TimeoutError
    is, because anyio's TLS stream takes every OSError for a broken connection."""


class TimestampedStream(ByteStream):
    """What these streams have in common; see the module's docstring.

    ``arrived_at``: when the bytes of the latest ``receive`` arrived; never before those before.
    ``has_timestamp``: whether the kernel has said so; else it is the moment of the read.
    ``reads_without_timestamp``: for how many reads it was that; ever growing.
    ``left_at``: when the last bytes of the latest ``send`` were about to be handed over. An answer
    cannot have come before, however late the kernel lets this process go on.
    ``written_at``: when they had been.
    ``read_wait_seconds``, ``write_wait_seconds``: time spent waiting for the peer, in vain or not;
    ever growing. What the loop took to notice an arrival is not the peer's.
    ``most_at_once``: the most bytes read in a row, without a wait between, since it was last set.
    ``read_timeout``, ``write_timeout``: how long one wait may take; None is for ever. With a
    ``read_timeout`` of 0 nothing is waited for, nor ``before_wait`` called: PeerStalled at once.
    """

    def __init__(self) -> None:
        self._clock = loop_clock()
        self.arrived_at = self.left_at = self.written_at = self._clock()
        self.has_timestamp = False
        self.reads_without_timestamp = 0
        self.most_at_once = 0
        self.read_wait_seconds = self.write_wait_seconds = 0.0
        self.read_timeout: float | None = None
        self.write_timeout: float | None = None
        self._deadline = math.inf  # of all waits
        self.before_wait: Callable[[], Awaitable[None]] | None = None

    @abstractmethod
    def close(self) -> None:
        """Close at once, without awaiting: safe in any ``finally``."""

    def receive_nowait(self) -> bytes:
        """What has arrived; raises WouldBlock where nothing has or that cannot be told, and what
        ``receive`` raises."""
        raise WouldBlock

    def watch(self, hook: Callable[[], None] | None) -> bool:
        """Have ``hook``, which must not raise, called at whatever arrives, an end too, while nobody
        receives; not once it is None. False where that cannot be done."""
        return False

    def watch_end(self, hook: Callable[[], None]) -> bool:
        """Have ``hook``, which must not raise, called when the peer has ended its sending or the
        connection is broken, whether anybody receives or not; instead of ``watch``, and at no cost
        before. False where that cannot be done."""
        return False

    def now(self) -> float:
        """A reading of the clock that all these moments are of."""
        return self._clock()

    def set_deadline(self, seconds: float | None) -> None:
        """End every wait so many seconds from now at the latest, also a read that waits already.
        None removes the deadline."""
        self._deadline = math.inf if seconds is None else self._clock() + seconds

    def _end_of_wait(self, begin: float, timeout: float | None) -> float:
        """When a wait ends at the latest that may take ``timeout``."""
        return self._deadline if timeout is None else min(begin + timeout, self._deadline)

    def use_read_times(self) -> None:
        """Take the moment of the read for the arrival from here on, whatever the kernel says."""

    def peek_arrivals(self, on: bool) -> None:
        """Whether to tell what comes first from what joins it before it is read, where that can be
        told: worth it while a first token is awaited."""

    @abstractmethod
    def peer_is_gone(self) -> bool:
        """Whether it is known that the peer takes no more bytes."""

    async def aclose(self) -> None:
        self.close()


class SocketStream(TimestampedStream):
    """A byte stream over a connected, non-blocking stream socket, which it owns.

    ``silent_until``: nothing had arrived before that; by default, before now. Raises what anyio's
    streams raise (EndOfStream, BrokenResourceError, ClosedResourceError), and PeerStalled.
    """

    def __init__(self, sock: socket.socket, *, silent_until: float | None = None) -> None:
        super().__init__()
        self._socket = sock
        self._turns = _TURN_EVERY
        self._readiness = readiness_of(sock)
        if silent_until is not None:
            self.arrived_at = silent_until
        self._receiver = Receiver(sock, self._clock, self.arrived_at)
        self._wait_began_at = self._wait_ended_at = 0.0
        self._read_since_wait = 0

    def use_read_times(self) -> None:
        self._receiver.use_read_times()

    def peek_arrivals(self, on: bool) -> None:
        self._receiver.peek_arrivals(on)

    def watch(self, hook: Callable[[], None] | None) -> bool:
        return self._readiness.watch(hook)

    def watch_end(self, hook: Callable[[], None]) -> bool:
        return self._readiness.watch_end(hook)

    def set_deadline(self, seconds: float | None) -> None:
        super().set_deadline(seconds)
        self._readiness.set_deadline(self._deadline)

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        if self._must_take_turn():
            await anyio.lowlevel.checkpoint()
        if self._nothing_has_come():
            await self._wait_to_read()
        while True:
            try:
                return self._read(max_bytes)
            except WouldBlock:
                await self._wait_to_read()

    def receive_nowait(self, max_bytes: int = READ_BYTES) -> bytes:
        if self._nothing_has_come():
            raise WouldBlock
        return self._read(max_bytes)

    def _nothing_has_come(self) -> bool:
        """Whether to read would be in vain, as far as that is known; it costs a system call."""
        return self._receiver.drained and self._readiness.untold

    def _read(self, max_bytes: int) -> bytes:
        try:
            data = self._receiver.read(max_bytes)
        except BlockingIOError:
            raise WouldBlock from None
        except OSError as error:
            raise self._translated(error) from None
        self.arrived_at = self._receiver.arrived_at
        if not data:
            raise EndOfStream
        self._account_for(data)
        return data

    async def _wait_to_read(self) -> None:
        if self.read_timeout == 0:
            raise PeerStalled
        self._read_since_wait = 0
        if self.before_wait is not None:
            await self.before_wait()
        self._wait_began_at = now = self._clock()
        try:
            self._turns = _TURN_EVERY
            if not await self._readiness.readable(self._end_of_wait(now, self.read_timeout)):
                raise PeerStalled
        finally:
            self._wait_ended_at = self._clock()
            self.read_wait_seconds += self._wait_ended_at - self._wait_began_at

    def _account_for(self, data: bytes) -> None:
        size = len(data)
        self._turns -= size // _BYTES_OF_ONE
        self.has_timestamp = self._receiver.has_timestamp
        self.reads_without_timestamp += not self.has_timestamp
        self._read_since_wait += size
        if self._read_since_wait > self.most_at_once:
            self.most_at_once = self._read_since_wait
        if (
            self._wait_ended_at > self.arrived_at
        ):  # from then on it was the loop that was waited for
            self.read_wait_seconds -= self._wait_ended_at - max(
                self.arrived_at, self._wait_began_at
            )
        self._wait_ended_at = 0.0

    async def send(self, item: bytes) -> None:
        if self._must_take_turn():
            await anyio.lowlevel.checkpoint()
        self._turns -= len(item) // _BYTES_OF_ONE
        unsent = memoryview(item)
        while unsent:
            self.left_at = self._clock()
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except BlockingIOError:
                await self._wait_to_write()
            except OSError as error:
                raise self._translated(error) from None
        self.written_at = self._clock()

    async def _wait_to_write(self) -> None:
        began_at = self._clock()
        try:
            self._turns = _TURN_EVERY
            if not await self._readiness.writable(self._end_of_wait(began_at, self.write_timeout)):
                raise PeerStalled
        finally:
            self.write_wait_seconds += self._clock() - began_at

    def send_nowait(self, item: bytes) -> None:
        """Send what the socket takes of ``item`` at once, which may be nothing."""
        with suppress(OSError):
            self._socket.send(item)

    async def send_eof(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._receiver.close()
            self._readiness.close()
            self._socket.close()

    def reset(self) -> None:
        """Close with a TCP reset, so that the peer cannot take what came for complete."""
        with suppress(OSError):
            linger_on_for_0_seconds = b"\x01\0\0\0\0\0\0\0"
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_on_for_0_seconds)
        self.close()

    def peer_is_gone(self) -> bool:
        """True after a reset, or once both directions are shut; a half-closed peer is there."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, 0)  # errors and hang-up are always reported
        return bool(poll.poll(0))

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket}

    def _must_take_turn(self) -> bool:
        """Whether the loop is due a turn; before the operation, never after: a cancellation there
        must not cost what it did."""
        self._receiver.poll()
        self._turns -= 1
        if self._turns > 0:
            return False
        self._turns = _TURN_EVERY
        return True

    def _translated(self, error: OSError) -> Exception:
        if self._socket.fileno() < 0:
            return ClosedResourceError()
        return BrokenResourceError(error.errno)
