"""The receiving side of a socket: bytes, and when they arrived."""

import fcntl
import socket
import struct
import termios
from collections.abc import Callable

from .lookout import lookout
from .stamps import STAMP_SPACE, arrival_clock, ask_for_stamps, stamp_in

__all__ = ("Receiver",)

_INT = struct.Struct("i")
_Ancillary = list[tuple[int, int, bytes]]


class Receiver:
    """Reads a non-blocking socket. ``clock`` is the event loop's; nothing had arrived before
    ``silent_until``.

    ``arrived_at``: when the bytes of the latest ``read`` arrived; never before those before.
    ``stamped``: whether the kernel has said so; else it is the moment of the read.
    ``attentive``: set to have arrivals noted before their turn to be read, so that what comes first
    has a moment of its own even if more comes before it is read. That is worth it for first tokens.
    """

    def __init__(
        self, sock: socket.socket, clock: Callable[[], float], silent_until: float
    ) -> None:
        self._socket = sock
        self._clock = clock
        self._silent_until = silent_until
        self._times = arrival_clock() if ask_for_stamps(sock) else None
        self._lookout = lookout() if self._times else None
        self._noted_bytes = 0
        self._noted_at = 0.0
        self.arrived_at = silent_until
        self.stamped = False
        self.attentive = False

    def stamp_by_read(self) -> None:
        """Take the moment of the read for the arrival from here on."""
        self.close()
        self._times = self._lookout = None

    def close(self) -> None:
        """To be called before the socket is closed; harmless after."""
        if self._lookout is not None:
            self._lookout.forget(self._socket.fileno())

    def look(self) -> None:
        """Note what has come, here and on other sockets."""
        if self._lookout is not None:
            self._lookout.look()

    def read(self, max_bytes: int) -> bytes:
        """What has arrived, at most ``max_bytes``; nothing where the peer has ended its sending.

        Raises BlockingIOError where nothing has, OSError where the connection is broken.
        """
        began_at = self._clock()
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                min(max_bytes, self._noted_bytes or max_bytes), STAMP_SPACE
            )
        except BlockingIOError:
            self._silent_until = began_at
            if self.attentive and self._lookout is not None:
                self._lookout.await_arrival(self._socket.fileno(), self._note)
            raise
        if self._noted_bytes:
            arrived_at: float | None = self._noted_at
            self._noted_bytes -= len(data)
        else:
            arrived_at = self._moment_of(ancillary)
        self.stamped = arrived_at is not None
        # A segment that overtook others bears an earlier stamp than those it follows.
        self.arrived_at = max(self.arrived_at, self._clock() if arrived_at is None else arrived_at)
        return data

    def _note(self) -> None:
        """Note what has come first and when, before more joins it."""
        try:
            # In this order: what comes between the two must not get an earlier moment than it had.
            (waiting,) = _INT.unpack(fcntl.ioctl(self._socket, termios.FIONREAD, _INT.pack(0)))
            first = self._peek(1)
            came_with_it = self._count_under(first, waiting)
        except OSError:
            return
        noted_at = self._moment_of(first)
        if noted_at is not None:
            self._noted_bytes, self._noted_at = came_with_it, noted_at

    def _count_under(self, first: _Ancillary, waiting: int) -> int:
        """How many of the bytes bear the stamp of the first. Not all where the kernel has not
        joined their segments: there are too many, or somebody captures packets."""
        under, beyond = 1, waiting + 1
        middle = waiting  # mostly it is all of them
        while beyond - under > 1:
            if stamp_in(self._peek(middle)) == stamp_in(first):
                under = middle
            else:
                beyond = middle
            middle = (under + beyond) // 2
        return min(under, waiting)

    def _peek(self, count: int) -> _Ancillary:
        """What comes with the last of the first ``count`` bytes."""
        return self._socket.recvmsg(count, STAMP_SPACE, socket.MSG_PEEK)[1]

    def _moment_of(self, ancillary: _Ancillary) -> float | None:
        if self._times is None or not (stamp := stamp_in(ancillary)):
            return None
        return self._times.arrival(stamp, self._silent_until, self._clock())
