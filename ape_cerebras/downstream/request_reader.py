"""The reading side of a client's connection: it waits for requests, gives h11 their bytes once the
guards have seen them, and knows when no more will arrive.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import anyio
import h11
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock

from ..config.config import Config
from ..errors import BadRequest, ClientGone, RequestTimeout
from ..http1.body import ChunkedReader
from ..http1.messages import HEAD_END, Request
from ..http1.request_head import HeadLimits, check_head, check_part, origin_form
from ..net.event_loop import loop_clock
from ..net.stream import PeerStalled, TimestampedStream

__all__ = ("RequestReader", "request_of")

_LAST_CHANCE = 0.1  # seconds that a drained connection waits for a request on its way
_READ_AHEAD = 64 * 1024  # bytes of later requests that are read while one is served
_ENDS = (EndOfStream, BrokenResourceError, ClosedResourceError)
_LINGER_SECONDS = 2.0  # nginx's lingering_close waits up to 30, for all the networks there are
_LINGER_BYTES = 1024 * 1024
_MAX_CHUNKS = 200  # that h11 reads at once: it takes 12 µs for each, which hold the event loop
_MALFORMED = "The request is malformed."
_UNFINISHED = (h11.IDLE, h11.SEND_BODY, h11.ERROR)  # the client's states before a request's end


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise RequestTimeout


def request_of(event: h11.Request) -> Request:
    """The request that h11 has read. Raises BadRequest where its target is none that is served."""
    headers = tuple([(name.lower(), value) for name, value in event.headers.raw_items()])
    request = Request(event.method.decode(), event.target, event.http_version, headers)
    target = origin_form(event.method, event.target, request.header(b"host"))
    return request if target == event.target else replace(request, target=target)


class RequestReader:
    """Reads requests one after the other; owns the bytes that have arrived and that h11 has not.

    h11 gets the bytes of one request at a time: those of the next one have to pass the guard first,
    and h11 keeps what it got. ``ended``: whether the client has said, or shown, that it sends no
    more. ``idle_since``: the loop's time since when a request is waited for; None where none is, or
    no longer.
    """

    def __init__(self, stream: TimestampedStream, config: Config, http: h11.Connection) -> None:
        self._stream = stream
        self._http = http
        self._clock = loop_clock()
        self._config = config
        self._limits = HeadLimits(
            config.max_header_bytes,
            config.max_headers,
            config.max_target_bytes,
            config.max_body_bytes,
        )
        self._arrived = bytearray()
        self._left = 0  # bytes of a body of known length that h11 has not got
        self._chunks: ChunkedReader | None = None  # the guard on a body in chunks
        self._has_more = False  # whether h11 holds data of the body that it has not given
        self._ends_soon = self._has_asked = False
        self._may_skip_line = True  # before a request
        self.ended = False
        self.idle_since: float | None = None

    def begin_http(self, http: h11.Connection) -> None:
        """Read the next request by another h11 connection, because the latest ended with its
        request."""
        self._http = http

    @property
    def complete(self) -> bool:
        """Whether the latest request has been read to its end."""
        return self._http.their_state not in _UNFINISHED

    # One request

    async def wait_for_request(self, *, last: bool) -> float | None:
        """Wait for the first byte of a request. Return when it arrived, or when the connection got
        to it if it had arrived before; None if no more comes. With ``last`` only a request that is
        on its way is waited for."""
        self._chunks, self._has_more, self._may_skip_line = None, False, True
        if self._has_begun():
            await anyio.lowlevel.checkpoint()  # else a client that pipelines is served alone
            return self._clock()
        config = self._config
        # A connection that has had no request is none that is kept alive.
        asked = self._has_asked
        self._stream.read_timeout = (
            config.keep_alive_timeout if asked else config.client_head_timeout
        )
        self.idle_since = self._clock()
        try:
            if last:
                self.end_wait_soon()
            while not self.ended and not self._has_begun():
                await self._read(in_request=False)
        except (ClientGone, PeerStalled):
            return None
        finally:
            self.idle_since = None
            self._stream.read_timeout = math.inf
            if self._ends_soon:
                self._ends_soon = False
                self._stream.set_deadline(None)
        if self._has_begun():
            return self._stream.arrived_at
        self._http.receive_data(b"")  # the end of the client's sending
        self._http.next_event()
        return None

    def _has_begun(self) -> bool:
        """Whether a request has begun to arrive. One empty line before it is ignored, however it is
        cut (RFC 9112 section 2.2)."""
        arrived = self._arrived
        if self._may_skip_line and arrived.startswith(b"\r"):
            if len(arrived) < 2:
                return False
            if arrived.startswith(b"\r\n"):
                self._may_skip_line = False
                del arrived[:2]
        return bool(arrived)

    def end_wait_soon(self) -> None:
        """Have a wait for a request end soon, if there is one."""
        self._end_wait(_LAST_CHANCE)

    def end_wait_now(self) -> None:
        """Have a wait for a request end at once, if there is one."""
        self._end_wait(0)

    def _end_wait(self, seconds: float) -> None:
        if self.idle_since is not None:
            self.idle_since, self._ends_soon = None, True
            self._stream.set_deadline(seconds)

    async def read_head(self) -> Request:
        """Read the head of the request whose first byte has arrived.

        Raises what ``check_head`` raises, RequestTimeout, ClientGone.
        """
        self._has_asked = True
        arrived = self._arrived
        end = arrived.find(HEAD_END)
        if end < 0:
            end = await self._wait_for_end_of_head()
        head = bytes(arrived[: end + len(HEAD_END)])
        del arrived[: len(head)]
        check_head(head, self._limits)
        self._http.receive_data(head)
        event = self._next_event()
        if type(event) is not h11.Request:
            raise BadRequest(_MALFORMED, keeps=False)
        request = request_of(event)
        self._left = int(request.header(b"content-length") or 0)
        if request.header(b"transfer-encoding"):
            self._chunks = ChunkedReader(self._limits.body_bytes, self._limits.header_bytes)
        elif not self._left:
            self._next_event()  # the end of the message
        return request

    async def _wait_for_end_of_head(self) -> int:
        """Return the position of the empty line behind a head."""
        arrived, checked = self._arrived, 0
        with _deadline(self._config.client_head_timeout):
            while (end := arrived.find(HEAD_END, max(0, checked - 3))) < 0:
                check_part(bytes(arrived), checked, self._limits)
                checked = len(arrived)
                await self._read()
        return end

    async def read_body(self) -> bytes:
        """Read the rest of the request's body; nothing if it is complete.

        Raises what ``ChunkedReader`` raises, RequestTimeout, ClientGone.
        """
        if self.complete:
            return b""
        body = self._take()
        if not self.complete:
            whole = bytearray(body)
            await self._read_rest(whole.extend)
            body = bytes(whole)
        return body

    @property
    def is_rest_small(self) -> bool:
        """Whether the rest of the body, as far as its size is known, is one that may be thrown
        away."""
        return self._left <= _LINGER_BYTES

    async def discard_body(self) -> bool:
        """Throw the rest of the body away as it comes, at most as much as ``linger`` does. Return
        whether that was all of it. Raises what ``read_body`` raises."""
        if not self.complete:
            await self._read_rest(lambda _: None, _LINGER_BYTES - len(self._take()))
        return self.complete

    async def _read_rest(self, use: Callable[[bytes], object], most: float = math.inf) -> None:
        """Read on to the body's end, or until ``most`` bytes of it have come."""
        with _deadline(self._config.client_body_timeout):
            while not self.complete and most > 0:
                if self._has_more or (self._chunks is not None and self._chunks.paused):
                    await anyio.lowlevel.checkpoint()
                else:
                    await self._read()
                piece = self._take()
                most -= len(piece)
                use(piece)

    def _take(self) -> bytes:
        """Give h11 the bytes of the body that have arrived, and return the data in them; of very
        many chunks only the first, before a pause."""
        if not self._has_more:
            part = self._checked_part()
            if not part:  # to h11 that would be the end of the connection
                return b""
            self._http.receive_data(part)
        pieces = []
        for _ in range(_MAX_CHUNKS):
            event = self._next_event()
            if type(event) is not h11.Data:
                self._has_more = False
                break
            pieces.append(event.data)
        else:
            self._has_more = True
        return b"".join(pieces)

    def _checked_part(self) -> bytes:
        """Remove the bytes of the body from what has arrived, checked by the guard."""
        arrived = self._arrived
        if self._chunks is not None:
            part = bytes(arrived)
            self._chunks.take(arrived)
            return part[: len(part) - len(arrived)]
        part = bytes(arrived[: self._left])
        del arrived[: len(part)]
        self._left -= len(part)
        return part

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            # h11 raises it from within itself; its frames would live until the next collection.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            raise BadRequest(_MALFORMED, keeps=False) from None

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
