"""A client's connection: requests in, responses out, by one h11 connection for its whole life.

A ``RequestReader`` gives h11 what the client sends; here h11 frames what is sent to the client,
and decides whether the connection goes on. Written bytes are held until ``flush``, so that the
pieces of a response that belong together leave in one segment, and those of a body in one chunk.

h11 ends every connection with HTTP/1.0. Here one goes on whose client asks for that with
``Connection: keep-alive``, as ``ab -k`` does, where the response has a length: RFC 9112 section 9.3
leaves that to a server and forbids it to a proxy of the client's, which this is not. An HTTP/1.0
proxy in between that passes the field on unread (appendix C.2.2) waits for an end that does not
come: the length shows its client where the response ends, and ``KEEP_ALIVE_TIMEOUT`` ends the
connection. So h11's ``Connection: close`` is replaced there, and the next request gets an h11
connection of its own.
"""

from contextlib import suppress
from typing import Protocol

import h11
from anyio import BrokenResourceError, ClosedResourceError

from ..config.config import Config
from ..errors import ClientGone, ClientStalled
from ..http1.messages import (
    BODILESS,
    PHRASES,
    Headers,
    Request,
    connection_options,
    http_date,
)
from ..net.socket_stream import SocketStream
from ..net.stream import PeerStalled, TimestampedStream, WriteBuffer
from ..telemetry.exchange import Exchange
from .disconnect import DisconnectWatcher, ExchangeScope
from .request_reader import RequestReader

__all__ = ("Downstream", "Misframed", "StreamState")

_MAX_HELD = 60 * 1024  # bytes: what a full read of chunks gives without their framing
_BEFORE_HEAD = (h11.IDLE, h11.SEND_RESPONSE)  # our states before a response's head
_ENDED = (h11.DONE, h11.MUST_CLOSE)  # a side's states behind its message
_END = h11.EndOfMessage()
_CLOSE = (b"connection", b"close")
_CLOSE_LINE, _KEEP_ALIVE_LINE = b"\r\nConnection: close\r\n", b"\r\nConnection: keep-alive\r\n"


class StreamState(Protocol):
    """Where a stream of events stands."""

    @property
    def can_take_event(self) -> bool:
        """Whether a final error event fits behind the bytes sent so far."""


class Misframed(Exception):
    """A body whose length is not what its head said: the client would misread it."""


class Downstream:
    """One client's connection. A read raises ClientGone where the client disconnects in the middle
    of a request; a write raises that and ClientStalled.

    ``stream`` keeps its timestamps and waiting times. Of the current exchange: ``more_headers`` are
    added to its response; ``body_bytes``, how many of its body were framed; ``stream_state``, if a
    stream of events was begun; ``completed_at``, when the client's socket had taken the last byte
    of a complete response, None until then.
    """

    def __init__(self, stream: TimestampedStream, config: Config) -> None:
        stream.write_timeout = config.client_write_timeout
        self.stream = stream
        # A head reaches h11 whole; what it may have to keep is a body's trailers.
        self._kept_bytes = config.max_header_bytes
        self._http = self._new_http()
        self.reader = RequestReader(stream, config, self._http)
        self._buffer = WriteBuffer(stream)
        self._requests_left = config.max_requests_per_connection
        self._closing = False
        self._zero_sent_after: float | None = None  # the write before a probe, whichever exchange's
        self._scope: ExchangeScope | None = None
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._held: list[bytes] = []  # of the body, and not framed yet
        self._held_bytes = 0
        self.body_bytes = 0
        self.more_headers: Headers = ()
        self._is_head_request = self._chunked = self._ends_with_connection = False
        self._persists_1_0 = self._may_persist_1_0 = False  # beyond a response to HTTP/1.0
        self._head_bytes_sent = 0  # by a probe
        self._held_status: tuple[Exchange, int] | None = None
        self.stream_state: StreamState | None = None
        self._without_timestamp_before = self.stream.reads_without_timestamp
        self.completed_at: float | None = None

    def _new_http(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._kept_bytes)

    # Requests

    async def wait_for_request(self) -> float | None:
        """Wait for the next request. Return when its first byte arrived, or when the connection got
        to it if that was later; None if no more comes."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        elif self._persists_1_0:
            self._http = self._new_http()
            self.reader.begin_http(self._http)
        self._begin_exchange()
        return await self.reader.wait_for_request(last=self._closing)

    async def read_head(self) -> Request:
        """Read the head of the request whose first byte has arrived.

        Raises what ``check_head`` raises, RequestTimeout, ClientGone.
        """
        request = await self.reader.read_head()
        self._requests_left -= 1
        self._is_head_request = request.method == "HEAD"
        if request.http_version == b"1.0":
            options = connection_options(request.headers)
            self._may_persist_1_0 = b"keep-alive" in options and b"close" not in options
        return request

    async def read_body(self) -> bytes:
        """Read the request's whole body, or the rest of it.

        Raises what ``ChunkedReader`` raises, RequestTimeout, ClientGone.
        """
        if self.awaits_100_continue:
            self._buffer.hold(self._interim(100))
            await self.flush()
        return await self.reader.read_body()

    @property
    def can_discard_body(self) -> bool:
        """Whether the rest of the request's body comes unasked, and is not known to be large."""
        return self.reader.is_rest_small and not self.awaits_100_continue

    async def discard_body(self) -> None:
        """Read the rest of the request's body and throw it away, if it is small. If not, this
        connection serves no further request.

        Raises what ``read_body`` raises.
        """
        if not (self.can_discard_body and await self.reader.discard_body()):
            self.close_after_response()

    @property
    def awaits_100_continue(self) -> bool:
        """Whether the client still holds its body back (RFC 9110 section 10.1.1)."""
        return self._http.they_are_waiting_for_100_continue

    @property
    def request_timestamped(self) -> bool:
        """Whether the kernel has timestamped everything that was read since the last request."""
        # The request may have come with the one before, and need no read of its own.
        stream = self.stream
        all_timestamped = stream.reads_without_timestamp == self._without_timestamp_before
        return stream.has_timestamp and all_timestamped

    def exchange_scope(self, seconds: float | None = None) -> ExchangeScope:
        """Return a context manager around an exchange: it raises ExchangeTimeout after so many
        ``seconds``, and ClientGone as ``watch_disconnect`` has it."""
        self._scope = ExchangeScope(self, seconds)
        return self._scope

    def watch_disconnect(self) -> DisconnectWatcher:
        """Return an async context manager, within ``exchange_scope``, which ends the exchange if
        the client disconnects before its response is complete. Bytes that it sends meanwhile are
        kept for later."""
        assert self._scope is not None  # noqa: S101 - whoever serves an exchange opens it
        return DisconnectWatcher(self, self._scope)

    def send_probe(self) -> bool:
        """Send the client a byte without meaning, if there is room for it just now: before the head
        its first one, which is always the same; after it a leading zero of the next chunk's size
        (RFC 9112 section 7.1). Return False where there never is.

        No interim response: http.client takes a 102 for the response, and undici breaks off at a
        100. Until more is sent, the zero must not be followed by a FIN: some clients take that for
        the last chunk. So the kernel gets to know that this connection can only be reset.
        """
        stream, held = self.stream, self._held_bytes + self._buffer.size
        if not isinstance(stream, SocketStream) or self._http.their_http_version != b"1.1":
            return False
        if not self.started:
            self._head_bytes_sent = stream.send_nowait(b"H")
        elif self._chunked and not self.ended and not self._buffer.busy | held:
            stream.reset_on_close(True)
            stream.send_nowait(b"0")
            self._zero_sent_after = stream.written_at
        return True

    # Responses

    @property
    def started(self) -> bool:
        """Whether the head of the response was held or sent."""
        return self._http.our_state not in _BEFORE_HEAD

    @property
    def ended(self) -> bool:
        """Whether all of the response was held or sent."""
        return self._http.our_state in _ENDED

    @property
    def keeps_alive(self) -> bool:
        """Whether the response, which has ended, lets the connection go on."""
        return self._http.our_state is h11.DONE or (self._persists_1_0 and self.ended)

    def _interim(self, status: int) -> bytes:
        """An interim response, which stands before the head."""
        return self._framed(
            h11.InformationalResponse(status_code=status, headers=[], reason=PHRASES[status])
        )

    def _framed(self, event: h11.Event) -> bytes:
        """The bytes of one event. Raises Misframed."""
        try:
            return self._http.send(event) or b""
        except h11.LocalProtocolError:
            raise Misframed from None

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
        fields = [*headers, *self.more_headers]
        if exchange.request_id:
            fields.append((b"x-request-id", exchange.request_id.encode()))
            fields.append((b"x-trace-id", exchange.trace_id.encode()))
        names = dict(headers)
        if b"date" not in names:
            fields.append((b"date", http_date()))
        if self._closing:
            fields.append(_CLOSE)
        has_length = b"content-length" in names or status in BODILESS
        self._chunked = not has_length and self._http.their_http_version == b"1.1"
        self._ends_with_connection = not (has_length or self._chunked)
        if self._ends_with_connection:
            self._reset_on_close(True)
        reason = PHRASES.get(status, b"")
        response = h11.Response(status_code=status, headers=fields, reason=reason)
        head = self._framed(response)
        if self._may_persist_1_0 and has_length and not self._closing:
            self._persists_1_0 = True
            head = head.replace(_CLOSE_LINE, _KEEP_ALIVE_LINE)
        self._buffer.hold(head[self._head_bytes_sent :])

    async def send_chunk(self, chunk: bytes, *, hold: bool = False) -> None:
        """Send a piece of the body; with ``hold`` not before ``flush``, or before enough is held to
        be worth a write. Raises Misframed where the body gets longer than its head said."""
        if chunk:
            self._held.append(chunk)
            self._held_bytes += len(chunk)
        if not hold or self._held_bytes >= _MAX_HELD:
            await self.flush()

    @property
    def can_send_now(self) -> bool:
        """Whether ``send_chunk_now`` is of use."""
        return isinstance(self.stream, SocketStream)

    def send_chunk_now(self, chunk: bytes) -> bool:
        """Send as much of a piece of the body as the client's socket takes at once, and hold the
        rest for ``flush``. Return whether that was all of it, and of what was held before. Raises
        Misframed, as ``send_chunk``; where the connection is broken, ``flush`` finds it."""
        if self._held:
            self._held.append(chunk)
            chunk, self._held, self._held_bytes = b"".join(self._held), [], 0
        self.body_bytes += len(chunk)
        return self._buffer.send_now(self._framed(h11.Data(data=chunk)), self.stream)

    async def send_end(self) -> None:
        """End the response as complete; once is enough. Raises Misframed where some is missing."""
        if self.ended:
            return
        self._frame_held()
        self._buffer.hold(self._framed(_END))
        await self.flush()
        self.completed_at = self.stream.written_at
        if self._ends_with_connection:
            self._reset_on_close(False)

    def _reset_on_close(self, on: bool) -> None:
        """Have the kernel reset a connection whose end would be the body's, also where this process
        is killed: a balancer that speaks HTTP/1.0, as nginx does by default, would pass what it has
        on as complete."""
        if isinstance(self.stream, SocketStream):
            self.stream.reset_on_close(on)

    async def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response; to HEAD without its body (RFC 9110 section 9.3.2)."""
        length = (b"content-length", str(len(body)).encode())
        self.send_head(exchange, status, (*headers, length))
        if not (self._is_head_request or status in BODILESS):
            self._held.append(body)
        await self.send_end()

    def _frame_held(self) -> None:
        """Frame the pieces of the body that are held: as one chunk, where it is sent in chunks."""
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            data = held[0] if len(held) == 1 else b"".join(held)
            self.body_bytes += len(data)
            self._buffer.hold(self._framed(h11.Data(data=data)))

    async def flush(self) -> None:
        """Write the bytes that are held."""
        self._frame_held()
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
    def idle_since(self) -> float | None:
        """The loop's time since when the connection waits for a request; None where it does not."""
        return self.reader.idle_since

    def make_room(self) -> None:
        """Close, unless a request has arrived: another connection needs the room."""
        self._closing = True
        self.reader.end_wait_now()

    @property
    def reusable(self) -> bool:
        """Whether the connection goes on: the client took the whole response, and its head did not
        announce an end, whatever was asked for since; its next request may be on its way."""
        done = self.keeps_alive and self._http.their_state in _ENDED
        return done and self.completed_at is not None

    async def abort(self, final_event: bytes = b"") -> None:
        """Cut the response short, so that nobody can take the bytes sent for a complete one."""
        with suppress(ClientGone, ClientStalled):
            if not self._buffer.torn:
                if final_event and self._http.our_state is h11.SEND_BODY:
                    self._held.append(final_event)
                await self.flush()
        await self.close_at_once()
        self._http.send_failed()  # even if it was complete, nothing more goes over this connection

    async def aclose(self) -> None:
        """Close so that a complete response reaches the client."""
        if self.ended:
            await self.reader.linger()
        await self.close_at_once()

    async def close_at_once(self) -> None:
        """Close, whatever is under way."""
        # Where the connection's end is the body's end, only a reset shows that it was cut. So it is
        # behind a probe's zero.
        stream = self.stream
        self._scope = None  # which references this object
        ends_with_connection = self.started and not (self.ended or self._chunked)
        if isinstance(stream, SocketStream):
            if ends_with_connection or self._zero_sent_after == stream.written_at:
                stream.reset()
            elif self._zero_sent_after is not None:
                stream.reset_on_close(False)
        await stream.aclose()
