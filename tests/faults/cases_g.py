"""G connections."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from socket import MSG_OOB, SO_RCVBUF, SO_SNDBUF, SOL_SOCKET

import anyio
import pytest
from anyio.abc import SocketAttribute
from cases_e_f import endless
from end_to_end import TOKEN, Client, Conversation, Response, events
from fault_bench import BODY, CLIENT_KEY, HEALTH, Case, Scene, get, post
from upstream_scripts import silent, streams
from waiting import until, wait_all_tasks_blocked

__all__ = ("CASES",)

OK = post()
EXPECT = b"Expect: 100-continue"
MOST = 500  # requests on a connection
SOON_CLOSED = {"MAX_REQUESTS_PER_CONNECTION": str(MOST)}


async def three_in_one_packet(scene: Scene) -> None:
    client = await scene.client()
    await client.send(HEALTH * 3)
    assert [(await client.response()).status for _ in range(3)] == [200] * 3
    assert (await client.get("/health")).status == 200


async def many_in_a_row(scene: Scene) -> None:
    """Their responses are more than the buffers on the way take, which are the smallest here."""
    client = await scene.client()
    assert (await client.request(HEALTH)).status == 200
    [downstream] = scene.bench.running.proxy._connections
    for stream, option in ((client.stream, SO_RCVBUF), (downstream.stream, SO_SNDBUF)):
        stream.extra(SocketAttribute.raw_socket).setsockopt(SOL_SOCKET, option, 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.send, HEALTH * (MOST - 1))
        served, before = 1, 0
        while served == 1 or served > before:  # nobody reads the responses
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
            served, before = len(scene.written), served
        assert served < MOST  # so nobody reads requests
        data = b""
        with suppress(anyio.EndOfStream):
            while True:
                data += await client.stream.receive()
    assert data.count(b"HTTP/1.1 200 ") == data.count(b'{"status":"healthy"') == MOST - 1
    assert data.count(b"connection: close") == 1


async def empty_lines_behind_bodies(scene: Scene) -> None:
    sent = OK + b"\r\n" + HEALTH
    client = await scene.client()
    for cut in range(3):  # behind the body, inside the line, behind it
        await client.send(sent[: len(OK) + cut])
        assert (await client.response()).status == 200
        await client.send(sent[len(OK) + cut :])
        assert (await client.response()).status == 200
    await client.send(sent)
    assert [(await client.response()).status for _ in range(2)] == [200, 200]


UNWANTED = {
    b"POST /v1/chat/completions HTTP/1.1": 401,
    b"POST /v1/nope HTTP/1.1": 401,
    b"POST /nope HTTP/1.1": 404,
    b"POST /health HTTP/1.1": 405,
    b"GET /health HTTP/1.1": 200,
}


async def sends_what_nobody_wants(scene: Scene) -> None:
    for line, status in UNWANTED.items():
        client = await scene.client()
        await client.send(post(b"x" * 1_000_000, key=b"X: none", line=line))
        assert (await client.response()).status == status
        assert (await client.get("/health")).status == 200
        large = post(b"x", key=b"X: none", line=line, length=b"Content-Length: 10000000")
        response = await client.request(large)
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert await client.until_closed() == b""


async def urgent_in_the_middle(scene: Scene) -> None:
    """A request with TCP's urgent data in the middle of its head, and of its body."""
    client = await scene.client()
    raw = client.stream.extra(SocketAttribute.raw_socket)
    for begin in (20, len(OK) - 5):
        await wait_all_tasks_blocked()  # the proxy waits for all of it at once
        for data, flag in ((OK[:begin], 0), (b"!", MSG_OOB), (OK[begin:], 0)):
            raw.send(data, flag)
        assert (await client.response()).status == 200


def half_closed(*, stream: bool) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        half = anyio.Event()

        async def script(peer: Conversation) -> None:
            await peer.request()
            if stream:
                await peer.stream_head()
                await peer.chunk(events(TOKEN))
            await half.wait()
            await wait_all_tasks_blocked()
            if stream:
                await peer.chunk(events(b"[DONE]"))
                await peer.end()
            else:
                await peer.respond(b"{}")

        scene.upstream.script = script
        client = await scene.client()
        await client.send(OK)
        await client.stream.send_eof()
        half.set()
        response = await client.response()
        assert response.complete
        assert response.body == (events(TOKEN, b"[DONE]") if stream else b"{}")
        assert await client.until_closed() == b""

    return play


async def cut_behind_a_probe(scene: Scene) -> None:
    """The zero of a probe, and a FIN, would be the last chunk to some clients."""
    half = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN) + b"data: {")
        await half.wait()

    scene.upstream.script = script
    client = await scene.client()
    await client.send(OK)
    await client.until(b"data: {\r\n")
    await client.stream.send_eof()
    assert await client.until(b"0") == b"0"
    half.set()
    with pytest.raises(anyio.BrokenResourceError):
        await client.stream.receive()


def disconnects(how: str, *, stream: bool) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        client = await scene.client()
        await client.send(OK)
        if stream:
            await client.until(TOKEN)
        await until(lambda: bool(scene.upstream.requests))
        getattr(client.stream, how)()
        with anyio.fail_after(5):
            await scene.upstream.disconnected.wait()
        [line] = await scene.logged()
        assert line["outcome"] == "client_disconnected"

    return play


async def uploads_without_reading(scene: Scene) -> None:
    client = await scene.client()
    with suppress(anyio.BrokenResourceError):
        await client.send(post(b"x" * 5_000_000, length=b"Content-Length: 11000000"))
    response = await client.response()
    assert (response.status, response.complete) == (413, True)


async def expects_100_continue(scene: Scene) -> None:
    head, _, body = post(BODY, EXPECT).partition(b"\r\n\r\n")
    client = await scene.client()
    await client.send(head + b"\r\n\r\n")
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await client.request(body)).status == 200
    assert scene.seen.count(b"100 Continue") == 1
    assert b"expect" not in scene.request.lower()


def is_refused_at_once(sends: bytes, status: int) -> Case:
    async def play(scene: Scene) -> None:
        client: Client = await scene.client()
        await client.send(sends.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert await client.until_closed() == b""
        assert b"100 Continue" not in scene.seen

    return Case(f"G10 {status}", play=play)


def no_body(number: str, status: bytes) -> Case:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 %s\r\nContent-Length: 5\r\n\r\n" % status)
        await peer.until_disconnected()

    return Case(f"{number} {status.decode()}", OK, int(status[:3]), up=1, upstream=script)


def no_cors(scene: Scene, response: Response) -> None:
    assert not [name for name in response.headers if name.startswith("access-control-")]


def as_get(scene: Scene, response: Response) -> None:
    assert int(response.headers["content-length"]) > 0
    assert scene.seen.endswith(b"\r\n\r\n")


def old(*extra: bytes) -> bytes:
    return post(BODY, *extra, line=b"POST /v1/chat/completions HTTP/1.0")


CASES: list[Case] = [
    Case("G1", play=three_in_one_packet, lines=4),
    Case("G1 empty lines", play=empty_lines_behind_bodies, up=4, lines=8),
    Case("G2", play=many_in_a_row, settings=SOON_CLOSED, lines=MOST),
    Case("G2 urgent", play=urgent_in_the_middle, up=2, lines=2),
    Case("G3", get(b"GET /health HTTP/1.1", b"Connection: close") + HEALTH, then="close"),
    Case("G4", play=half_closed(stream=False), up=1),
    Case("G5", play=half_closed(stream=True), up=1),
    Case("G6 FIN", play=disconnects("close", stream=False), upstream=silent, up=1),
    Case("G6 RST", play=disconnects("reset", stream=False), upstream=silent, up=1),
    Case("G7", play=disconnects("reset", stream=True), upstream=endless, up=1),
    Case("G8", play=uploads_without_reading),
    Case("G8 unwanted", play=sends_what_nobody_wants, lines=3 * len(UNWANTED)),
    Case("G9", play=expects_100_continue, up=1),
    is_refused_at_once(post(BODY, EXPECT, key=b"Authorization: Bearer wrong"), 401),
    is_refused_at_once(post(BODY, EXPECT, length=b"Content-Length: 11000000"), 413),
    is_refused_at_once(post(BODY, EXPECT, line=b"POST /v1/nope HTTP/1.1"), 404),
    Case("G11", post(BODY, EXPECT), up=1),
    Case(
        "G12",
        old(EXPECT),
        then="close",
        up=1,
        check=lambda scene, _: b"HTTP/1.1 1" not in scene.seen,
    ),
    Case(
        "G13",
        post(BODY, EXPECT),
        up=1,
        check=lambda scene, _: b"expect" not in scene.upstream.got.lower(),
    ),
    Case("G14", get(b"HEAD /health HTTP/1.1"), method="HEAD", check=as_get),
    Case("G14 metrics", get(b"HEAD /metrics HTTP/1.1"), method="HEAD", check=as_get),
    Case(
        "G15",
        get(b"HEAD /v1/chat/completions HTTP/1.1", b"Authorization: Bearer " + CLIENT_KEY.encode()),
        405,
        method="HEAD",
        check=lambda _, response: response.headers["allow"] == "POST",
    ),
    Case(
        "G16",
        post(b"", b"Origin: https://evil", line=b"OPTIONS /v1/chat/completions HTTP/1.1"),
        405,
        check=no_cors,
    ),
    Case("G17", old(), then="close", up=1, check=lambda scene, _: b"chunked" not in scene.seen),
    Case(
        "G18",
        old(b"Connection: keep-alive"),
        up=1,
        check=lambda _, response: response.headers["connection"] == "keep-alive",
    ),
    Case(
        "G18 stream",
        old(b"Connection: keep-alive"),
        then="close",
        up=1,
        upstream=streams(events(TOKEN, b"[DONE]")),
    ),
    no_body("G19", b"204 No Content"),
    no_body("G19", b"304 Not Modified"),
    Case("G20", play=cut_behind_a_probe, up=1),
]
