"""The way upstream: name to address, TCP, TLS, and the network stream that httpcore reads and
writes through.

Two things here are ours rather than httpcore's. Writes are held until the answer is read, so that
head and body of a request leave in one piece. And closing awaits nothing, so that a connection
whose request is cancelled, at whatever moment, TLS handshake included, is closed there and then.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable

import anyio
import httpcore
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ..errors import InvalidResponse
from ..http1.response_head import ResponseHead
from ..net.outbox import WriteBuffer
from ..net.socket_stream import READ_BYTES, PeerStalled, SocketStream, TimestampedStream

__all__ = ("RECEIVE_BUFFER", "Connect", "UpstreamStream", "connect_tcp")

Connect = Callable[[str, int], Awaitable[TimestampedStream]]
"""Host and port to a connected stream, whose ``close`` awaits nothing; raises OSError."""

RECEIVE_BUFFER = 256 * 1024
"""Bytes that the kernel takes, and stamps, while a slow client keeps us from reading them. Fixed,
for the kernel lets its own choice grow only for those who read."""
_AT_ONCE = 64 * 1024
"""Bytes of a request that are sent before anything is listened for. The kernel takes as much."""
_NEXT_ADDRESS_AFTER = 0.25  # seconds; RFC 8305 section 5, "Connection Attempt Delay"


async def connect_tcp(host: str, port: int) -> TimestampedStream:
    """Connect to the first of the host's addresses that answers, as RFC 8305 describes.

    Raises OSError (socket.gaierror among them) where none does.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    winner: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(family: int, address: tuple[object, ...], failed: anyio.Event) -> None:
        try:
            sock = await _connect_socket(family, address)
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            # Two may win in one turn of the loop; only the first is kept.
            winner.append(sock) if not winner else sock.close()
            racers.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as racers:
            for family, _, _, _, address in found:
                failed = anyio.Event()
                racers.start_soon(attempt, family, address, failed)
                with anyio.move_on_after(_NEXT_ADDRESS_AFTER):
                    await failed.wait()
    except BaseException:
        for sock in winner:
            sock.close()
        raise
    if not winner:
        raise failures[-1] if failures else OSError("no address")
    return SocketStream(winner[0])


async def _connect_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect") from None
    except BaseException:
        sock.close()
        raise
    return sock


class UpstreamStream(httpcore.AsyncNetworkStream):
    """httpcore's network stream over one of ours; plain, or TLS after ``start``.

    ``sent_at``: when the latest request had been written, on the loop's clock.
    """

    def __init__(self, raw: TimestampedStream) -> None:
        self.raw = raw
        self.sent_at: float | None = None
        self._stream: ByteStream = raw
        self._write_buffer = WriteBuffer(raw)
        self.head = ResponseHead()
        """Of the response to the latest request."""
        self._behind_head = b""

    @classmethod
    async def start(
        cls, raw: TimestampedStream, ssl_context: ssl.SSLContext | None, host: str
    ) -> "UpstreamStream":
        """A stream over ``raw``, after the TLS handshake where there is a context for one.

        ``raw`` is closed if that fails or is cancelled. Raises ssl.SSLError, BrokenResourceError,
        EndOfStream.
        """
        stream = cls(raw)
        if ssl_context is not None:
            try:
                # A TLS stream cut without close_notify is an error then, not an end
                # (RFC 9112 section 9.8): a cut answer must not look complete.
                stream._stream = await TLSStream.wrap(
                    raw, ssl_context=ssl_context, hostname=host, standard_compatible=True
                )
                stream._write_buffer = WriteBuffer(stream._stream)
            except BaseException:
                raw.close()
                raise
        return stream

    @property
    def arrived_at(self) -> float:
        """When the bytes of the latest read arrived. An answer may come while its request is still
        being written; it counts as arrived with the request's end, for no time is negative."""
        arrived_at = self.raw.arrived_at
        return arrived_at if self.sent_at is None else max(arrived_at, self.sent_at)

    def hold(self, data: bytes | None) -> None:
        """Have ``data`` written when the head of its answer is to be read."""
        self._write_buffer.hold(data)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What arrives next. Raises httpcore's ReadError and ReadTimeout."""
        try:
            return await self._stream.receive(max_bytes)
        except EndOfStream:
            return b""
        except PeerStalled:
            raise httpcore.ReadTimeout from None
        except (BrokenResourceError, ClosedResourceError, ssl.SSLError):
            raise httpcore.ReadError from None

    async def read_head(self) -> ResponseHead:
        """Write what is held, and read the head of the answer. Interim responses are passed over.

        Raises httpcore's ReadError, timeouts and RemoteProtocolError, and InvalidResponse.
        """
        self.head = ResponseHead()
        await (self._flush if self._write_buffer.size <= _AT_ONCE else self._flush_listening)()
        if not self.head.complete:
            await self._read_head()
        if not self.head.complete:
            raise httpcore.RemoteProtocolError("The connection ended before the head's end.")
        return self.head

    def take_behind_head(self) -> bytes:
        """What came in one read with a head, and belongs to the body."""
        data, self._behind_head = self._behind_head, b""
        return data

    async def _read_head(self) -> None:
        while data := await self.read(READ_BYTES):
            behind = self.head.feed(data)
            if self.head.complete:
                self._behind_head = data[len(data) - behind :]
                return

    async def _flush(self) -> None:
        try:
            await self._write_buffer.flush()
        except BrokenResourceError:
            # A server may refuse a body while it is still on its way, answer, and close. What it
            # said can still be read, so the failed write is left to the read to report.
            pass
        except PeerStalled:
            raise httpcore.WriteTimeout from None
        self.sent_at = self.raw.left_at

    async def _flush_listening(self) -> None:
        """The same, of much: a server may refuse it while it is on its way, and neither take the
        rest nor close. A refusal, or the end, ends the writing (RFC 9112 section 9.5)."""
        waited = self.raw.read_wait_seconds
        failures: list[Exception] = []

        async def listen() -> None:
            try:
                await self._read_head()
            except InvalidResponse as error:
                failures.append(error)
            except (httpcore.ReadError, httpcore.ReadTimeout):  # of which the write tells
                return
            if not 200 <= self.head.status < 300:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            try:
                await self._flush()
            except httpcore.WriteTimeout as error:
                failures.append(error)
            tasks.cancel_scope.cancel()
        self.sent_at = self.raw.left_at
        self.raw.read_wait_seconds = waited  # both waited for the same
        if failures:
            raise failures[0]

    @property
    def torn(self) -> bool:
        """Whether only a part of a request has gone out."""
        return self._write_buffer.torn

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
            self.raw.read_timeout = None

    async def is_quiet(self) -> bool:
        """Whether the connection is up and nothing has arrived on it: fit for another request. A
        stray byte would be taken for the next response."""
        return await self.receive_now() is None

    def close(self) -> None:
        self.raw.close()

    async def aclose(self) -> None:
        self.raw.close()
