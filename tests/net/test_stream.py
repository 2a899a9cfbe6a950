"""The wrapper for any stream of anyio, and the write buffer."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ssl import PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER

import anyio
import pytest
import trustme
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream
from sockets import sockets

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import (
    PeerStalled,
    TimestampedStream,
    WrappedStream,
    WriteBuffer,
    timestamped,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]


@asynccontextmanager
async def foreign() -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """A connection made and accepted by anyio, as a host program would bring it."""
    accepted: list[ByteStream] = []
    arrived = anyio.Event()

    async def keep(stream: ByteStream) -> None:
        accepted.append(stream)
        arrived.set()
        await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, keep)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as ours:
            await arrived.wait()
            async with accepted[0]:
                yield ours, accepted[0]
        tasks.cancel_scope.cancel()


async def test_any_anyio_stream_can_be_timestamped() -> None:
    async with foreign() as (ours, theirs):
        wrapped = timestamped(theirs)
        assert isinstance(wrapped, WrappedStream)
        assert timestamped(wrapped) is wrapped
        await ours.send(b"a")
        assert await wrapped.receive() == b"a"
        await wrapped.send(b"b")
        assert await ours.receive() == b"b"
        assert wrapped.left_at <= wrapped.written_at
        wrapped.read_timeout = 0.02
        with pytest.raises(PeerStalled):
            await wrapped.receive()
        assert not wrapped.peer_is_gone()
        await ours.aclose()
        with pytest.raises((EndOfStream, BrokenResourceError)):
            await wrapped.receive()


async def test_bytes_leave_within_the_call_that_sends_them() -> None:
    sink = Sink()
    sink.left_at, sink.written_at = 100.0, 100.00002
    assert sink.sent_at == pytest.approx(100.00001)
    assert sink.send_seconds == pytest.approx(0.00002)
    sink.written_at = 100.5  # the process was preempted
    assert 100.0 < sink.sent_at < 100.0001
    assert sink.send_seconds == 0.5
    sink.written_at = 99.0  # the call failed
    assert (sink.sent_at, sink.send_seconds) == (100.0, 0.0)


class Sink(TimestampedStream):
    """Takes writes, and can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.broken = False

    async def send(self, item: bytes) -> None:
        if self.broken:
            raise BrokenResourceError
        self.writes.append(item)

    async def receive(self, max_bytes: int = 1) -> bytes:
        raise EndOfStream

    async def send_eof(self) -> None:
        pass

    def close(self) -> None:
        self.broken = True

    def peer_is_gone(self) -> bool:
        return self.broken


async def test_an_end_found_while_sending_is_a_broken_connection(authority: trustme.CA) -> None:
    """anyio's TLS stream raises this where it takes a cut for an end."""
    served, requesting = (ssl.SSLContext(way) for way in (PROTOCOL_TLS_SERVER, PROTOCOL_TLS_CLIENT))
    authority.issue_cert("a").configure_cert(served)
    authority.configure_trust(requesting)
    secured: list[TLSStream] = []

    async def wrap(stream: SocketStream, context: ssl.SSLContext, name: str | None) -> None:
        secured.append(
            await TLSStream.wrap(
                stream, hostname=name, ssl_context=context, standard_compatible=False
            )
        )

    async with sockets() as (ours, theirs):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wrap, theirs, served, None)
            await wrap(ours, requesting, "a")
        theirs.close()
        wrapped = timestamped(next(each for each in secured if each.transport_stream is ours))
        with pytest.raises(EndOfStream):
            await wrapped.receive()
        with pytest.raises(BrokenResourceError):
            await wrapped.send(b"a")
        assert wrapped.peer_is_gone()


async def test_held_bytes_are_sent_in_one_write() -> None:
    sink = Sink()
    buffer = WriteBuffer(sink)
    for part in (b"a", None, b"", b"bc"):
        buffer.hold(part)
    assert (buffer.size, sink.writes) == (3, [])
    await buffer.flush()
    await buffer.flush()
    assert (buffer.size, sink.writes, buffer.busy) == (0, [b"abc"], False)
    sink.broken = True
    buffer.hold(b"d")
    with pytest.raises(BrokenResourceError):
        await buffer.flush()
    assert not buffer.busy
