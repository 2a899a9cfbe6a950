"""The receiving side of a socket: bytes, and when they arrived."""

import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from .lookout import arrival_peeker
from .timestamps import TIMESTAMP_SPACE, arrival_clock, enable_timestamps, timestamp_in

__all__ = ("Receiver",)

_INT = struct.Struct("i")
# To find out what came when takes many looks at the bytes. The first token is in the first of them.
_NOTED_AT_ONCE = 4  # moments
_NOTED_BYTES = 64 * 1024
_Ancillary = list[tuple[int, int, bytes]]


def _poll_nothing() -> None:
    return


class Receiver:
    """Reads a non-blocking socket. ``clock`` is the event loop's; nothing had arrived before
    ``silent_until``.

    ``arrived_at``: when the bytes of the latest ``read`` arrived; never before those before.
    ``has_timestamp``: whether the kernel has said so; else it is the moment of the read.
    ``drained``: whether the latest ``read`` has left nothing, so that to read again would be in
    vain before more comes (epoll(7), question 9).
    """

    def __init__(
        self, sock: socket.socket, clock: Callable[[], float], silent_until: float
    ) -> None:
        self._socket = sock
        self._clock = clock
        self._silent_until = silent_until
        self._times = arrival_clock() if enable_timestamps(sock) else None
        self._peeker = arrival_peeker() if self._times else None
        self.poll = self._peeker.poll if self._peeker else _poll_nothing
        """Note what has come, here and on other sockets."""
        self._notes: deque[tuple[int, float]] = deque()  # bytes to be read, and when they came
        self._watched = False
        self.arrived_at = silent_until
        self.has_timestamp = self.drained = False

    def use_read_times(self) -> None:
        """Take the moment of the read for the arrival from here on."""
        self.close()
        self._times = self._peeker = None
        self.poll = _poll_nothing

    def peek_arrivals(self, on: bool) -> None:
        """Whether to have arrivals noted before their turn to be read, so that each has its own
        moment even if more comes before it is read. That is worth it for first tokens."""
        if not on:
            self.close()
        elif self._peeker is not None and not self._watched:
            with suppress(OSError):  # no room to watch one more: its arrivals may be joined
                self._peeker.watch(self._socket.fileno(), self._note)
                self._watched = True

    def close(self) -> None:
        """To be called before the socket is closed."""
        if self._watched and self._peeker is not None:
            self._watched = False
            self._peeker.forget(self._socket.fileno())

    def read(self, max_bytes: int) -> bytes:
        """What has arrived, at most ``max_bytes``; nothing where the peer has ended its sending.

        Raises BlockingIOError where nothing has, OSError where the connection is broken.
        """
        began_at = self._clock()
        at_most = min(max_bytes, self._notes[0][0]) if self._notes else max_bytes
        try:
            data, ancillary, _, _ = self._socket.recvmsg(at_most, TIMESTAMP_SPACE)
        except BlockingIOError:
            self._silent_until = began_at
            raise
        arrived_at = self._take_note(len(data)) if self._notes else self._moment_of(ancillary)
        self.has_timestamp = arrived_at is not None
        self.drained = 0 < len(data) < at_most
        if self.drained:
            self._silent_until = began_at
        # A segment that overtook others bears an earlier stamp than those it follows.
        self.arrived_at = max(self.arrived_at, self._clock() if arrived_at is None else arrived_at)
        return data

    def _take_note(self, count: int) -> float:
        """When the first ``count`` bytes came, of which no more than one note tells."""
        noted, moment = self._notes.popleft()
        if count < noted:
            self._notes.appendleft((noted - count, moment))
        return moment

    def _note(self) -> None:
        """Note what has come since the last note, and when, before more joins it."""
        try:
            # First: what comes from here on must not get an earlier moment than it had.
            (waiting,) = _INT.unpack(fcntl.ioctl(self._socket, termios.FIONREAD, _INT.pack(0)))
            noted = sum(count for count, _ in self._notes)
            waiting = min(waiting, noted + _NOTED_BYTES)
            for _ in range(_NOTED_AT_ONCE):
                if noted >= waiting:
                    return
                stamp = self._peek(noted + 1)
                moment = self._moment_of(stamp)
                if moment is None:
                    return
                end = self._end_of(timestamp_in(stamp), noted + 1, waiting)
                self._notes.append((end - noted, moment))
                noted = end
        except OSError:
            return

    def _end_of(self, stamp: int, under: int, waiting: int) -> int:
        """How many of the bytes there are up to the last that bears ``stamp``, as number ``under``
        does. Not all where the kernel has not joined their segments: there are too many, or
        somebody captures packets."""
        beyond = waiting + 1
        middle = waiting  # mostly it is all of them
        while beyond - under > 1:
            if timestamp_in(self._peek(middle)) == stamp:
                under = middle
            else:
                beyond = middle
            middle = (under + beyond) // 2
        return under

    def _peek(self, count: int) -> _Ancillary:
        """What comes with the last of the first ``count`` bytes."""
        return self._socket.recvmsg(count, TIMESTAMP_SPACE, socket.MSG_PEEK)[1]

    def _moment_of(self, ancillary: _Ancillary) -> float | None:
        if self._times is None or not (stamp := timestamp_in(ancillary)):
            return None
        return self._times.arrival(stamp, self._silent_until, self._clock())
