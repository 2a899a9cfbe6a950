"""Chunks that are handled as they arrive, while the task that waits for the next one waits on."""

import gc
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import httpcore
import pytest
import trustme
from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream
from sockets import sockets
from waiting import until, wait_all_tasks_blocked

from ape_cerebras.errors import Truncated
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connection import Connection, HandedOver, UpstreamStream

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def encrypted(
    ours: SocketStream, theirs: SocketStream, authority: trustme.CA
) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    # Without the system's hundred certificates, whose reading takes longer than any of these tests.
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("localhost").configure_cert(server)
    ends: list[ByteStream] = []

    async def wrap() -> None:
        ends.append(await TLSStream.wrap(theirs, server_side=True, ssl_context=server))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wrap)
        stream = await TLSStream.wrap(ours, ssl_context=client, hostname="localhost")
    yield stream, ends[0]


class Relayed:
    """A connection in the middle of a response, the peer that sends it, and what arrived."""

    def __init__(self, connection: Connection, peer: ByteStream, raw_peer: SocketStream) -> None:
        self.connection, self.peer, self.raw_peer = connection, peer, raw_peer
        self.handled: list[bytes] = []
        self.returned: list[bytes | None] = []

    def handle(self, chunk: bytes) -> bool:
        self.handled.append(chunk)
        if chunk.endswith(b"left"):
            raise HandedOver(chunk)
        return True

    async def receive(self) -> None:
        self.returned.append(await self.connection.next_chunk())

    async def send(self, data: bytes, is_handled: Callable[[], bool]) -> None:
        """Send once everybody waits, and come back when that has had its effect."""
        await self.send_records((data,), is_handled)

    async def send_records(self, records: Sequence[bytes], is_handled: Callable[[], bool]) -> None:
        """Likewise, each as a record of TLS, in one segment."""
        await wait_all_tasks_blocked()
        for record in records[:-1]:
            self.peer.extra(TLSAttribute.ssl_object).write(record)
        await self.peer.send(records[-1])
        await until(is_handled)


@asynccontextmanager
async def relayed(authority: trustme.CA, *, tls: bool) -> AsyncIterator[Relayed]:
    async with sockets() as (ours, theirs):
        stream: ByteStream = ours
        peer: ByteStream = theirs
        if tls:
            async with encrypted(ours, theirs, authority) as (stream, peer):
                pass
        connection = Connection(UpstreamStream(ours, stream))
        await peer.send(HEAD)
        await connection.request("GET", httpcore.URL("http://a/"), ((b"host", b"a"),))
        await peer.receive()
        yield Relayed(connection, peer, theirs)


with_and_without_tls = pytest.mark.parametrize("tls", [False, True])


@with_and_without_tls
async def test_chunks_however_cut(tls: bool, authority: trustme.CA) -> None:
    async with relayed(authority, tls=tls) as relay, anyio.create_task_group() as tasks:
        relay.connection.handle_chunks(relay.handle)
        tasks.start_soon(relay.receive)
        handled = relay.handled
        await relay.send(framed(b"one"), lambda: handled == [b"one"])
        arrived_at = relay.connection.arrived_at
        await relay.send(framed(b"two")[:4], lambda: True)
        await relay.send(framed(b"two")[4:], lambda: b"".join(handled) == b"onetwo")
        await relay.send(framed(b"3") + framed(b"4"), lambda: b"".join(handled) == b"onetwo34")
        assert relay.connection.arrived_at > arrived_at
        assert relay.returned == []  # it waits on
        await relay.send(framed(b"last") + END, lambda: relay.returned == [None])
        assert b"".join(handled) == b"onetwo34last"
        assert relay.connection.reusable


@with_and_without_tls
async def test_a_chunk_that_is_left_to_the_task(tls: bool, authority: trustme.CA) -> None:
    async with relayed(authority, tls=tls) as relay, anyio.create_task_group() as tasks:
        relay.connection.handle_chunks(relay.handle)

        async def send() -> None:
            await relay.send(framed(b"a"), lambda: relay.handled == [b"a"])
            await relay.send(framed(b"is left"), lambda: True)

        tasks.start_soon(send)
        with pytest.raises(HandedOver) as left:
            await relay.connection.next_chunk()
        assert left.value.chunk == b"is left"
        relay.connection.handle_chunks(None)
        await relay.peer.send(framed(b"b") + END)
        assert await relay.connection.next_chunk() == b"b"
        assert await relay.connection.next_chunk() is None
        assert b"".join(relay.handled) == b"ais left"


@pytest.mark.parametrize("peeks", [False, True])
@pytest.mark.parametrize("handles", [False, True])
async def test_records_of_tls_that_arrive_together_are_one_chunk(
    handles: bool, peeks: bool, authority: trustme.CA
) -> None:
    """But for those that are still to be told apart. They have one arrival either way."""
    async with relayed(authority, tls=True) as relay, anyio.create_task_group() as tasks:
        connection = relay.connection
        connection.stream.raw.peek_arrivals(peeks)
        chunks: list[tuple[bytes, float]] = []

        def note(chunk: bytes) -> bool:
            chunks.append((chunk, connection.arrived_at))
            return True

        def content() -> bytes:
            return b"".join(chunk for chunk, _ in chunks)

        async def receive() -> None:
            while (chunk := await connection.next_chunk()) is not None:
                note(chunk)

        if handles:
            connection.handle_chunks(note)
        tasks.start_soon(receive)
        sent = [b"one", b"two", b"three"]
        records = [framed(each) for each in sent]
        await relay.send_records(records, lambda: b"onetwothree" in content())
        assert [chunk for chunk, _ in chunks] == (sent if peeks else [b"".join(sent)])
        assert len({arrived_at for _, arrived_at in chunks}) == 1
        await relay.send_records([*records, END], lambda: content() == 2 * b"onetwothree")
        assert chunks[-1][0] == (sent[-1] if peeks else b"".join(sent))

    assert connection.reusable


@pytest.mark.parametrize("cut", [1, 5, 30])
async def test_a_part_of_a_record_of_tls_delays_no_other(cut: int, authority: trustme.CA) -> None:
    async with relayed(authority, tls=True) as relay, anyio.create_task_group() as tasks:
        send, handled = relay.raw_peer.send, relay.handled
        relay.connection.handle_chunks(relay.handle)
        tasks.start_soon(relay.receive)

        async def send_cut(item: bytes) -> None:
            await send(item[:-cut])
            await until(lambda: bool(handled))
            assert handled == [b"onetwo"]
            await send(item[-cut:])

        relay.raw_peer.send = send_cut  # type: ignore[method-assign]
        records = [framed(each) for each in (b"one", b"two", b"three")]
        await relay.send_records(records, lambda: handled == [b"onetwo", b"three"])
        tasks.cancel_scope.cancel()


async def test_more_records_than_are_handled_at_once(authority: trustme.CA) -> None:
    """The rest is for the task, behind other streams."""
    async with relayed(authority, tls=True) as relay, anyio.create_task_group() as tasks:
        relay.connection.handle_chunks(relay.handle)
        tasks.start_soon(relay.receive)
        records = [framed(b"%03d" % number) for number in range(100)]
        await relay.send_records(records, lambda: bool(relay.returned))
        assert relay.handled == [b"".join(b"%03d" % number for number in range(32))]
        assert relay.returned == [b"".join(b"%03d" % number for number in range(32, 64))]


@pytest.mark.parametrize("end", ["closed", "cut", "reset", "malformed", "trailing"])
@with_and_without_tls
async def test_every_end_is_the_same_as_without(tls: bool, end: str, authority: trustme.CA) -> None:
    async def found(*, handles: bool) -> tuple[object, ...]:
        async with relayed(authority, tls=tls) as relay, anyio.create_task_group() as tasks:
            if handles:
                relay.connection.handle_chunks(relay.handle)

            async def finish() -> None:
                await relay.send(framed(b"a"), lambda: bool(relay.handled or chunks))
                await wait_all_tasks_blocked()
                if end == "closed":
                    with suppress(anyio.BrokenResourceError, ssl.SSLError):
                        await relay.peer.aclose()
                elif end == "cut":
                    relay.raw_peer.close()
                elif end == "reset":
                    relay.raw_peer.reset()
                elif end == "malformed":
                    await relay.peer.send(b"odd\r\n")
                else:
                    await relay.peer.send(END + b"more")

            chunks: list[bytes] = []
            cause = None
            tasks.start_soon(finish)
            try:
                while (chunk := await relay.connection.next_chunk()) is not None:
                    chunks.append(chunk)
            except Truncated as truncated:
                cause = truncated.cause
            relay.connection.close()  # which a peer's end of TLS waits for
            return b"".join(relay.handled + chunks), cause, relay.connection.reusable
        raise AssertionError

    expected = await found(handles=False)
    assert expected[0] == b"a"
    assert await found(handles=True) == expected


@pytest.mark.parametrize("last", [b"b", b"is left"])
@pytest.mark.parametrize("handles", [False, True])
async def test_a_failure_of_tls_is_found_behind_what_arrived_with_it(
    handles: bool, last: bytes, authority: trustme.CA
) -> None:
    async with relayed(authority, tls=True) as relay, anyio.create_task_group() as tasks:
        send = relay.raw_peer.send
        relay.raw_peer.send = lambda item: send(item + garbage)  # type: ignore[method-assign]
        garbage = b"\x17\x03\x03\x00\x20" + bytes(32)  # in the form of a record
        if handles:
            relay.connection.handle_chunks(relay.handle)

        async def send_last() -> None:
            await relay.send(framed(last), lambda: True)

        tasks.start_soon(send_last)
        with suppress(HandedOver):
            if not handles or last == b"is left":
                relay.returned.append(await relay.connection.next_chunk())
        with pytest.raises(Truncated) as truncated:
            await relay.connection.next_chunk()
        assert truncated.value.cause == "tls_closed"
        assert relay.handled == ([last] if handles else [])
        assert relay.returned == ([] if handles else [last])
        assert not relay.connection.reusable


@pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
@with_and_without_tls
async def test_an_arrival_is_read_once(
    tls: bool, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not again to see that nothing is left, where edges tell: through TLS, too."""
    async with relayed(authority, tls=tls) as relay, anyio.create_task_group() as tasks:
        reads = 0
        read = SocketStream._read_arrived

        def counted(stream: SocketStream, max_bytes: int) -> bytes:
            nonlocal reads
            reads += stream is relay.connection.stream.raw
            return read(stream, max_bytes)

        relay.connection.handle_chunks(relay.handle)
        tasks.start_soon(relay.receive)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(SocketStream, "_read_arrived", counted)
        for number in range(1, 6):
            await relay.send(framed(b"a"), lambda: len(relay.handled) == number)  # noqa: B023
        assert reads == 5
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("last", [b"", b"a record, and then " + bytes(10)])
async def test_the_end_of_tls_leaves_no_cyclic_garbage(last: bytes, authority: trustme.CA) -> None:
    """It is found by the handler, and raised by the read."""
    async with relayed(authority, tls=True) as relay, anyio.create_task_group() as tasks:
        relay.connection.handle_chunks(relay.handle)
        send = relay.raw_peer.send

        async def finish() -> None:
            await wait_all_tasks_blocked()
            with suppress(anyio.BrokenResourceError, ssl.SSLError):
                if last:
                    relay.raw_peer.send = lambda item: send(item + bytes(40))  # type: ignore[method-assign]
                    await relay.peer.send(framed(last))
                else:
                    await relay.peer.aclose()

        tasks.start_soon(finish)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            with suppress(Truncated):
                await relay.connection.next_chunk()
            gc.collect()
            failures = [each for each in gc.garbage if isinstance(each, HandedOver | ssl.SSLError)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            relay.connection.close()  # which a peer's end of TLS waits for
        assert failures == []
