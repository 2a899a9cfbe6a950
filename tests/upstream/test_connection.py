"""One connection to the API by itself: writes held, heads checked, and the check before a second
use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpcore
import pytest
from memory_stream import MemoryStream, memory_pair

from ape_cerebras.downstream.listener import open_listeners
from ape_cerebras.errors import (
    ClientStalled,
    FirstByteTimeout,
    IdleTimeout,
    InvalidResponse,
    Truncated,
)
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp
from ape_cerebras.upstream.connection import Connection, UpstreamStream

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def connected() -> tuple[Connection, MemoryStream]:
    ours, theirs = memory_pair()
    return Connection(UpstreamStream(ours, ours)), theirs


URL = httpcore.URL("http://a/")
HEADERS = ((b"host", b"a"),)


async def body_of(connection: Connection) -> bytes:
    body = b""
    while (chunk := await connection.next_chunk()) is not None:
        body += chunk
    return body


async def test_head_and_body_of_a_request_leave_in_one_piece() -> None:
    connection, peer = connected()
    assert connection.stream.sent_at is None
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    head = await connection.request("POST", URL, (*HEADERS, (b"content-length", b"4")), b"body")
    assert head.status == 200
    assert await peer.receive() == b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"
    raw = connection.stream.raw
    assert connection.stream.sent_at == raw.sent_at
    assert connection.stream.send_seconds == raw.send_seconds


async def test_httpcores_timeouts_are_kept() -> None:
    ours, _ = memory_pair(capacity=4)
    stream = UpstreamStream(ours, ours)
    with pytest.raises(httpcore.ReadTimeout):
        await stream.read(100, timeout=0.01)
    await ours.send(b"full")
    await stream.write(b"x", timeout=0.01)
    with pytest.raises(httpcore.WriteTimeout):
        await stream.read(100)


async def test_httpcore_gets_the_head_and_nothing_behind_it() -> None:
    ours, peer = memory_pair()
    stream = UpstreamStream(ours, ours)
    heads = b"HTTP/1.1 103 E\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"
    await stream.write(b"GET / ")
    await stream.write(b"HTTP/1.1\r\n\r\n")
    assert ours.sent == []
    for part in (heads[0] + heads[1][:20], heads[1][20:] + b"body", b"more"):
        await peer.send(part)
    assert await stream.read(100) == heads[0] + heads[1]
    assert ours.sent == [b"GET / HTTP/1.1\r\n\r\n"]
    assert not stream.is_clean
    assert [await stream.read(100) for _ in range(2)] == [b"body", b"more"]
    assert stream.is_clean


async def test_ends_and_breaks_are_httpcores() -> None:
    ours, theirs = memory_pair()
    stream = UpstreamStream(ours, ours)
    ours.read_timeout = 0.01
    with pytest.raises(httpcore.ReadTimeout):
        await stream.read(100)
    await theirs.send_eof()
    assert await stream.read(100) == b""
    await stream.aclose()
    with pytest.raises(httpcore.ReadError):
        await stream.read(100)


async def test_a_response_to_a_request_that_could_not_be_written_is_read_all_the_same() -> None:
    connection, peer = connected()
    await peer.send(b"HTTP/1.1 413 Too Large\r\n\r\n")
    peer.close()
    assert (await connection.request("GET", URL, HEADERS)).status == 413


async def test_each_request_gets_a_head_that_is_checked_and_a_body_that_is_not() -> None:
    connection, peer = connected()
    for _ in range(2):
        for part in (b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 O", b"K\r\nX: y\r\nContent-"):
            await peer.send(part)
        await peer.send(b"Length: 3\r\n\r\n\0")
        head = await connection.request("GET", URL, HEADERS)
        assert head.headers == ((b"x", b"y"), (b"content-length", b"3"))
        assert await peer.receive() == GET
        await peer.send(b"\0\n")
        assert await body_of(connection) == b"\0\0\n"
        assert connection.reusable
    await peer.send(b"\0")
    with pytest.raises(InvalidResponse):
        await connection.request("GET", URL, HEADERS)
    assert not connection.reusable


@pytest.mark.parametrize(
    ("response", "reusable"),
    [
        (b"200 OK\r\ncontent-length: 2\r\n\r\nok", True),
        (b"200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
        (b"200 OK\r\ncontent-length: 2\r\n\r\nokHTTP", False),
        (b"200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", False),
        (b"200 OK\r\n\r\nok", False),
    ],
)
async def test_a_connection_is_reusable_where_its_response_ended_cleanly(
    response: bytes, reusable: bool
) -> None:
    connection, peer = connected()
    await peer.send(b"HTTP/1.1 " + response)
    if b"length" not in response and b"chunked" not in response:
        await peer.send_eof()
    await connection.request("GET", URL, HEADERS)
    assert not connection.reusable
    assert await body_of(connection) == b"ok"
    assert connection.reusable == reusable


async def test_what_is_missing_is_named_by_where_it_is_missing() -> None:
    connection, peer = connected()
    connection.stream.raw.read_timeout = 0.01
    with pytest.raises(FirstByteTimeout):
        await connection.request("GET", URL, HEADERS)
    connection, peer = connected()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
    connection.stream.raw.read_timeout = 0.01
    await connection.request("GET", URL, HEADERS)
    assert await connection.next_chunk() == b"o"
    with pytest.raises(IdleTimeout):
        await connection.next_chunk()
    await peer.send_eof()
    with pytest.raises(Truncated):
        await connection.next_chunk()


async def test_a_client_that_fails_before_a_read_waits_is_not_taken_for_a_truncated_response() -> (
    None
):
    async def flush() -> None:
        raise ClientStalled

    connection, peer = connected()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
    await connection.request("GET", URL, HEADERS)
    connection.stream.raw.before_wait = flush
    assert await connection.next_chunk() == b"ok"
    with pytest.raises(ClientStalled):
        await connection.next_chunk()


async def test_receive_now_reads_and_never_waits() -> None:
    connection, peer = connected()
    assert await connection.stream.receive_now() is None
    assert await connection.stream.receive_now() is None
    await peer.send(b"x")
    assert await connection.stream.receive_now() == b"x"
    peer.close()
    assert await connection.stream.receive_now() == b""


LARGE = b"x" * 8_000_000  # more than fits in between
WITH_LENGTH = (*HEADERS, (b"content-length", b"8000000"))


@asynccontextmanager
async def overtaken(response: bytes) -> AsyncIterator[tuple[SocketStream, Connection]]:
    """A server that has responded before it takes anything of a large request, and who makes that
    request."""
    [listener] = open_listeners("127.0.0.1", 0)
    with listener:
        raw = await connect_tcp(*listener.getsockname())
        await anyio.wait_readable(listener)
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    peer, connection = SocketStream(accepted), Connection(UpstreamStream(raw, raw))
    await peer.send(response)
    with anyio.fail_after(10):
        yield peer, connection
    peer.close()
    connection.close()


async def test_a_response_that_overtakes_its_request_has_come_with_the_requests_end() -> None:
    async def take() -> None:
        taken = 0
        while taken < len(LARGE):
            taken += len(await peer.receive())

    async with (
        overtaken(b"HTTP/1.1 200 OK\r\n\r\n") as (peer, connection),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(take)
        assert (await connection.request("POST", URL, WITH_LENGTH, LARGE)).status == 200
    assert connection.stream.sent_at is not None
    assert connection.arrived_at == connection.stream.sent_at
    assert connection.stream.is_clean


async def test_a_rejection_that_overtakes_its_request_ends_that() -> None:
    async with overtaken(b"HTTP/1.1 413 Content Too Large\r\n\r\n") as (_, connection):
        assert (await connection.request("POST", URL, WITH_LENGTH, LARGE)).status == 413
        assert not connection.stream.is_clean
    assert connection.stream.sent_at is not None
    assert connection.arrived_at == connection.stream.sent_at
