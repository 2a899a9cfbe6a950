"""The reading side of a client's connection: it waits for requests, cuts heads and bodies out of
the bytes that arrive, and knows when no more will arrive.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock

from ..config.config import Config
from ..errors import ClientGone, RequestTimeout
from ..http1.body import BodyReader, reader_for
from ..http1.messages import HEAD_END, Request
from ..http1.request_head import HeadLimits, check_part, parse_head
from ..net.event_loop import loop_clock
from ..net.stream import PeerStalled, TimestampedStream

__all__ = ("RequestReader",)

_LAST_CHANCE = 0.1  # seconds that a drained connection waits for a request on its way
_READ_AHEAD = 64 * 1024  # bytes of later requests that are read while one is served
_ENDS = (EndOfStream, BrokenResourceError, ClosedResourceError)
_LINGER_SECONDS = 2.0  # nginx's lingering_close waits up to 30, for all the networks there are
_LINGER_BYTES = 1024 * 1024


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise RequestTimeout


class RequestReader:
    """Reads requests one after the other; owns the bytes that have arrived and are not read yet.

    ``ended``: whether the client has said, or shown, that it sends no more. ``complete``: whether
    the latest request has been read to its end.
    """

    def __init__(self, stream: TimestampedStream, config: Config) -> None:
        self._stream = stream
        self._clock = loop_clock()
        self._config = config
        self._limits = HeadLimits(
            config.max_header_bytes,
            config.max_headers,
            config.max_target_bytes,
            config.max_body_bytes,
        )
        self._arrived = bytearray()
        self._body: BodyReader | None = None  # of a request that has one
        self._waiting = self._ends_soon = False  # for a request
        self.ended = False
        self.complete = False

    # One request

    async def wait_for_request(self, *, last: bool) -> float | None:
        """Wait for the first byte of a request. Return when it arrived, or when the connection got
        to it if it had arrived before; None if no more comes. With ``last`` only a request that is
        on its way is waited for."""
        self._body, self.complete = None, False
        if self._arrived:
            await anyio.lowlevel.checkpoint()  # else a client that pipelines is served alone
            return self._clock()
        may_skip_line = True  # an empty line before a request is ignored (RFC 9112 section 2.2)
        self._stream.read_timeout = self._config.keep_alive_timeout
        self._waiting = True
        try:
            if last:
                self.end_wait_soon()
            while not self._arrived and not self.ended:
                await self._read(in_request=False)
                if may_skip_line and self._arrived.startswith(b"\r\n"):
                    may_skip_line = False
                    del self._arrived[:2]
        except (ClientGone, PeerStalled):
            return None
        finally:
            self._waiting = False
            self._stream.read_timeout = math.inf
            if self._ends_soon:
                self._ends_soon = False
                self._stream.set_deadline(None)
        return self._stream.arrived_at if self._arrived else None

    def end_wait_soon(self) -> None:
        """Have a wait for a request end soon, if there is one."""
        if self._waiting:
            self._ends_soon = True
            self._stream.set_deadline(_LAST_CHANCE)

    async def read_head(self) -> tuple[Request, bytes]:
        """Read the head of the request whose first byte has arrived. Return the request, and a
        reduced head for h11.

        Raises what ``parse_head`` raises, RequestTimeout, ClientGone.
        """
        arrived, checked = self._arrived, 0
        if HEAD_END not in arrived:
            with _deadline(self._config.client_head_timeout):
                while arrived.find(HEAD_END, max(0, checked - 3)) < 0:
                    check_part(bytes(arrived), checked, self._limits)
                    checked = len(arrived)
                    await self._read()
        end = arrived.index(HEAD_END) + len(HEAD_END)
        head = bytes(arrived[:end])
        del arrived[:end]
        request, for_h11 = parse_head(head, self._limits)
        self._body = reader_for(request.headers, self._limits.body_bytes, self._limits.header_bytes)
        self.complete = self._body is None or self._body.ended
        return request, for_h11

    async def read_body(self) -> bytes:
        """Read the rest of the request's body; nothing if it is complete.

        Raises what ``ChunkedReader`` raises, RequestTimeout, ClientGone.
        """
        reader = self._body
        if reader is None or self.complete:
            return b""
        body = reader.take(self._arrived)
        if not reader.ended:
            whole = bytearray(body)
            with _deadline(self._config.client_body_timeout):
                while not reader.ended:
                    if reader.paused:
                        await anyio.lowlevel.checkpoint()
                    else:
                        await self._read()
                    whole += reader.take(self._arrived)
            body = bytes(whole)
        self.complete = True
        return body

    # Bytes

    async def _read(self, *, in_request: bool = True) -> None:
        """Read the next bytes, or the end. Raises ClientGone where the connection is broken, and
        where it ends in the middle of a request."""
        try:
            self._arrived += await self._stream.receive()
        except _ENDS as end:
            self._note_end(end)
            if in_request:
                raise ClientGone from None

    def _note_end(self, end: Exception) -> None:
        self.ended = True
        if not isinstance(end, EndOfStream):
            raise ClientGone from None

    async def read_ahead(self) -> None:
        """Read bytes of later requests until the client ends its sending or has sent a lot. Raises
        ClientGone where the connection is broken."""
        while not self.ended and len(self._arrived) < _READ_AHEAD:
            await self._read(in_request=False)

    def read_ahead_nowait(self) -> bool:
        """Do the same with the bytes that have arrived. Return False where more may arrive."""
        try:
            while not self.ended and len(self._arrived) < _READ_AHEAD:
                self._arrived += self._stream.receive_nowait()
        except WouldBlock:
            return False
        except _ENDS as end:
            self._note_end(end)
        return True

    async def linger(self) -> None:
        """Before the connection is closed: end our sending, and read on a little if the client may
        still be sending. Closing with unread input resets the connection, and the response can get
        lost (RFC 9112 section 9.6)."""
        if self.ended or (self.complete and not self._arrived):
            return
        with suppress(Exception), anyio.move_on_after(_LINGER_SECONDS):
            await self._stream.send_eof()
            unread = _LINGER_BYTES
            while unread > 0:
                unread -= len(await self._stream.receive())
