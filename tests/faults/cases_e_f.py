"""E chunked bodies, F deadlines and slow peers."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from end_to_end import TOKEN, Conversation, Response, events
from fault_bench import BODY, HEALTH, Case, Scene, post
from upstream_scripts import silent
from waiting import wait_all_tasks_blocked

__all__ = (
    "CASES",
    "PACE",
    "QUICK",
    "endless",
)

CHUNKED = b"Transfer-Encoding: chunked"
OK = post()
QUICK = {
    f"{name}_TIMEOUT": "0.2"
    for name in (
        *("UPSTREAM_CONNECT", "UPSTREAM_FIRST_BYTE", "UPSTREAM_IDLE", "CLIENT_HEAD"),
        *("CLIENT_BODY", "CLIENT_WRITE", "KEEP_ALIVE"),
    )
}
# Seconds between the bytes of a slow peer. That they make progress for as long as they do, and no
# more, is what such a case is about; nothing is waited for by it.
PACE = 0.02


async def endless(peer: Conversation) -> None:
    await peer.request()
    await peer.stream_head()
    while True:
        await peer.chunk(events(TOKEN) * 100)


# E


def chunked(body: bytes) -> bytes:
    return post(body, length=CHUNKED)


def in_chunks(*sizes: int, extension: bytes = b"") -> bytes:
    wire, at = b"", 0
    for size in sizes:
        wire += b"%X%s\r\n%s\r\n" % (size, extension, BODY[at : at + size])
        at += size
    return chunked(wire + b"0\r\n\r\n")


def joined(scene: Scene, response: Response) -> None:
    assert scene.request.endswith(b"\r\n\r\n" + BODY)
    assert b"\r\ncontent-length: %d\r\n" % len(BODY) in scene.request.lower()
    assert b"x-a" not in scene.request.lower()


def wrong(number: str, body: bytes, status: int = 400) -> Case:
    return Case(f"{number} {body[:24]!r}", chunked(body), status, "close")


async def never_ended(scene: Scene) -> None:
    client = await scene.client()
    await client.send(chunked(b"5\r\nhello\r\n"))
    await client.stream.send_eof()
    assert await client.until_closed() == b""
    await scene.logged()


SIZE = len(BODY)
END = b"0\r\n\r\n"
WHOLE = b"%x\r\n%s\r\n" % (SIZE, BODY)

E = [
    *(
        Case(f"E1 {name}", sends, up=1, check=joined)
        for name, sends in (
            ("one", in_chunks(SIZE)),
            ("many", in_chunks(*[1] * SIZE)),
            ("upper case", in_chunks(30, SIZE - 30)),
            ("extension", in_chunks(SIZE, extension=b";ext=v")),
            ("quoted extension", in_chunks(SIZE, extension=b';e="q"')),
        )
    ),
    *(
        wrong("E2", size + b"\r\nhello\r\n" + END)
        for size in (b"0x5", b"+5", b"-5", b"5_0", b" 5", b"", b"G")
    ),
    *(wrong("E3", size + b"\r\nhello\r\n" + END) for size in (b"5 ", b"5\t")),
    wrong("E4", b"%x\r\n" % (10 * 2**20 + 1), 413),
    *(wrong("E5", size + b"\r\nhello\r\n" + END) for size in (b"5;", b"5;=v", b"5;a b=c")),
    *(wrong("E6", start + END) for start in (b"5\nhello\r\n", b"5;\nhello\r\n", b"5\r\nhello\n")),
    *(wrong("E7", start + END) for start in (b"5\r\nhelloXX\r\n", b"5\r\nhelloXX")),
    wrong("E8", b"".join(b"1;" + b"e" * 8000 + b"\r\nx\r\n" for _ in range(300)) + END),
    wrong("E9", (b"100000\r\n" + b"x" * 0x100000 + b"\r\n") * 11 + END, 413),
    Case("E10", chunked(WHOLE + b"0\r\nX-A: 1\r\n\r\n"), up=1, check=joined),
    Case("E11 bad", chunked(WHOLE + b"0\r\nbad trailer\r\n\r\n"), 400, "close"),
    Case("E11 large", chunked(WHOLE + b"0\r\nX: " + b"y" * 20_000), 431, "close"),
    Case("E11 endless", chunked(WHOLE + b"0\r\n" + b"X: y\r\n" * 20_000), 431, "close"),
    Case("E12", play=never_ended),
    Case("E13", chunked(b"5\r\nhello\r\n"), 408, "close", settings=QUICK),
]


# F


async def says_nothing(scene: Scene) -> None:
    assert await (await scene.client()).until_closed() == b""


def slowly(head: bytes, byte: bytes) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        client = await scene.client()
        await client.send(head)
        async with anyio.create_task_group() as tasks:

            async def trickle() -> None:
                with suppress(anyio.BrokenResourceError):
                    while True:
                        await client.send(byte)
                        await anyio.sleep(PACE)

            tasks.start_soon(trickle)
            response = await client.response()
            tasks.cancel_scope.cancel()
        assert (response.status, response.headers["connection"]) == (408, "close")

    return play


async def takes_nothing(scene: Scene) -> None:
    client = await scene.client()
    await client.send(OK)
    await scene.upstream.disconnected.wait()
    [line] = await scene.logged()
    assert line["outcome"] == "client_stalled"


async def idle(scene: Scene) -> None:
    client = await scene.client()
    await client.get("/health")
    assert await client.until_closed() == b""


async def just_in_time_or_not(scene: Scene) -> None:
    """A request about the moment at which its idle connection is closed."""
    for early in (0.004, 0.002, 0.0, -0.002):
        client = await scene.client()
        await client.get("/health")
        await anyio.sleep(0.05 - early)
        with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            assert (await client.request(HEALTH)).complete


async def so_many_on_one(scene: Scene) -> None:
    client = await scene.client()
    await client.send(HEALTH * 4)
    reported = [(await client.response()).headers.get("connection") for _ in range(3)]
    assert reported == [None, None, "close"]
    assert await client.until_closed() == b""


async def one_too_many(scene: Scene) -> None:
    inside = [await scene.client() for _ in range(3)]
    assert [(await client.get("/health")).status for client in inside] == [200] * 3
    outside = await scene.client()
    await outside.send(HEALTH)
    await wait_all_tasks_blocked()
    assert not outside.stream.peer_is_gone()
    assert len(scene.exchanges) == 3
    inside[0].stream.close()
    assert (await outside.response()).status == 200


async def silent_crowd(scene: Scene) -> None:
    silent = [await scene.client() for _ in range(3)]
    asked, idle = silent[0], silent[1:]
    await asked.send(post())  # and its response does not come yet
    outside = await scene.client()
    assert (await outside.get("/health")).status == 200  # one of the silent ones made room
    assert await idle[0].until_closed() == b""
    assert not idle[1].stream.peer_is_gone()
    assert not asked.stream.peer_is_gone()


F = [
    Case("F1", play=says_nothing, lines=0, settings=QUICK),
    Case("F2", play=slowly(b"GET /health HTTP/1.1\r\nX: ", b"x"), settings=QUICK),
    Case("F3", play=slowly(post(b"", length=b"Content-Length: 1000"), b"x"), settings=QUICK),
    Case("F4", play=takes_nothing, upstream=endless, up=1, settings=QUICK),
    Case("F5", play=idle, settings=QUICK),
    Case("F6", play=just_in_time_or_not, lines=None, settings={"KEEP_ALIVE_TIMEOUT": "0.05"}),
    Case("F7", play=so_many_on_one, lines=3, settings={"MAX_REQUESTS_PER_CONNECTION": "3"}),
    Case("F8", play=one_too_many, lines=4, settings={"MAX_CONNECTIONS": "3"}),
    Case(
        "F9", play=silent_crowd, upstream=silent, up=1, lines=2, settings={"MAX_CONNECTIONS": "3"}
    ),
]


CASES: list[Case] = [*E, *F]
