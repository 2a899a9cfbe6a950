"""When bytes arrived: the kernel's stamps, and the clock they are read on.

Linux notes for each TCP segment when it reached the machine (``SO_TIMESTAMPING``, software receive
stamps; the kernel's ``Documentation/networking/timestamping.rst``) and hands the note over with the
bytes. So an arrival is known however late a busy event loop comes to read it. Segments that the
kernel has joined by then bear the stamp of the last of them.

The stamps are of the wall clock, which anybody may set. Everything else here is read on the event
loop's clock, which nobody can set. Both run at the same rate, so their distance changes by nothing
but such a setting. ``ArrivalClock`` knows the distance, checks it at every stamp, and gives no time
rather than a wrong one.
"""

import socket
import struct
import sys
import time
from collections.abc import Callable

import sniffio
import trio
from anyio.lowlevel import RunVar

__all__ = (
    "TIMESTAMP_SPACE",
    "ArrivalClock",
    "arrival_clock",
    "enable_timestamps",
    "loop_clock",
    "timestamp_in",
)

Clock = Callable[[], float]

# <asm-generic/socket.h>, <linux/net_tstamp.h>: Python names none of them. A stamp is three
# ``struct timespec``, of which the first is the software's; 64-bit systems lay them out as here.
_SO_TIMESTAMPING = _SCM_TIMESTAMPING = 37
_RX_SOFTWARE, _REPORT_SOFTWARE = 1 << 3, 1 << 4
_TIMESPEC = struct.Struct("=qq")
_KNOWN_HERE = sys.platform == "linux" and sys.maxsize > 2**32

TIMESTAMP_SPACE = socket.CMSG_SPACE(3 * _TIMESPEC.size) if _KNOWN_HERE else 0
"""Bytes of ancillary data to ask ``recvmsg`` for."""

# Reading two clocks takes less than a microsecond; to be set aside between them can take any time.
_TOLERANCE = 50_000  # nanoseconds
_SAMPLES = 5


def loop_clock() -> Clock:
    """The running event loop's clock, to be read without looking for the loop each time."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_clock().current_time
    # What asyncio's loops read. uvloop keeps one reading of it for a whole turn.
    return time.monotonic


def enable_timestamps(sock: socket.socket) -> bool:
    """Have the kernel stamp what arrives on ``sock``; whether it will. A listener's connections
    inherit it."""
    if not _KNOWN_HERE:
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _RX_SOFTWARE | _REPORT_SOFTWARE)
    except OSError:
        return False
    return True


def timestamp_in(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The stamp that came with some bytes: wall-clock nanoseconds; 0 where there is none."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SCM_TIMESTAMPING:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds * 1_000_000_000 + nanoseconds)
    return 0


class ArrivalClock:
    """Stamps, as readings of ``clock``; ``wall`` gives the wall clock's nanoseconds."""

    def __init__(self, clock: Clock, wall: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._wall = wall
        self._distance = self._measure()
        self._set_at = float("-inf")

    def arrival(self, stamp: int, since: float, now: float) -> float | None:
        """When bytes arrived that were read just before ``now``, and came after ``since``.

        None where that cannot be told: the wall clock was set in between, or the stamp belongs to
        no moment in between.
        """
        ahead = self._wall() - int(now * 1e9) - self._distance
        if not -_TOLERANCE < ahead < _TOLERANCE:
            self._check(now)
        if since <= self._set_at:
            return None
        arrived_at = (stamp - self._distance) / 1e9
        slack = _TOLERANCE / 1e9
        if not since - slack <= arrived_at <= now + slack:
            return None
        return min(max(arrived_at, since), now)

    def _check(self, now: float) -> None:
        distance = self._measure()
        if abs(distance - self._distance) > _TOLERANCE:
            self._distance = distance
            self._set_at = now

    def _measure(self) -> int:
        """Nanoseconds by which the wall clock is ahead, from the sample that took least time."""
        samples = []
        for _ in range(_SAMPLES):
            before, wall, after = self._clock(), self._wall(), self._clock()
            samples.append((after - before, wall - int((before + after) * 0.5e9)))
        return min(samples)[1]


_clock_of_this_run: RunVar[ArrivalClock] = RunVar("ape_cerebras arrival clock")


def arrival_clock() -> ArrivalClock:
    """The one of the running event loop."""
    try:
        return _clock_of_this_run.get()
    except LookupError:
        clock = ArrivalClock(loop_clock())
        _clock_of_this_run.set(clock)
        return clock
