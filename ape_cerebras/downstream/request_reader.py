"""What arrives from a client and has not been read yet: waiting for it, cutting a request's head
out of it, and knowing when no more is to come."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream

from ..config.config import Config
from ..errors import ClientGone, RequestTimeout
from ..http1.grammar import HEAD_END
from ..http1.messages import Request
from ..http1.request_head import HeadLimits, check_part, read_whole
from ..net.socket_stream import PeerStalled, TimestampedStream
from ..net.timestamps import loop_clock

__all__ = ("Inbound", "deadline", "head_limits")

_LAST_CHANCE = 0.1  # seconds that a drained connection waits for a request on its way
_ENDS = (EndOfStream, BrokenResourceError, ClosedResourceError)
_LINGER_SECONDS = 2.0  # nginx's lingering_close waits up to 30, for all the networks there are
_LINGER_BYTES = 1024 * 1024


def head_limits(config: Config) -> HeadLimits:
    """The settings that limit a request."""
    return HeadLimits(
        config.max_header_bytes, config.max_headers, config.max_target_bytes, config.max_body_bytes
    )


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises RequestTimeout where the block takes longer."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise RequestTimeout


class Inbound:
    """The reading side of one client's connection."""

    def __init__(self, stream: TimestampedStream, config: Config) -> None:
        self._stream = stream
        self._clock = loop_clock()
        self._config = config
        self._limits = head_limits(config)
        self._waits = False
        self.bytes = bytearray()
        """Arrived, and nobody's yet."""
        self.ended = False
        """The client has said, or shown, that it sends no more."""

    async def wait(self, *, last: bool) -> float | None:
        """When the next request began: its first byte arrived, or its turn came; None where no more
        is to come. With ``last`` only for one that is on its way."""
        if self.bytes:
            await anyio.lowlevel.checkpoint()  # else one who sends many at once is served alone
            return self._clock()
        may_skip_line = True  # an empty line before a request is ignored (RFC 9112 section 2.2)
        self._stream.read_timeout = self._config.keep_alive_timeout
        self._waits = True
        try:
            if last:
                self.give_last_chance()
            while not self.bytes and not self.ended:
                await self.read()
                if may_skip_line and self.bytes.startswith(b"\r\n"):
                    may_skip_line = False
                    del self.bytes[:2]
        except (ClientGone, PeerStalled):
            return None
        finally:
            self._waits = False
            self._stream.read_timeout = None
            self._stream.set_deadline(None)
        return self._stream.arrived_at if self.bytes else None

    def give_last_chance(self) -> None:
        """Have a ``wait`` under way end soon."""
        if self._waits:
            self._stream.set_deadline(_LAST_CHANCE)

    async def take_head(self) -> tuple[Request, bytes]:
        """The request whose first byte has arrived, and what h11 has to know of its head.

        Raises what ``head`` raises, RequestTimeout, ClientGone.
        """
        if HEAD_END not in self.bytes:
            with deadline(self._config.client_head_timeout):
                await self._read_to_the_end_of_head()
        end = self.bytes.index(HEAD_END) + len(HEAD_END)
        head = bytes(self.bytes[:end])
        del self.bytes[:end]
        check_part(head, 0, self._limits)
        return read_whole(head, self._limits)

    async def _read_to_the_end_of_head(self) -> None:
        checked = 0
        while self.bytes.find(HEAD_END, max(0, checked - 3)) < 0:
            check_part(bytes(self.bytes), checked, self._limits)
            checked = len(self.bytes)
            await self.read_more()

    async def read_more(self) -> None:
        """Read on in the middle of a request. Raises ClientGone where nothing more comes."""
        await self.read()
        if self.ended:
            raise ClientGone

    async def read(self) -> None:
        """Read what comes next, or that nothing does. Raises ClientGone where the connection is
        broken."""
        try:
            self.bytes += await self._stream.receive()
        except _ENDS as end:
            self._note(end)

    def read_nowait(self) -> None:
        """The same; raises WouldBlock where nothing has come yet."""
        try:
            self.bytes += self._stream.receive_nowait()
        except _ENDS as end:
            self._note(end)

    def _note(self, end: Exception) -> None:
        self.ended = True
        if not isinstance(end, EndOfStream):
            raise ClientGone from None

    async def linger(self) -> None:
        """Take what the client still sends, a little of it, for nothing."""
        with suppress(Exception), anyio.move_on_after(_LINGER_SECONDS):
            await self._stream.send_eof()
            unread = _LINGER_BYTES
            while unread > 0:
                unread -= len(await self._stream.receive())
