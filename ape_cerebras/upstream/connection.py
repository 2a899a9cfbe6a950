"""HTTP/1.1 over one stream: a request at a time, and its response, head first, piece by piece.

httpcore sends each request and parses each head: one ``AsyncHTTP11Connection`` for each exchange,
over the stream that the pool keeps. The stream does what httpcore leaves to streams: it holds
writes until the response is read, so that head, body and end of a request leave in one piece; keeps
deadlines; notes arrivals. And it gives httpcore the head of the response, checked by
``ResponseGuard``, and nothing behind it, because httpcore 1.0.9 (and 2.16.2) takes what comes
behind a response for the next one.

The body is then piped from that same stream, the response's ``network_stream``, by the strict
readers of ``http1/body``. Whoever does that has to decide himself whether the connection goes on
(``keeps_alive``), and httpcore's connection ends with the exchange: it would read the body first.

Closing awaits nothing, so that a cancelled request closes its connection there and then.
"""

import math
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import anyio
import httpcore
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, WouldBlock
from anyio.abc import ByteStream

from ..errors import FirstByteTimeout, IdleTimeout, InvalidResponse, RequestRefused, Truncated
from ..http1.body import BodyReader, idle_timeout_in, keeps_alive, response_reader
from ..http1.messages import Headers
from ..http1.response_head import ResponseGuard
from ..net.stream import READ_BYTES, PeerStalled, RecordReader, TimestampedStream, WriteBuffer
from ..net.timestamps import CERTAIN_SECONDS

__all__ = ("Connection", "HandedOver", "ResponseHead", "UpstreamStream")

_FAILURES = (EndOfStream, BrokenResourceError, ClosedResourceError, ssl.SSLError)
_RECORDS_AT_ONCE = 32  # of TLS that are handled one by one before other streams
_AT_ONCE = 64 * 1024
"""Bytes of a request that are sent before anything is read. The kernel takes as many."""


class HandedOver(Exception):
    """What a handler of arrivals leaves to the task that waits for them: a chunk, which is empty
    where the content has ended; the failure of its read; or neither, to look at the framing."""

    def __init__(self, chunk: bytes | None = None, failure: Exception | None = None) -> None:
        super().__init__()
        self.chunk = chunk
        self.failure = failure

    def take(self) -> Exception:
        """What to raise of it. The failure gets this for its context where it is raised, and may
        not be its attribute any more: that would be a reference cycle."""
        failure, self.failure = self.failure, None
        return failure or self


class UpstreamStream(httpcore.AsyncNetworkStream):
    """httpcore's network stream over one of ours.

    Writes are held. The first read behind them sends them and gives the head of the response; those
    that follow give what is behind the head, whatever it is.

    ``raw`` is the timestamped stream at the bottom; ``stream`` is that, or TLS over it. Timeouts in
    seconds are those of ``raw`` where httpcore names none. ``sent_at``: when the latest request was
    written, None before; ``send_seconds``: how long the write took. ``cause``: why nothing more can
    be read, of ``CAUSES``; None while that is not so. ``has_heard``: whether any byte of a response
    has arrived. A user of the stream clears these before each request.
    """

    def __init__(self, raw: TimestampedStream, stream: ByteStream) -> None:
        self.raw = raw
        self.sent_at: float | None = None
        self.send_seconds = 0.0
        self.cause: str | None = None
        self.has_heard = False
        self._records = None if stream is raw else RecordReader(raw, stream)
        self._incoming = self._records or raw
        self._writes = WriteBuffer(stream)
        self._awaits_head = False
        self._arrived = bytearray()  # and not read yet
        self._handler: Callable[[bytes], bool] | None = None

    @property
    def is_clean(self) -> bool:
        """Whether no write was cut short, and everything that has been received has been read."""
        return not (self._writes.torn or self._arrived)

    @property
    def may_have_been_taken_on(self) -> bool:
        """Whether upstream may work on the latest request: it was written whole, or responded
        to."""
        return self.sent_at is not None and (self.has_heard or not self._writes.torn)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if timeout is not None:
            self.raw.write_timeout = timeout
        if buffer:  # the end of a request has no bytes
            self._writes.hold(buffer)
        self._awaits_head = True

    def read(self, max_bytes: int, timeout: float | None = None) -> Coroutine[Any, Any, bytes]:
        """The next bytes; empty at the end. Raises httpcore's ReadError, ReadTimeout and
        WriteTimeout, and InvalidResponse where a head is refused."""
        if timeout is not None:
            self.raw.read_timeout = timeout
        if self._awaits_head:
            return self._send_and_read_head()
        return self._read_arrived() if self._arrived else self._receive(max_bytes)

    async def _read_arrived(self) -> bytes:
        data = bytes(self._arrived)
        self._arrived.clear()
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        try:
            try:
                return await self._incoming.receive(max_bytes)
            except HandedOver as left:
                if left.chunk is None and left.failure is None:
                    return b""
                raise left.take() from None
        except EndOfStream:
            self.cause = "closed"
            return b""
        except PeerStalled:
            raise httpcore.ReadTimeout from None
        except (BrokenResourceError, ClosedResourceError, ssl.SSLError) as error:
            self.cause = "tls_closed" if isinstance(error, ssl.SSLError) else "ECONNRESET"
            raise httpcore.ReadError from None

    async def _send_and_read_head(self) -> bytes:
        guard = ResponseGuard()
        head = None
        if self._writes.size <= _AT_ONCE:
            await self._flush()
        else:
            head = await self._flush_listening(guard)
        if head is None:
            head = await self._read_head(guard)
        self._awaits_head = False
        return head

    async def _read_head(self, guard: ResponseGuard) -> bytes:
        """The head of the response, and those of interim ones before it; empty where the connection
        ends first."""
        arrived, end = self._arrived, 0
        while not end:
            data = await self._receive(READ_BYTES)
            if not data:
                return b""
            self.has_heard = True
            arrived += data
            end = guard.end_of_head(arrived)
        head = bytes(arrived[:end])
        del arrived[:end]
        return head

    async def _flush(self) -> None:
        try:
            await self._writes.flush()
        except BrokenResourceError:
            # A server may reject a body while it is on its way, respond, and close. Its response
            # can still be read, so the read reports what the write found.
            pass
        except PeerStalled:
            raise httpcore.WriteTimeout from None
        self._note_sent()

    async def _flush_listening(self, guard: ResponseGuard) -> bytes | None:
        """Write a large request and read at the same time: a server may reject it early and stop
        reading without closing. A rejection, or the end, ends the writing (RFC 9112 section 9.5).
        Return the head if it has come."""
        raw = self.raw
        waited = raw.read_wait_seconds
        failures: list[Exception] = []
        head: bytes | None = None

        async def listen() -> None:
            nonlocal head
            try:
                head = await self._read_head(guard)
            except InvalidResponse as error:
                failures.append(error)
            except (httpcore.ReadError, httpcore.ReadTimeout):  # the write reports them
                return
            if not 200 <= guard.status < 300:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            try:
                await self._flush()
            except httpcore.WriteTimeout as error:
                failures.append(error)
            tasks.cancel_scope.cancel()
        self._note_sent()
        raw.read_wait_seconds = waited  # both waited for the same
        if failures:
            raise failures[0]
        return head

    def _note_sent(self) -> None:
        # As ``raw.sent_at`` has it, without two calls for each exchange.
        left_at = self.raw.left_at
        self.send_seconds = max(0.0, self.raw.written_at - left_at)
        self.sent_at = left_at + min(self.send_seconds, CERTAIN_SECONDS) / 2

    async def receive_now(self) -> bytes | None:
        """What has arrived, read through TLS too: b"" at the end, None where nothing has arrived.

        Never waits. TLS streams of anyio cannot do that, so the timeout of the socket below is 0
        meanwhile. It has to be a read: a TLS session ticket may come any time, and is no response.
        """
        if self._records is None and not self.raw.may_have_arrived:
            return None
        timeout, self.raw.read_timeout = self.raw.read_timeout, 0
        try:
            return await self._incoming.receive(READ_BYTES)
        except PeerStalled:
            return None
        except _FAILURES:
            return b""
        finally:
            self.raw.read_timeout = timeout

    def handle_arrivals(self, handler: Callable[[bytes], bool] | None) -> bool:
        """Call ``handler`` with what arrives while a ``read`` waits, through TLS too; see
        ``TimestampedStream``. What it raises ``read`` raises."""
        self._handler = handler
        return self.raw.handle_arrivals(None if handler is None else self._handle_arrival)

    def _handle_arrival(self) -> bool:
        """Handle what has arrived. Whatever is left then is for a new ``receive``: TLS may have
        decrypted more, and who waits for the socket would not see that."""
        records, incoming = self._records, self._incoming
        for _ in range(_RECORDS_AT_ONCE):
            one_by_one = self.raw.peeks
            try:
                data = incoming.receive_nowait()
            except WouldBlock:
                return True
            except _FAILURES as failure:
                raise HandedOver(failure=failure) from None
            if self._handler is None or not self._handler(data):
                break
            if records is None or not records.has_more:
                return True
            if not one_by_one:
                break
        raise HandedOver

    async def aclose(self) -> None:
        self.raw.close()


class _Body:
    """A request's body in one piece, as httpcore takes it. ``bytes`` would become an async
    generator, of which every event loop keeps account."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        data, self._left = self._left, b""
        if not data:
            raise StopAsyncIteration
        return data


class ResponseHead(NamedTuple):
    """Of a final response. ``headers`` have lower-case names. ``first``: the first value of each
    name, so that nobody walks through all fields for one that mostly is not there."""

    status: int
    headers: Headers
    first: dict[bytes, bytes]


class Connection:
    """A connection to the API, for one exchange at a time.

    ``arrived_at``: when the latest bytes arrived; those that arrive while the request is still
    being written count as arrived with the request's end, because no duration is negative. On the
    loop's clock, as the ``sent_at`` of its stream is. ``idle_timeout``: the seconds for which
    upstream says that it keeps the connection idle; infinity if it does not say. ``reusable``:
    whether the latest request was sent whole, and its response ended cleanly, with nothing read
    beyond its end.
    """

    def __init__(self, stream: UpstreamStream) -> None:
        self.stream = stream
        self.arrived_at = -math.inf
        self.idle_timeout = math.inf
        self._origin: httpcore.Origin | None = None
        self._reader: BodyReader | None = None  # None where the body ends with the connection
        self._keeps_alive = False
        self._arrived = bytearray()  # of the body, and not read yet
        self._handler: Callable[[bytes], bool] | None = None
        self.reusable = False

    async def request(
        self, method: str, url: httpcore.URL, headers: Headers, body: bytes = b""
    ) -> ResponseHead:
        """Send a request; return the head of its response. Interim responses are skipped.

        ``headers`` are all there are, and have been checked. Raises FirstByteTimeout and
        InvalidResponse.
        """
        stream = self.stream
        self.reusable = False
        stream.sent_at = stream.cause = None
        stream.has_heard = False
        request = httpcore.Request(method, url, content=_Body(body))
        # Set, not passed: httpcore looks whether each that is passed has to be encoded, which takes
        # 35,000 instructions for nine fields, of the 2.3 million of a plain exchange.
        request.headers = list(headers)
        origin = self._origin = self._origin or url.origin  # a new one each time it is read
        try:
            http = httpcore.AsyncHTTP11Connection(origin, stream)
            response = await http.handle_async_request(request)
        except (httpcore.ReadTimeout, httpcore.WriteTimeout):
            raise FirstByteTimeout from None
        except (httpcore.ReadError, httpcore.RemoteProtocolError):
            cut = "head_cut" if stream.has_heard else stream.cause
            raise InvalidResponse(cut if stream.cause else "malformed_head") from None
        fields = tuple([(name.lower(), value) for name, value in response.headers])
        self.arrived_at = max(stream.raw.arrived_at, stream.sent_at or -math.inf)
        first = dict(fields[::-1])
        self.idle_timeout = idle_timeout_in(fields) if b"keep-alive" in first else math.inf
        self._keeps_alive = keeps_alive(response.extensions["http_version"], fields)
        self._reader = response_reader(response.status, first)
        self._body: httpcore.AsyncNetworkStream = response.extensions["network_stream"]
        return ResponseHead(response.status, fields, first)

    def handle_chunks(self, handler: Callable[[bytes], bool] | None) -> None:
        """Call ``handler`` with the chunks that arrive while ``next_chunk`` waits, where the stream
        can do that; see ``TimestampedStream.handle_arrivals``. What it raises that one raises."""
        self._handler = handler
        framed = handler is not None and self._reader is not None
        self.stream.handle_arrivals(self._handle_arrival if framed else None)

    def _handle_arrival(self, arrived: bytes) -> bool:
        reader, stream, handler = self._reader, self.stream, self._handler
        assert reader is not None  # noqa: S101 - handle_chunks
        assert handler is not None  # noqa: S101 - likewise
        self.arrived_at = max(stream.raw.arrived_at, stream.sent_at or -math.inf)
        chunk = b"" if self._arrived else reader.take_only_chunk(arrived)
        if not chunk:
            self._arrived += arrived
            chunk = reader.take(self._arrived)
        goes_on = not chunk or handler(chunk)
        if reader.ended or reader.paused:
            raise HandedOver
        return goes_on

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body, without its framing; None at its end.

        Raises IdleTimeout, Truncated, and what ``before_wait`` and the handler of chunks raise.
        """
        reader, stream = self._reader, self.stream
        sent_at = stream.sent_at or -math.inf
        try:
            if reader is None:
                data = await self._body.read(READ_BYTES)
                self.arrived_at = max(stream.raw.arrived_at, sent_at)
                return data or None
            while not reader.ended:
                if reader.paused:
                    await anyio.lowlevel.checkpoint()
                elif arrived := await self._body.read(READ_BYTES):
                    self.arrived_at = max(stream.raw.arrived_at, sent_at)
                    self._arrived += arrived
                elif stream.cause is not None:
                    raise Truncated(stream.cause)
                if data := reader.take(self._arrived):
                    return data
        except httpcore.ReadTimeout:
            raise IdleTimeout from None
        except (httpcore.ReadError, RequestRefused):  # the latter: malformed framing
            raise Truncated(stream.cause or "malformed_body") from None
        self.reusable = self._keeps_alive and not self._arrived and stream.is_clean
        return None

    def close(self) -> None:
        self.stream.raw.close()
