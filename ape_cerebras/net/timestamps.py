"""When bytes arrived, and left: on the clock of the event loop.

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

A process that is preempted polls nothing. What arrives until it runs again is coalesced, and only
the last timestamp is left: on a machine with ten times as many busy processes as cores every
hundredth first token seemed to arrive 50 ms late. ``CoalescingWatch`` finds that out, by the
kernel's count of segments, and by how much, by the time for which the thread was awake: while it
slept, nothing had arrived. What a hypervisor takes from the machine's cores is in neither, and is
not told: up to 5 ms were seen, on a virtual machine with less than 1 % of steal time.

Bytes leave within the call that sends them. The clock is read before and behind it, and
``moment_within`` takes the middle, unless the process was preempted in between. Then the moment
is soon behind the beginning in most cases, because sending wakes the receiver, which takes the
core; the width of the bracket says by how much that may be wrong. The kernel's transmit timestamps
would know it. They cost 3 to 4 µs for each send where they are read at once, each is reported as an
error of the socket (EPOLLERR), which is otherwise the end of a connection, and behind a network
card's queue they come after the call: a loop that does not wait for them would spin.
"""

import fcntl
import os
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .event_loop import Clock, loop_clock, of_this_loop

__all__ = (
    "CERTAIN_SECONDS",
    "TIMESTAMP_SPACE",
    "Arrival",
    "ArrivalClock",
    "ArrivalPeeker",
    "Arrivals",
    "AwakeClock",
    "CoalescingWatch",
    "enable_timestamps",
    "moment_within",
    "timestamp_in",
)


# <asm-generic/socket.h>, <linux/net_tstamp.h>: Python has no names for them. The data are three
# ``struct timespec``, of which the first is the software's; 64-bit systems lay them out as here.
_SO_TIMESTAMPING = _SCM_TIMESTAMPING = 37
_RX_SOFTWARE, _REPORT_SOFTWARE = 1 << 3, 1 << 4
_TIMESPEC = struct.Struct("=qq")
_KNOWN_HERE = sys.platform == "linux" and sys.maxsize > 2**32
_INT = struct.Struct("i")
_DATA_SEGMENTS, _TCP_INFO_BYTES = struct.Struct("I"), 160  # <linux/tcp.h>: tcpi_data_segs_in
_DATA_SEGMENTS_AT = 152

TIMESTAMP_SPACE = socket.CMSG_SPACE(3 * _TIMESPEC.size) if _KNOWN_HERE else 0
"""Bytes of ancillary data to request from ``recvmsg``."""


class Arrival(NamedTuple):
    """Bytes that wait to be read on a socket, and have the same timestamp. ``absent_at``: a moment,
    on the loop's clock, at which they had not arrived."""

    size: int
    timestamp: int
    absent_at: float


Arrivals = deque[Arrival]

CERTAIN_SECONDS = 0.0001
"""A call that took at most as long was not preempted: it took effect in its middle, or nearly."""

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


def moment_within(began_at: float, ended_at: float) -> float:
    """When a call took effect: its middle; of one that was preempted, as soon as of others."""
    return began_at + max(0.0, min(ended_at - began_at, CERTAIN_SECONDS)) / 2


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
        if since <= arrived_at <= now:
            return arrived_at
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
    """Takes the timestamps of arrivals before their readers run. Linux only. ``clock`` is that of
    their ``absent_at``, by default the event loop's. ``watched``: the sockets, by descriptor; while
    there is none, a poll does nothing."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._epoll = select.epoll()
        self.watched: dict[int, tuple[socket.socket, Arrivals]] = {}
        self._clock = clock or loop_clock()
        self._polled_at = float("-inf")

    def watch(self, sock: socket.socket, arrivals: Arrivals) -> None:
        """Have every poll add to ``arrivals`` what has arrived on a socket, until ``forget``; the
        reader removes it. Raises OSError if the kernel has no room for one more."""
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLET)
        self.watched[sock.fileno()] = sock, arrivals

    def forget(self, sock: socket.socket) -> None:
        """Stop watching a socket; to be called before it is closed."""
        if self.watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def poll(self) -> None:
        """Peek at what has arrived since the last poll, before more is coalesced with it."""
        if not self.watched:
            return
        absent_at, now = self._polled_at, self._clock()
        found = self._epoll.poll(0, _SOCKETS_PER_POLL)
        for descriptor, _ in found:
            with suppress(OSError):
                self._peek(*self.watched[descriptor], absent_at)
        if len(found) < _SOCKETS_PER_POLL:
            self._polled_at = now

    def _peek(self, sock: socket.socket, arrivals: Arrivals, absent_at: float) -> None:
        # The count first: what arrives from here on must not get an earlier time than it had.
        (waiting,) = _INT.unpack(fcntl.ioctl(sock, termios.FIONREAD, _INT.pack(0)))
        end = sum(arrival.size for arrival in arrivals)
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
            arrivals.append(Arrival(end - begin, timestamp, absent_at))


class AwakeClock:
    """Seconds for which the thread of the event loop has run, or waited for a core: it does not go
    on while the thread sleeps. 1.4 µs for a reading. ``is_known``: whether the system has that."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        self.is_known = self._file >= 0

    def __call__(self) -> float:
        # The first number is what the thread has run, as of the latest tick only.
        waited = os.pread(self._file, 64, 0).split()[1]
        return time.thread_time() + int(waited) / 1e9

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._file >= 0:  # at the interpreter's end there is no module ``os`` any more
            close(self._file)


class CoalescingWatch:
    """How much earlier bytes of a socket may have arrived than their timestamp says, because later
    ones were coalesced with them. To be called around every read; ``now`` is just before it.

    They arrived after the latest moments at which the socket was found empty and at which the
    thread slept; and there is no doubt where as many segments came as there are timestamps.
    """

    def __init__(self, sock: socket.socket, now: float) -> None:
        self._socket = sock
        self._awake = of_this_loop(AwakeClock)
        self._timestamps = 0  # of what was read since it was found empty
        self.before_read(now)
        self.found_empty()

    def before_read(self, now: float) -> None:
        self._now = now
        self._awake_now = self._awake() if self._awake.is_known else 0.0
        self._segments_now = self._count_segments()

    def found_empty(self) -> None:
        """Note that the read has left nothing: what is read from now on arrived since it began."""
        self._since, self._awake_since = self._now, self._awake_now
        self._segments_since, self._timestamps = self._segments_now, 0

    def possible_delay(self, arrived_at: float, absent_at: float, unread: Arrivals) -> float:
        """Seconds, of what was read, is taken to have arrived at ``arrived_at``, and had not at
        ``absent_at``."""
        self._timestamps += 1
        segments = self._count_segments() - self._segments_since
        if segments <= self._timestamps + len(unread) or not self._awake.is_known:
            return 0.0
        asleep_until = self._now - (self._awake_now - self._awake_since)
        return max(0.0, arrived_at - max(absent_at, self._since, asleep_until))

    def _count_segments(self) -> int:
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            return int(_DATA_SEGMENTS.unpack_from(info, _DATA_SEGMENTS_AT)[0])
        except (OSError, struct.error):  # no TCP, or an old system's
            return 0


def _timestamp_of(sock: socket.socket, number: int) -> int:
    """The timestamp of the byte of that number, from 1, among those that wait to be read."""
    return timestamp_in(sock.recvmsg(number, TIMESTAMP_SPACE, socket.MSG_PEEK)[1])
