"""HTTP/1.1 over one stream: a request at a time, and its response, head first, piece by piece.

Writes are held until the response is read, so that head and body of a request leave in one piece.
Closing awaits nothing, so that a cancelled request closes its connection there and then.
"""

import math
import ssl
from functools import lru_cache

import anyio
import h11
import httpcore
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream

from ..errors import FirstByteTimeout, IdleTimeout, InvalidResponse, RequestRefused, Truncated
from ..http1.body import BodyReader
from ..http1.messages import Headers, with_fields
from ..http1.response_head import ResponseHead
from ..net.stream import READ_BYTES, PeerStalled, TimestampedStream, WriteBuffer

__all__ = ("Connection", "UpstreamStream")

_END = h11.EndOfMessage()
_AT_ONCE = 64 * 1024
"""Bytes of a request that are sent before anything is read. The kernel takes as many."""


class UpstreamStream(httpcore.AsyncNetworkStream):
    """httpcore's network stream over one of ours.

    ``raw`` is the timestamped stream at the bottom; ``stream`` is that, or TLS over it.
    """

    def __init__(self, raw: TimestampedStream, stream: ByteStream) -> None:
        self.raw = raw
        self._stream = stream
        self.buffer = WriteBuffer(stream)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes; empty at the end. Raises httpcore's ReadError and ReadTimeout."""
        try:
            return await self._stream.receive(max_bytes)
        except EndOfStream:
            return b""
        except PeerStalled:
            raise httpcore.ReadTimeout from None
        except (BrokenResourceError, ClosedResourceError, ssl.SSLError):
            raise httpcore.ReadError from None

    async def receive_now(self) -> bytes | None:
        """What has arrived, read through TLS too: b"" at the end, None where nothing has arrived.

        Never waits. TLS streams of anyio cannot do that, so the timeout of the socket below is 0
        meanwhile. It has to be a read, not a look at the socket: a server may send a TLS session
        ticket at any time, which is no response.
        """
        self.raw.read_timeout = 0
        try:
            return await self._stream.receive(READ_BYTES)
        except PeerStalled:
            return None
        except (EndOfStream, BrokenResourceError, ClosedResourceError, ssl.SSLError):
            return b""
        finally:
            self.raw.read_timeout = math.inf

    async def aclose(self) -> None:
        self.raw.close()


@lru_cache(maxsize=16)
def _request(method: str, target: bytes, host: bytes) -> h11.Request:
    """A request's head as far as h11 needs it; nearly always the same."""
    return h11.Request(method=method, target=target, headers=[(b"host", host)])


class Connection:
    """A connection to the API, for one exchange at a time.

    h11 writes request heads, and decides from both heads whether the connection goes on;
    ``http1/body`` reads the bodies.
    ``sent_at``: when the latest request had been written, None before. ``arrived_at``: when the
    latest bytes arrived; those that arrive while the request is still being written count as
    arrived with the request's end, because no duration is negative. Both on the loop's clock.
    """

    def __init__(self, stream: UpstreamStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)
        self.sent_at: float | None = None
        self.arrived_at = -math.inf
        self._head = ResponseHead()
        self._reader: BodyReader | None = None  # None where the body ends with the connection
        self._arrived = bytearray()  # of the body, and not read yet
        self._has_news = False  # whether some of that has arrived since the reader looked
        self._ended_cleanly = False

    async def request(
        self, method: str, target: bytes, host: bytes, headers: Headers = (), body: bytes = b""
    ) -> ResponseHead:
        """Send a request; return the head of its response. Interim responses are skipped.

        ``headers`` are those beside Host and Content-Length, and have been checked. Raises
        FirstByteTimeout and InvalidResponse.
        """
        self._ended_cleanly = False
        self.sent_at = None
        head = self._head = ResponseHead()
        encode, buffer = self._h11.send, self.stream.buffer
        length = [(b"content-length", str(len(body)).encode())] if method == "POST" else []
        lines = encode(_request(method, target, host)) or b""
        buffer.hold(with_fields(lines, (*length, *headers)))
        buffer.hold(body)
        encode(_END)
        try:
            await (self._flush() if buffer.size <= _AT_ONCE else self._flush_listening())
            if not head.complete:
                await self._read_head()
        except (httpcore.ReadTimeout, httpcore.WriteTimeout):
            raise FirstByteTimeout from None
        except httpcore.ReadError:
            raise InvalidResponse from None
        if not head.complete:  # the connection ended before it
            raise InvalidResponse
        self.arrived_at = max(self.stream.raw.arrived_at, self.sent_at or -math.inf)
        self._reader = head.body_reader()
        return head

    async def _read_head(self) -> None:
        while data := await self.stream.read(READ_BYTES):
            behind = self._head.feed(data)
            if self._head.complete:
                self._arrived += data[len(data) - behind :]
                self._has_news = behind > 0
                return

    async def _flush(self) -> None:
        try:
            await self.stream.buffer.flush()
        except BrokenResourceError:
            # A server may reject a body while it is on its way, respond, and close. Its response
            # can still be read, so the read reports what the write found.
            pass
        except PeerStalled:
            raise httpcore.WriteTimeout from None
        self.sent_at = self.stream.raw.left_at

    async def _flush_listening(self) -> None:
        """Write a large request and read at the same time: a server may reject it early and stop
        reading without closing. A rejection, or the end, ends the writing (RFC 9112 section
        9.5)."""
        raw = self.stream.raw
        waited = raw.read_wait_seconds
        failures: list[Exception] = []

        async def listen() -> None:
            try:
                await self._read_head()
            except InvalidResponse as error:
                failures.append(error)
            except (httpcore.ReadError, httpcore.ReadTimeout):  # the write reports them
                return
            if not 200 <= self._head.status < 300:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            try:
                await self._flush()
            except httpcore.WriteTimeout as error:
                failures.append(error)
            tasks.cancel_scope.cancel()
        self.sent_at = raw.left_at
        raw.read_wait_seconds = waited  # both waited for the same
        if failures:
            raise failures[0]

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body, without its framing; None at its end.

        Raises IdleTimeout, Truncated, and what ``before_wait`` raises.
        """
        reader, raw = self._reader, self.stream.raw
        sent_at = self.sent_at or -math.inf
        try:
            if reader is None:
                data = bytes(self._arrived) or await self.stream.read(READ_BYTES)
                self.arrived_at = max(raw.arrived_at, sent_at)
                self._arrived.clear()
                return data or None
            if reader.paused:
                await anyio.lowlevel.checkpoint()
            while not reader.ended:
                if not (self._has_news or reader.paused):
                    arrived = await self.stream.read(READ_BYTES)
                    if not arrived:
                        raise Truncated
                    self.arrived_at = max(raw.arrived_at, sent_at)
                    self._arrived += arrived
                self._has_news = False
                if data := reader.take(self._arrived):
                    return data
        except httpcore.ReadTimeout:
            raise IdleTimeout from None
        except (httpcore.ReadError, RequestRefused):  # the latter: malformed framing
            raise Truncated from None
        # Only now, so that no first token waits for it.
        state = self._h11
        state.receive_data(self._head.for_h11)
        state.next_event()
        state.next_event()
        if state.our_state is h11.DONE and state.their_state is h11.DONE:
            state.start_next_cycle()
            self._ended_cleanly = not self._arrived
        return None

    @property
    def reusable(self) -> bool:
        """Whether the latest request was sent whole, and its response ended cleanly, with nothing
        read beyond its end."""
        return self._ended_cleanly and not self.stream.buffer.torn

    def close(self) -> None:
        self.stream.raw.close()
