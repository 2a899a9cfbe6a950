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
        """Note how much has come and when, before more joins it."""
        try:
            # In this order: what comes between the two must not get an earlier moment than it had.
            waiting = fcntl.ioctl(self._socket, termios.FIONREAD, _INT.pack(0))
            _, ancillary, _, _ = self._socket.recvmsg(1, STAMP_SPACE, socket.MSG_PEEK)
        except OSError:
            return
        noted_at = self._moment_of(ancillary)
        if noted_at is not None:
            (self._noted_bytes,), self._noted_at = _INT.unpack(waiting), noted_at

    def _moment_of(self, ancillary: list[tuple[int, int, bytes]]) -> float | None:
        if self._times is None or not (stamp := stamp_in(ancillary)):
            return None
        return self._times.arrival(stamp, self._silent_until, self._clock())
