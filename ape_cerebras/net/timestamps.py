"""When bytes arrived: the kernel's receive timestamps, on the clock of the event loop.

Linux notes when each TCP segment reached the machine (``SO_TIMESTAMPING``, software receive
timestamps; ``Documentation/networking/timestamping.rst`` of the kernel) and hands the timestamp
over with the bytes. So an arrival is known however late a busy event loop reads it.

Two things have to be mended. The timestamps are of the wall clock, which anybody may set; all other
times are of the event loop's monotonic clock. Both run at the same rate, so their difference
changes only when the wall clock is set: ``ArrivalClock`` measures it, checks it at every timestamp,
and gives no time rather than a wrong one.

And the kernel coalesces segments that wait to be read, and keeps the timestamp of the last only: an
event loop that is a few milliseconds late would take the second event of a stream for its first.
``ArrivalPeeker`` therefore watches the sockets on which a first token is awaited, by an epoll
instance of its own, and is polled whenever any socket of the process is read or written. It peeks
at the timestamps of what has arrived and leaves the bytes to their reader. A poll costs 0.7 µs
where nothing has arrived, 17 µs where bytes have (CPU, CPython 3.11, one core of a virtual server).
"""

import fcntl
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .event_loop import Clock, loop_clock

__all__ = (
    "TIMESTAMP_SPACE",
    "ArrivalClock",
    "ArrivalPeeker",
    "Arrivals",
    "enable_timestamps",
    "timestamp_in",
)

Arrivals = deque[tuple[int, int]]
"""The bytes that wait to be read on a socket, in order: their number, and their timestamp."""

# <asm-generic/socket.h>, <linux/net_tstamp.h>: Python has no names for them. The data are three
# ``struct timespec``, of which the first is the software's; 64-bit systems lay them out as here.
_SO_TIMESTAMPING = _SCM_TIMESTAMPING = 37
_RX_SOFTWARE, _REPORT_SOFTWARE = 1 << 3, 1 << 4
_TIMESPEC = struct.Struct("=qq")
_KNOWN_HERE = sys.platform == "linux" and sys.maxsize > 2**32
_INT = struct.Struct("i")

TIMESTAMP_SPACE = socket.CMSG_SPACE(3 * _TIMESPEC.size) if _KNOWN_HERE else 0
"""Bytes of ancillary data to request from ``recvmsg``."""

# Reading two clocks takes less than a microsecond, but a preemption between them any time.
_TOLERANCE = 50_000  # nanoseconds
_SAMPLES = 5

_SOCKETS_PER_POLL = 64  # the next poll reports the others
# Peeking at many bytes takes long, and the first token is among the first of them.
_PEEKED_ARRIVALS = 4
_PEEKED_BYTES = 64 * 1024


def enable_timestamps(sock: socket.socket) -> bool:
    """Have the kernel timestamp what arrives on ``sock``, and for a listening socket on all that it
    accepts; False where it cannot."""
    if not _KNOWN_HERE:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RX_SOFTWARE | _REPORT_SOFTWARE)
    except OSError:
        return False
    return True


def timestamp_in(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The timestamp that came with some bytes: wall-clock nanoseconds; 0 if there is none."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_TIMESTAMPING:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return 0


class ArrivalClock:
    """Converts timestamps to readings of ``clock``, by default the event loop's. ``wall`` gives the
    wall clock's nanoseconds."""

    def __init__(self, clock: Clock | None = None, wall: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock or loop_clock()
        self._wall = wall
        self._ahead = self._measure()
        self._set_at = float("-inf")

    def arrival(self, timestamp: int, since: float, now: float) -> float | None:
        """When bytes arrived that were read just before ``now``, and came after ``since``.

        None where that is not certain: the wall clock was set in between, or the timestamp is not
        from between the two.
        """
        if not -_TOLERANCE < self._wall() - int(now * 1e9) - self._ahead < _TOLERANCE:
            ahead = self._measure()
            if abs(ahead - self._ahead) > _TOLERANCE:
                self._ahead = ahead
                self._set_at = now
        if since <= self._set_at:
            return None
        arrived_at = (timestamp - self._ahead) / 1e9
        slack = _TOLERANCE / 1e9
        if not since - slack <= arrived_at <= now + slack:
            return None
        return min(max(arrived_at, since), now)

    def _measure(self) -> int:
        """Nanoseconds by which the wall clock is ahead, by the sample that took the least time."""
        samples = []
        for _ in range(_SAMPLES):
            before, wall, after = self._clock(), self._wall(), self._clock()
            samples.append((after - before, wall - int((before + after) * 0.5e9)))
        return min(samples)[1]


class ArrivalPeeker:
    """Takes the timestamps of arrivals before their readers run. Linux only."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[socket.socket, Arrivals]] = {}

    def watch(self, sock: socket.socket, arrivals: Arrivals) -> None:
        """Have every poll add to ``arrivals`` what has arrived on a socket, until ``forget``; the
        reader removes it. Raises OSError if the kernel has no room for one more."""
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLET)
        self._watched[sock.fileno()] = sock, arrivals

    def forget(self, sock: socket.socket) -> None:
        """Stop watching a socket; to be called before it is closed."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def poll(self) -> None:
        """Peek at what has arrived since the last poll, before more is coalesced with it."""
        if self._watched:
            for descriptor, _ in self._epoll.poll(0, _SOCKETS_PER_POLL):
                with suppress(OSError):
                    self._peek(*self._watched[descriptor])

    def _peek(self, sock: socket.socket, arrivals: Arrivals) -> None:
        # The count first: what arrives from here on must not get an earlier time than it had.
        (waiting,) = _INT.unpack(fcntl.ioctl(sock, termios.FIONREAD, _INT.pack(0)))
        end = sum(count for count, _ in arrivals)
        waiting = min(waiting, end + _PEEKED_BYTES)
        for _ in range(_PEEKED_ARRIVALS):
            begin = end
            if begin >= waiting or not (timestamp := _timestamp_of(sock, begin + 1)):
                return
            # The last byte with this timestamp, by bisection, mostly at the first try. Later ones
            # are in segments of their own: the kernel does not coalesce too many of them, nor any
            # while somebody captures packets.
            end, beyond, tried = begin + 1, waiting + 1, waiting
            while beyond - end > 1:
                if _timestamp_of(sock, tried) == timestamp:
                    end = tried
                else:
                    beyond = tried
                tried = (end + beyond) // 2
            arrivals.append((end - begin, timestamp))


def _timestamp_of(sock: socket.socket, number: int) -> int:
    """The timestamp of the byte of that number, from 1, among those that wait to be read."""
    return timestamp_in(sock.recvmsg(number, TIMESTAMP_SPACE, socket.MSG_PEEK)[1])
