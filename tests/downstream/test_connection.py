"""The client's connection by itself, over memory: requests in any pieces, responses in one."""

import tracemalloc
from itertools import pairwise

import anyio
import pytest
from end_to_end import KEY, chat
from hypothesis import given
from hypothesis import strategies as st
from memory_stream import MemoryStream, memory_pair
from mock_clock import on_mock_clock
from waiting import wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.downstream.connection import Downstream
from ape_cerebras.errors import BadRequest, BodyTooLarge, ClientGone, RequestTimeout
from ape_cerebras.http1.messages import Request
from ape_cerebras.telemetry.exchange import Exchange

pytestmark = pytest.mark.anyio

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = (
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n7;a=b\r\n, world\r\n0\r\nX-Trailer: 1\r\n\r\n"
)


def connection(**settings: str) -> tuple[MemoryStream, Downstream]:
    config = Config.from_environment({"CEREBRAS_API_KEY": KEY, **settings})
    client, server = memory_pair()
    return client, Downstream(server, config)


def exchange() -> Exchange:
    return Exchange(started_at=0.0)


async def read_request(downstream: Downstream) -> tuple[Request, bytes]:
    assert await downstream.wait_for_request() is not None
    return await downstream.read_head(), bytes(await downstream.read_body())


async def respond(downstream: Downstream, body: bytes = b"ok") -> None:
    await downstream.respond(exchange(), 200, (), body)


@given(cuts=st.sets(st.integers(1, len(GET + CHUNKED + chat()) - 1)))
def test_requests_are_the_same_however_they_are_cut(cuts: set[int]) -> None:
    sent = GET + CHUNKED + chat()
    edges = [0, *sorted(cuts), len(sent)]
    pieces = [sent[begin:end] for begin, end in pairwise(edges)]
    found: list[tuple[str, bytes, bytes]] = []

    async def run() -> None:
        client, downstream = connection()
        for piece in pieces:
            await client.send(piece)
        for _ in range(3):
            request, body = await read_request(downstream)
            found.append((request.method, request.target, body))
            await respond(downstream)
            assert downstream.reusable

    anyio.run(run)
    assert found == [
        ("GET", b"/health", b""),
        ("POST", b"/x", b"hello, world"),
        ("POST", b"/v1/chat/completions", chat().partition(b"\r\n\r\n")[2]),
    ]


async def test_a_response_leaves_in_one_write() -> None:
    client, downstream = connection()
    await client.send(GET)
    await read_request(downstream)
    named = Exchange(started_at=0.0, request_id="abc", trace_id="def")
    await downstream.respond(named, 200, (), b"ok")
    sent = await client.receive()
    head, _, body = sent.partition(b"\r\n\r\n")
    ids = b"x-request-id: abc\r\nx-trace-id: def\r\n"
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n" + ids + b"date: ")
    assert body == b"ok"


async def test_held_chunks_leave_together_when_flushed() -> None:
    client, downstream = connection()
    await client.send(GET)
    await read_request(downstream)
    downstream.send_head(exchange(), 200, ())
    for part in (b"a", b"b"):
        await downstream.send_chunk(part, hold=True)
    await downstream.send_chunk(b"c")
    first = await client.receive()
    await downstream.send_chunk(b"d", hold=True)
    await downstream.send_end()
    await downstream.send_end()
    assert first.endswith(b"\r\n\r\n3\r\nabc\r\n")
    assert await client.receive() == b"1\r\nd\r\n0\r\n\r\n"


@pytest.mark.parametrize("most", [0, 1, 150, 1000])
async def test_chunks_sent_at_once_as_far_as_the_client_takes_them(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind what was held before, framed or not."""
    client, downstream = connection()
    taken = b""

    def take(item: bytes) -> int:
        nonlocal taken
        taken += item[:most]
        return len(item[:most])

    monkeypatch.setattr(downstream.stream, "send_now", take)
    await client.send(GET)
    await read_request(downstream)
    downstream.send_head(exchange(), 200, ())
    await downstream.send_chunk(b"a", hold=True)
    sent = [downstream.send_chunk_now(chunk) for chunk in (b"b", b"cd")]
    assert sent == [most >= 150] * 2
    await downstream.send_end()
    taken += await client.receive()
    assert taken.endswith(b"\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n")
    assert downstream.body_bytes == 4


async def test_holding_has_a_limit() -> None:
    client, downstream = connection()
    await client.send(GET)
    await read_request(downstream)
    downstream.send_head(exchange(), 200, ())
    for _ in range(5):
        await downstream.send_chunk(b"x" * 16 * 1024, hold=True)
    assert len(await client.receive()) == 64 * 1024  # of more than that


async def test_one_empty_line_before_a_request_is_read_over() -> None:
    client, downstream = connection()
    await client.send(b"\r\n" + GET)
    request, _ = await read_request(downstream)
    assert request.path == b"/health"
    client, downstream = connection()
    await client.send(b"\r\n\r\n" + GET)
    with pytest.raises(BadRequest):
        await read_request(downstream)


async def test_a_client_that_disconnects_in_the_middle_is_gone() -> None:
    for begun in (GET[:-3], chat()[:-1]):
        client, downstream = connection()
        await client.send(begun)
        await client.send_eof()
        with pytest.raises(ClientGone):
            await read_request(downstream)
    client, downstream = connection()
    await client.send_eof()
    assert await downstream.wait_for_request() is None


async def test_deadlines_of_head_and_body() -> None:
    for begun in (GET[:-3], chat()[:-1]):
        client, downstream = connection(CLIENT_HEAD_TIMEOUT="0.02", CLIENT_BODY_TIMEOUT="0.02")
        await client.send(begun)
        with pytest.raises(RequestTimeout):
            await read_request(downstream)


async def test_a_body_that_grows_too_large_is_refused_when_it_does() -> None:
    client, downstream = connection(MAX_BODY_BYTES="64")
    await client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.send(b"41\r\n" + b"x" * 65)
    with pytest.raises(BodyTooLarge):
        await read_request(downstream)


async def test_when_a_connection_is_reusable() -> None:
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    old = GET.replace(b"1.1", b"1.0")
    for request, reusable in ((GET, True), (closing, False), (old, False)):
        client, downstream = connection()
        await client.send(request)
        await read_request(downstream)
        await respond(downstream)
        assert downstream.reusable is reusable
        assert (b"connection: close" in (await client.receive()).lower()) is not reusable


async def test_a_response_without_reading_the_body_ends_the_connection() -> None:
    client, downstream = connection()
    await client.send(chat())
    await downstream.wait_for_request()
    await downstream.read_head()
    await respond(downstream)
    assert not downstream.reusable


async def test_after_an_early_response_the_rest_of_the_request_is_read_before_closing() -> None:
    client, downstream = connection()
    await client.send(chat()[:-1])
    await downstream.wait_for_request()
    await downstream.read_head()
    async with anyio.create_task_group() as tasks:

        async def finish() -> None:
            await respond(downstream)
            await downstream.aclose()

        tasks.start_soon(finish)
        assert b"200 OK" in await client.receive()
        with pytest.raises(anyio.EndOfStream):
            await client.receive()  # its side is shut, and it still takes what we send
        await client.send(b"}")
        await client.send_eof()
    assert client.peer_is_gone()


async def test_a_cut_response_is_not_a_complete_one() -> None:
    client, downstream = connection()
    await client.send(GET)
    await read_request(downstream)
    downstream.send_head(exchange(), 200, ())
    await downstream.send_chunk(b"a", hold=True)
    await downstream.abort()
    assert (await client.receive()).endswith(b"\r\n\r\n1\r\na\r\n")
    with pytest.raises(anyio.EndOfStream):
        await client.receive()


async def test_nothing_is_served_after_a_failed_write_or_a_cut() -> None:
    client, downstream = connection()
    await client.send(GET + GET)
    await read_request(downstream)
    client.close()
    with pytest.raises(ClientGone):
        await respond(downstream)
    assert not downstream.reusable
    client, downstream = connection()
    await client.send(GET + GET)
    await read_request(downstream)
    await respond(downstream)
    await downstream.abort()
    assert not downstream.reusable


def test_draining_ends_an_idle_connection_after_a_last_chance() -> None:
    async def test() -> None:
        _, downstream = connection()
        began_at = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                assert await downstream.wait_for_request() is None

            tasks.start_soon(wait)
            await wait_all_tasks_blocked()
            downstream.drain()
        assert anyio.current_time() - began_at == pytest.approx(0.1)

    on_mock_clock(test)


async def test_a_request_on_its_way_is_served_when_draining() -> None:
    client, downstream = connection()
    downstream.drain()
    await client.send(GET)
    assert await downstream.wait_for_request() is not None


async def test_a_connection_whose_end_was_not_announced_has_a_last_chance() -> None:
    for pipelined in (True, False):
        client, downstream = connection()
        await client.send(GET)
        await read_request(downstream)
        downstream.send_head(exchange(), 200, ())
        if pipelined:
            await client.send(GET)
        downstream.drain()
        await downstream.send_end()
        assert downstream.reusable
        if not pipelined:
            await client.send(GET)
        await read_request(downstream)
        await respond(downstream)
        assert not downstream.reusable
        first, second = await client.receive(), await client.receive()
        assert b"connection: close" not in first.lower()
        assert b"connection: close" in second.lower()


BEGUN = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 2**20


async def test_a_body_that_nobody_wants_is_thrown_away_in_pieces() -> None:
    in_chunks = BEGUN + b"%x\r\n%b\r\n" % (32_000, b"x" * 32_000) * 30 + b"0\r\n\r\n"
    for body in (chat(b"x" * MIB), in_chunks):
        client, downstream = connection()

        sent = body + GET
        for begin in range(0, len(sent), 16_000):
            await client.send(sent[begin : begin + 16_000])
        await downstream.wait_for_request()
        await downstream.read_head()
        tracemalloc.start()
        try:
            await downstream.discard_body()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await respond(downstream)
        assert downstream.reusable
        assert (await read_request(downstream))[0].path == b"/health"
        assert peak < MIB // 2


async def test_of_a_body_without_an_end_only_so_much_is_read_before_the_connection_ends() -> None:
    client, downstream = connection()
    sent = 0

    async def send_on() -> None:
        nonlocal sent
        await client.send(BEGUN)
        while True:
            await client.send(b"8000\r\n%b\r\n" % (b"x" * 0x8000))
            sent += 0x8000

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_on)
        await downstream.wait_for_request()
        await downstream.read_head()
        assert downstream.can_discard_body
        await downstream.discard_body()
        await respond(downstream)
        tasks.cancel_scope.cancel()
    assert MIB <= sent <= 1.5 * MIB
    assert not downstream.reusable


async def test_a_body_that_is_known_to_be_large_is_not_read_for_nothing() -> None:
    client, downstream = connection()
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MIB + 1)
    await client.send(head)
    await downstream.wait_for_request()
    await downstream.read_head()
    assert not downstream.can_discard_body
    await downstream.discard_body()
    await respond(downstream)
    assert b"connection: close" in (await client.receive()).lower()


@given(cuts=st.sets(st.integers(1, len(chat() + GET)), max_size=5), pieces=st.booleans())
def test_an_empty_line_behind_a_body_is_ignored_however_it_is_cut(
    cuts: set[int], pieces: bool
) -> None:
    sent = (CHUNKED if pieces else chat()) + b"\r\n" + GET + b"\r\n" + GET
    around = {len(sent) - len(GET) * 2 - at for at in (1, 2, 3)}  # where the empty line is
    edges = [0, *sorted(cuts | around), len(sent)]
    paths: list[bytes] = []

    async def run() -> None:
        client, downstream = connection()
        for begin, end in pairwise(edges):
            await client.send(sent[begin:end])
        for _ in range(3):
            paths.append((await read_request(downstream))[0].path)
            await respond(downstream)
            assert downstream.reusable
        await client.send_eof()
        assert await downstream.wait_for_request() is None

    anyio.run(run)
    assert paths[1:] == [b"/health"] * 2


async def test_an_end_inside_an_empty_line_is_the_end_of_the_connection() -> None:
    for rest in (b"", b"\r", b"\r\n"):
        client, downstream = connection()
        await client.send(GET + rest)
        await read_request(downstream)
        await respond(downstream)
        await client.send_eof()
        assert await downstream.wait_for_request() is None


def test_a_connection_that_has_never_asked_has_the_time_of_a_head() -> None:
    async def test() -> None:
        client, downstream = connection(CLIENT_HEAD_TIMEOUT="20", KEEP_ALIVE_TIMEOUT="60")
        began_at = anyio.current_time()
        assert await downstream.wait_for_request() is None
        assert anyio.current_time() - began_at == pytest.approx(20)
        client, downstream = connection(CLIENT_HEAD_TIMEOUT="20", KEEP_ALIVE_TIMEOUT="60")
        await client.send(GET)
        await read_request(downstream)
        await respond(downstream)
        began_at = anyio.current_time()
        assert await downstream.wait_for_request() is None
        assert anyio.current_time() - began_at == pytest.approx(60)

    on_mock_clock(test)
