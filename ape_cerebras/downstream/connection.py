"""A client's connection: requests in, responses out.

A ``RequestReader`` reads a request's head and body, a ``ResponseWriter`` frames the response by
h11's rules for that request. Written bytes are held until ``flush``, so that the pieces of a
response that belong together leave in one segment.
"""

from contextlib import suppress
from typing import Protocol

from anyio import BrokenResourceError, ClosedResourceError

from ..config.config import Config
from ..errors import ClientGone, ClientStalled
from ..http1.framing import UNREADABLE, request_rules, response_rules
from ..http1.messages import BODILESS, PHRASES, Headers, Request, http_date, with_fields
from ..net.socket_stream import SocketStream
from ..net.stream import PeerStalled, TimestampedStream, WriteBuffer
from ..telemetry.exchange import Exchange
from .disconnect import DisconnectWatcher
from .request_reader import RequestReader

__all__ = ("Downstream", "Misframed", "ResponseWriter", "StreamState")

_MAX_HELD = 64 * 1024  # bytes


class StreamState(Protocol):
    """Where a stream of events stands."""

    @property
    def can_take_event(self) -> bool:
        """Whether a final error event fits behind the bytes sent so far."""


class Misframed(Exception):
    """A body whose length is not what its head said: the client would misread it."""


class ResponseWriter:
    """Serializes the response to one request, and checks that its body is as long as its head says.

    ``started``: whether a head was written. ``chunked``: whether its body is. ``has_body``: whether
    it may have one. ``ended``: whether all of it was written. ``keeps_alive``: whether the
    connection goes on after it. ``awaits_100_continue``: whether the client still holds its body
    back (RFC 9110 section 10.1.1).
    """

    def __init__(self) -> None:
        self.request = UNREADABLE
        self.started = self.chunked = self.has_body = self.ended = self.keeps_alive = False
        self.awaits_100_continue = False
        self._left: int | None = 0  # bytes of the body, where its length is known
        self._end = b""

    def begin(self, for_h11: bytes, *, has_body: bool) -> None:
        """Take the rules of the request that has been read. Raises BadRequest."""
        self.request = request_rules(for_h11)
        self.awaits_100_continue = has_body and self.request.awaits_100_continue

    def interim(self, status: int) -> bytes:
        """Return an interim response, which stands before the head."""
        self.awaits_100_continue = False
        return b"HTTP/1.1 %d %b\r\n\r\n" % (status, PHRASES[status])

    def head(self, status: int, headers: Headers, *, closing: bool) -> bytes:
        """Return the head, with Date and what the framing needs. ``closing``: whether it is to be
        the connection's last."""
        fields = dict(headers)
        length = fields.get(b"content-length")
        rules = response_rules(self.request, status, sized=length is not None, closing=closing)
        self.has_body = self.request.method != b"HEAD" and status not in BODILESS
        if self.has_body:
            self._left = None if length is None else int(length)
        self._end = rules.end
        self.chunked = bool(rules.end)
        self.keeps_alive = rules.keeps_alive
        self.started, self.awaits_100_continue = True, False
        if b"date" not in fields:
            headers = (*headers, (b"date", http_date()))
        return with_fields(rules.head, headers)

    def frame(self, data: bytes) -> bytes:
        """Return a piece of the body as it is sent. Raises Misframed where it is too long."""
        if self.chunked and not self.ended:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise Misframed
        return data

    def end(self) -> bytes:
        """Return the bytes behind the body. Raises Misframed where some of it is missing."""
        if self._left:
            raise Misframed
        self._left, self.ended = 0, True
        return self._end

    def fail(self) -> None:
        """Note that the response is cut, or that nothing may follow it."""
        self.ended = self.keeps_alive = False


class Downstream:
    """One client's connection. A read raises ClientGone where the client disconnects in the middle
    of a request; a write raises that and ClientStalled.

    ``stream`` keeps its timestamps and waiting times. Of the current exchange: ``response``;
    ``stream_state``, if a stream of events was begun; ``completed_at``, when the client's socket
    had taken the last byte of a complete response, None until then.
    """

    def __init__(self, stream: TimestampedStream, config: Config) -> None:
        stream.write_timeout = config.client_write_timeout
        self.stream = stream
        self.reader = RequestReader(stream, config)
        self._buffer = WriteBuffer(stream)
        self._requests_left = config.max_requests_per_connection
        self._closing = False
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self.response = ResponseWriter()
        self._held_status: tuple[Exchange, int] | None = None
        self.stream_state: StreamState | None = None
        self._without_timestamp_before = self.stream.reads_without_timestamp
        self.completed_at: float | None = None

    # Requests

    async def wait_for_request(self) -> float | None:
        """Wait for the next request. Return when its first byte arrived, or when the connection got
        to it if that was later; None if no more comes."""
        self._begin_exchange()
        return await self.reader.wait_for_request(last=self._closing)

    async def read_head(self) -> Request:
        """Read the head of the request whose first byte has arrived.

        Raises what ``parse_head`` raises, RequestTimeout, ClientGone.
        """
        request, for_h11 = await self.reader.read_head()
        self._requests_left -= 1
        self.response.begin(for_h11, has_body=not self.reader.complete)
        return request

    async def read_body(self) -> bytes:
        """Read the request's whole body, or the rest of it.

        Raises what ``ChunkedReader`` raises, RequestTimeout, ClientGone.
        """
        if self.response.awaits_100_continue and not self.response.started:
            self._buffer.hold(self.response.interim(100))
            await self.flush()
        return await self.reader.read_body()

    @property
    def request_timestamped(self) -> bool:
        """Whether the kernel has timestamped everything that was read since the last request."""
        # The request may have come with the one before, and need no read of its own.
        stream = self.stream
        all_timestamped = stream.reads_without_timestamp == self._without_timestamp_before
        return stream.has_timestamp and all_timestamped

    def watch_disconnect(self) -> DisconnectWatcher:
        """Return an async context manager that raises ClientGone if the client disconnects before
        its response is complete. Bytes that it sends meanwhile are kept for later."""
        return DisconnectWatcher(self)

    def send_probe(self) -> bool:
        """Send the client bytes without meaning, if there is room for them just now: an interim
        response before the head (RFC 9110 section 15.2), a leading zero of the next chunk's size
        after it (RFC 9112 section 7.1). Return False where there never is."""
        stream, response = self.stream, self.response
        if not isinstance(stream, SocketStream) or response.request.http_version != b"1.1":
            return False
        if not response.started:
            stream.send_nowait(response.interim(102))
        elif response.chunked and not response.ended and not self._buffer.busy | self._buffer.size:
            stream.send_nowait(b"0")
        return True

    # Responses

    def send_head(
        self,
        exchange: Exchange,
        status: int,
        headers: Headers,
        stream_state: StreamState | None = None,
    ) -> None:
        """Hold a response's head, with the exchange's ids, Date and the framing fields added.
        ``stream_state`` is given where the body is a stream of events."""
        self._held_status = exchange, status
        self.stream_state = stream_state
        self._closing = self._closing or self._requests_left <= 0
        if exchange.request_id:
            headers = (
                *headers,
                (b"x-request-id", exchange.request_id.encode()),
                (b"x-trace-id", exchange.trace_id.encode()),
            )
        self._buffer.hold(self.response.head(status, headers, closing=self._closing))

    async def send_chunk(self, chunk: bytes, *, hold: bool = False) -> None:
        """Send a piece of the body; with ``hold`` not before ``flush``, or before enough is held to
        be worth a write."""
        self._buffer.hold(self.response.frame(chunk))
        if not hold or self._buffer.size >= _MAX_HELD:
            await self.flush()

    async def send_end(self) -> None:
        """End the response as complete; once is enough."""
        if self.response.ended:
            return
        self._buffer.hold(self.response.end())
        await self.flush()
        self.completed_at = self.stream.written_at

    async def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response; to HEAD without its body (RFC 9110 section 9.3.2)."""
        length = (b"content-length", str(len(body)).encode())
        self.send_head(exchange, status, (*headers, length))
        if self.response.has_body:
            self._buffer.hold(self.response.frame(body))
        await self.send_end()

    async def flush(self) -> None:
        """Write the bytes that are held."""
        held_status, self._held_status = self._held_status, None
        try:
            await self._buffer.flush()
        except PeerStalled:
            raise ClientStalled from None
        except (BrokenResourceError, ClosedResourceError):
            raise ClientGone from None
        if held_status is not None:
            exchange, status = held_status
            exchange.status = status

    # The end

    def close_after_response(self) -> None:
        """Make the response whose head is next the connection's last."""
        self._closing = True

    def drain(self) -> None:
        """Close after the next response, and end a wait for a request soon. A request that is on
        its way already is still served, because its client could not know whether it was carried
        out."""
        self._closing = True
        self.reader.end_wait_soon()

    @property
    def reusable(self) -> bool:
        """Whether the connection goes on: the client took the whole response, and its head did not
        announce an end, whatever was asked for since; its next request may be on its way."""
        done = self.response.ended and self.response.keeps_alive and self.reader.complete
        return done and self.completed_at is not None

    async def abort(self, final_event: bytes = b"") -> None:
        """Cut the response short, so that nobody can take the bytes sent for a complete one."""
        with suppress(ClientGone, ClientStalled):
            if not self._buffer.torn:
                if final_event and not self.response.ended:
                    self._buffer.hold(self.response.frame(final_event))
                await self.flush()
        await self.close_at_once()
        self.response.fail()  # even if it was complete, nothing more goes over this connection

    async def aclose(self) -> None:
        """Close so that a complete response reaches the client."""
        if self.response.ended:
            await self.reader.linger()
        await self.close_at_once()

    async def close_at_once(self) -> None:
        """Close, whatever is under way."""
        response = self.response
        # Where the connection's end is the body's end, only a reset shows that it was cut.
        ends_with_connection = response.started and not (response.ended or response.chunked)
        if ends_with_connection and isinstance(self.stream, SocketStream):
            self.stream.reset()
        await self.stream.aclose()
