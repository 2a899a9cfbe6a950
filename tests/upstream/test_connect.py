"""The way upstream by itself: addresses tried, writes held, and the check before a second use."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpcore
import pytest
from end_to_end import free_port
from memory import MemoryStream, memory_pair

from ape_cerebras.downstream.listener import open_listeners
from ape_cerebras.errors import InvalidResponse
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import UpstreamStream, connect_tcp

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]


@asynccontextmanager
async def listening(host: str = "127.0.0.1") -> AsyncIterator[int]:
    listeners = open_listeners(host, 0)
    yield listeners[0].getsockname()[1]
    for listener in listeners:
        listener.close()


async def test_a_name_becomes_the_address_that_answers() -> None:
    """``localhost`` is ::1 and 127.0.0.1 nearly everywhere, and only one of them listens."""
    async with listening("127.0.0.1") as port:
        stream = await connect_tcp("localhost", port)
        assert isinstance(stream, SocketStream)
        sock: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        assert sock.getpeername()[:2] == ("127.0.0.1", port)
        stream.close()


async def test_nobody_there_is_an_oserror() -> None:
    for host, port in (("127.0.0.1", free_port()), ("no-such-host.invalid", 80)):
        with pytest.raises(OSError):  # noqa: PT011 - of any kind
            await connect_tcp(host, port)


async def test_a_cancelled_attempt_keeps_no_socket() -> None:
    """Unclosed sockets are warnings, and warnings are errors here."""
    async with listening() as port:
        for turns in range(8):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(connect_tcp_and_close, port)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()


async def connect_tcp_and_close(port: int) -> None:
    (await connect_tcp("127.0.0.1", port)).close()


async def plain() -> tuple[UpstreamStream, MemoryStream]:
    ours, theirs = memory_pair()
    return await UpstreamStream.start(ours, None, "upstream"), theirs


async def test_what_is_written_leaves_in_one_piece_when_the_answer_is_read() -> None:
    stream, peer = await plain()
    assert stream.sent_at is None
    stream.hold(b"head")
    stream.hold(b"body")
    with anyio.move_on_after(0) as nothing_yet:
        await peer.receive()
    assert nothing_yet.cancelled_caught
    await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    assert (await stream.read_head()).for_h11 == b"HTTP/1.1 200 OK\r\n\r\n"
    assert await peer.receive() == b"headbody"
    assert stream.sent_at == stream.raw.left_at


async def test_ends_and_breaks_are_httpcores() -> None:
    stream, peer = await plain()
    await peer.send_eof()
    assert await stream.read(100) == b""
    stream, peer = await plain()
    stream.close()
    with pytest.raises(httpcore.ReadError):
        await stream.read(100)
    stream, _ = await plain()
    stream.raw.read_timeout = 0.01
    with pytest.raises(httpcore.ReadTimeout):
        await stream.read(100)


async def test_an_answer_to_a_request_that_could_not_be_written_is_read_all_the_same() -> None:
    stream, peer = await plain()
    await peer.send(b"HTTP/1.1 413 Too Large\r\n\r\n")
    peer.close()
    stream.hold(b"much")
    assert (await stream.read_head()).for_h11.startswith(b"HTTP/1.1 413 ")


async def test_each_request_gets_a_head_that_is_checked_and_a_body_that_is_not() -> None:
    stream, peer = await plain()
    for _ in range(2):
        stream.hold(b"request")
        for part in (b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 O", b"K\r\nX: y\r\nConnection:"):
            await peer.send(part)
        await peer.send(b" close\r\n\r\n\0")
        assert (await stream.read_head()).for_h11 == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        assert stream.head.headers == ((b"x", b"y"), (b"connection", b"close"))
        assert stream.take_behind_head() == b"\0"
        await peer.send(b"\0\n")
        assert await stream.read(100) == b"\0\n"
    stream.hold(b"request")
    await peer.send(b"\0")
    with pytest.raises(InvalidResponse):
        await stream.read_head()


async def test_quiet_means_up_and_silent() -> None:
    stream, peer = await plain()
    assert await stream.is_quiet()
    assert await stream.is_quiet()
    await peer.send(b"x")
    assert not await stream.is_quiet()
    stream, peer = await plain()
    peer.close()
    assert not await stream.is_quiet()


LARGE = b"x" * 8_000_000  # more than fits in between


@asynccontextmanager
async def overtaken(answer: bytes) -> AsyncIterator[tuple[SocketStream, UpstreamStream]]:
    """A server that has answered before it takes anything of a large request, and who makes that
    request."""
    [listener] = open_listeners("127.0.0.1", 0)
    with listener:
        raw = await connect_tcp(*listener.getsockname())
        await anyio.wait_readable(listener)
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    peer, stream = SocketStream(accepted), await UpstreamStream.start(raw, None, "a")
    await peer.send(answer)
    stream.hold(LARGE)
    with anyio.fail_after(10):
        yield peer, stream
    for each in (peer, stream):
        each.close()


async def test_an_answer_that_overtakes_its_request_has_come_with_the_requests_end() -> None:
    async def take() -> None:
        taken = 0
        while taken < len(LARGE):
            taken += len(await peer.receive())

    answer = b"HTTP/1.1 200 OK\r\n\r\n"
    async with overtaken(answer) as (peer, stream), anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        assert (await stream.read_head()).for_h11 == answer
    assert stream.sent_at is not None
    assert stream.arrived_at == stream.sent_at
    assert not stream.torn


async def test_a_refusal_that_overtakes_its_request_ends_that() -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\n\r\n"
    async with overtaken(refusal) as (_, stream):
        assert (await stream.read_head()).for_h11 == refusal
        assert stream.torn
    assert stream.sent_at is not None
    assert stream.arrived_at == stream.sent_at
