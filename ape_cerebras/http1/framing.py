"""A response's body on its way out: framed as its head says, and counted."""

from .responses import BODILESS
from .verdict import Verdict

__all__ = ("Framing", "Misframed")


class Misframed(Exception):
    """A body that is not what its head said: the client would take it for another."""


class Framing:
    """Of one response, of which no head has been sent yet.

    ``started``: whether one has. ``chunked``: whether the body goes in chunks. ``ended``: whether
    all of it has been framed. ``goes_on``: whether the connection does, behind it.
    """

    def __init__(self) -> None:
        self.started = self.chunked = self.ended = self.goes_on = False
        self._left: int | None = 0  # bytes, where that is known
        self._end = b""

    def begin(self, said: Verdict, method: str, status: int, length: int | None) -> None:
        """The head goes out. ``length``: what it says of the body's."""
        has_none = method == "HEAD" or status in BODILESS
        self._left = 0 if has_none else length
        self._end = said.end
        self.chunked = bool(said.end)
        self.goes_on = said.goes_on
        self.started = True

    def frame(self, data: bytes) -> bytes:
        """A piece of the body as it goes out. Raises Misframed where there is no room for it."""
        if self.chunked and not self.ended:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise Misframed
        return data

    def end(self) -> bytes:
        """What is behind the body. Raises Misframed where something is missing from it."""
        if self._left:
            raise Misframed
        self._left, self.ended = 0, True
        return self._end

    def fail(self) -> None:
        """It does not get to its end, or nothing is to follow it."""
        self.ended = self.goes_on = False
