"""The client's connection: requests in, responses out, as h11 would have them.

A request head is checked and read on its raw bytes (``inbound``, ``head``), and its body by
``bodies``. What h11 makes of the two heads of an exchange decides how the response is framed, and
whether the connection goes on (``verdict``, ``framing``). What is sent is held until ``flush``, so
that the pieces of a response that belong together leave in one segment.
"""

from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio import BrokenResourceError, ClosedResourceError

from ..config.config import Config
from ..errors import ClientGone, ClientStalled, ProxyError
from ..http1.bodies import BodyReader, reader_for
from ..http1.body import ChunkedReader
from ..http1.framing import Framing
from ..http1.grammar import with_fields
from ..http1.messages import Headers, Request
from ..http1.responses import PHRASES, http_date
from ..http1.verdict import NOBODY, asked, verdict
from ..net.outbox import WriteBuffer
from ..net.socket_stream import PeerStalled, SocketStream, TimestampedStream
from ..telemetry.exchange import Exchange
from .disconnect import HangUp
from .request_reader import Inbound, deadline, head_limits

__all__ = ("Downstream",)

_HOLD_AT_MOST = 64 * 1024  # bytes


class Downstream:
    """One client's connection. Reading raises ClientGone where the client leaves in the middle,
    writing that and ClientStalled."""

    def __init__(self, stream: TimestampedStream, config: Config) -> None:
        stream.write_timeout = config.client_write_timeout
        self.stream = stream
        """With its stamps and its account of waiting."""
        self._limits = head_limits(config)
        self._body_timeout = config.client_body_timeout
        self._requests_left = config.max_requests_per_connection
        self._inbound = Inbound(stream, config)
        self.hang_up = HangUp(stream, self._inbound)
        self._write_buffer = WriteBuffer(stream)
        self._begin_exchange()
        self.closing = False
        """Set to make a response the connection's last: the next whose head goes out."""

    def _begin_exchange(self) -> None:
        self._asked = NOBODY
        self._awaits_100 = False
        self._reader: BodyReader | None = None  # of a request that has a body
        self._request_read = False
        self._framing = Framing()
        self.hang_up.has_left = False
        self._untold: tuple[Exchange, int] | None = None  # whose status is held, and which
        self._without_timestamp_before = self.stream.reads_without_timestamp
        self.completed_at: float | None = None
        """When the client's socket had taken the last byte of a complete response."""
        self.last_words: Callable[[ProxyError], bytes] = lambda _: b""
        """What fits behind the body so far, to say why it is cut."""

    # Requests

    async def wait_for_request(self) -> float | None:
        """When the next request began: its first byte arrived, or its turn came; None where no more
        is to come."""
        self._begin_exchange()
        return await self._inbound.wait(last=self.closing)

    async def read_head(self) -> Request:
        """The request whose first byte has arrived.

        Raises what ``head`` raises, RequestTimeout, ClientGone.
        """
        request, for_h11 = await self._inbound.take_head()
        self._requests_left -= 1
        self._asked = asked(for_h11)
        self._reader = reader_for(request.headers, self._in_chunks)
        self._request_read = self._reader is None or self._reader.ended
        self._awaits_100 = self._asked.awaits_100_continue and not self._request_read
        return request

    def _in_chunks(self) -> ChunkedReader:
        return ChunkedReader(self._limits.body_bytes, self._limits.header_bytes)

    @property
    def awaits_100_continue(self) -> bool:
        """Whether the client holds its body back until asked for it (RFC 9110 section 10.1.1)."""
        return self._awaits_100

    async def read_body(self) -> bytes:
        """The request's whole body, or what has not been read of it.

        Raises what ``chunked`` raises, RequestTimeout, ClientGone.
        """
        reader = self._reader
        if reader is None or self._request_read:
            return b""
        if self.awaits_100_continue and not self.response_started:
            self._write_buffer.hold(self._interim(100))
            await self.flush()
        body = reader.take(self._inbound.bytes)
        if not reader.ended:
            with deadline(self._body_timeout):
                body = await self._read_on(reader, bytearray(body))
        self._request_read, self._awaits_100 = True, False
        return body

    async def _read_on(self, reader: BodyReader, body: bytearray) -> bytes:
        while not reader.ended:
            if reader.paused:
                await anyio.lowlevel.checkpoint()
            else:
                await self._inbound.read_more()
            body += reader.take(self._inbound.bytes)
        return bytes(body)

    @property
    def request_timestamped(self) -> bool:
        """Whether the kernel has said of everything read since the last request when it came."""
        # It may have come with the one before, and need no read of its own.
        return (
            self.stream.has_timestamp
            and self.stream.reads_without_timestamp == self._without_timestamp_before
        )

    # Responses

    @property
    def response_started(self) -> bool:
        """Whether a status has been said."""
        return self._framing.started

    @property
    def response_complete(self) -> bool:
        return self._framing.ended

    @property
    def said_close(self) -> bool:
        """Whether the response is complete, and its head said that the connection ends with it."""
        return self._framing.ended and not self._framing.goes_on

    def send_head(self, exchange: Exchange, status: int, headers: Headers) -> None:
        """Hold a response's head. Framing, Date and Connection are seen to here."""
        self._untold = exchange, status
        self.closing = self.closing or self._requests_left <= 0
        own = []
        if exchange.request_id:
            own.append((b"x-request-id", exchange.request_id.encode()))
            own.append((b"x-trace-id", exchange.trace_id.encode()))
        fields = dict(headers)
        if b"date" not in fields:
            own.append((b"date", http_date()))
        length = fields.get(b"content-length")
        said = verdict(self._asked, status, sized=length is not None, closing=self.closing)
        self._awaits_100 = False
        method = exchange.request.method if exchange.request is not None else ""
        self._framing.begin(said, method, status, None if length is None else int(length))
        self._write_buffer.hold(with_fields(said.head, (*headers, *own)))

    def _interim(self, status: int) -> bytes:
        self._awaits_100 = False
        return b"HTTP/1.1 %d %b\r\n\r\n" % (status, PHRASES[status])

    async def send_chunk(self, chunk: bytes, *, hold: bool = False) -> None:
        """Send a piece of the body; with ``hold`` not before ``flush``, or before there is as much
        as is worth a write."""
        self._write_buffer.hold(self._framing.frame(chunk))
        if not hold or self._write_buffer.size >= _HOLD_AT_MOST:
            await self.flush()

    async def send_end(self) -> None:
        """End the response as complete; once is enough."""
        if self._framing.ended:
            return
        self._write_buffer.hold(self._framing.end())
        await self.flush()
        self.completed_at = self.stream.written_at

    async def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """A whole response; to HEAD without its body (RFC 9110 section 9.3.2)."""
        length = (b"content-length", str(len(body)).encode())
        self.send_head(exchange, status, (*headers, length))
        if exchange.request is None or exchange.request.method != "HEAD":
            self._write_buffer.hold(self._framing.frame(body))
        await self.send_end()

    async def flush(self) -> None:
        """Write what is held."""
        told, self._untold = self._untold, None
        try:
            await self._write_buffer.flush()
        except PeerStalled:
            raise ClientStalled from None
        except (BrokenResourceError, ClosedResourceError):
            raise ClientGone from None
        if told is not None:
            exchange, status = told
            exchange.status = status

    # The end

    def while_connected(self) -> HangUp:
        """An async context manager: ``hang_up.scope`` is cancelled if the client leaves before its
        end. What the client sends meanwhile waits for its turn."""
        return self.hang_up.watching(self._probe)

    def _probe(self) -> bool:
        """Send the client what means nothing: an interim response before the head (RFC 9110 section
        15.2), a leading zero of the next chunk's size after it (RFC 9112 section 7.1)."""
        stream = self.stream
        if not isinstance(stream, SocketStream) or self._asked.http_version != b"1.1":
            return False
        if not self.response_started:
            stream.send_nowait(self._interim(102))
        elif self._between_chunks:
            stream.send_nowait(b"0")
        return True

    @property
    def _between_chunks(self) -> bool:
        under_way = self._framing.chunked and not self._framing.ended
        return under_way and not self._write_buffer.busy and not self._write_buffer.size

    def drain(self) -> None:
        """End the connection with the response whose head is next. A request that is on its way
        already is still answered, because nobody could know if it was carried out."""
        self.closing = True
        self._inbound.give_last_chance()

    @property
    def reusable(self) -> bool:
        """Whether the connection goes on: the client took the whole response, and was not told of
        an end, whatever ``closing`` has become since; its next request may be on its way."""
        done = self._framing.ended and self._framing.goes_on and self._request_read
        return done and self.completed_at is not None

    async def abort(self, last_words: bytes = b"") -> None:
        """Cut the response short, so that nobody can take what has been sent for complete."""
        with suppress(ClientGone, ClientStalled):
            if not self._write_buffer.torn:
                if last_words and not self.response_complete:
                    self._write_buffer.hold(self._framing.frame(last_words))
                await self.flush()
        await self.close_at_once()
        self._framing.fail()  # even if it was complete, nothing more goes over this connection

    async def aclose(self) -> None:
        """Close. Where the client may still be sending, read on a little first: closing with
        unread input resets the connection, and the response can get lost (RFC 9112 section 9.6).
        """
        clean = self._request_read and not self._inbound.bytes
        if self.response_complete and not clean and not self._inbound.ended:
            await self._inbound.linger()
        await self.close_at_once()

    async def close_at_once(self) -> None:
        """Close, whatever is under way."""
        cut = self._framing.started and not self._framing.ended
        # Where the connection's end is the body's end, only a reset is a cut.
        if cut and not self._framing.chunked and isinstance(self.stream, SocketStream):
            self.stream.reset()
        await self.stream.aclose()
