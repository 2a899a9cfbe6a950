"""K upstream's responses, when they are wrong."""

from collections.abc import Awaitable, Callable

import anyio
import orjson
from cases_e_f import PACE, QUICK
from end_to_end import Conversation, Response, Script
from fault_bench import Case, Scene, post
from upstream_scripts import closes, resets, responds_once, silent
from waiting import wait_all_tasks_blocked

__all__ = ("CASES", "raw")

OK = post()
LARGE = b'{"model":"gpt-oss-120b","x":"%s"}' % (b"y" * (10 * 2**20 - 31))
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TWO = b"Content-Length: 2\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
TLS = {"TLS": "localhost"}


def raw(data: bytes, then: str = "close") -> Script:
    """Responds with these bytes, and closes, resets or holds the connection."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(data)
        if then == "hold":
            await peer.until_disconnected()
        elif then == "reset":
            await wait_all_tasks_blocked()  # or the reset would overtake what was sent
            peer.stream.reset()

    return script


def invalid(name: str, data: bytes, then: str = "hold", code: str = "invalid_response") -> Case:
    def check(scene: Scene, response: Response) -> None:
        assert b"POISON" not in scene.seen
        assert b"et-cookie" not in scene.seen.lower()
        assert scene.bench.running.proxy._upstream.pool.idle == 0  # it is not used again

    return Case(name, OK, 502, up=1, code=code, upstream=raw(data, then), check=check)


async def one_byte_at_a_time(peer: Conversation) -> None:
    await peer.request()
    for byte in JSON + TWO + b"\r\n{}":
        await peer.send(bytes([byte]))
        await anyio.sleep(PACE)


def once_then(end: Callable[[Conversation], None], *, others: bool) -> Script:
    """Responds once on its first connection, and ends that at the next request; so do ``others``
    at their first."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        if peer.upstream.connections == 1 or others:
            await peer.respond(b"{}")
            await peer.request()
        end(peer)

    return script


def close(peer: Conversation) -> None:
    peer.stream.close()


def reset(peer: Conversation) -> None:
    peer.stream.reset()


async def begins_a_second_response(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"{}")
    await peer.request()
    await peer.send(b"H")


def requested_twice(second: int) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        client = await scene.client()
        assert [(await client.request(OK)).status for _ in range(2)] == [200, second]

    return play


async def no_poison(scene: Scene) -> None:
    client = await scene.client()
    bodies = [(await client.request(OK)).body for _ in range(5)]
    assert bodies == [b"ok"] * 5
    assert scene.upstream.connections == 5


def extra(*, one_piece: bool) -> Script:
    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            for piece in (response + POISON,) if one_piece else (response, POISON):
                await peer.send(piece)

    return script


async def limited(peer: Conversation) -> None:
    await peer.request()
    headers = b"Retry-After: 7\r\nx-ratelimit-limit-requests-day: 5\r\n"
    await peer.respond(b'{"e":1}', status="429 Too Many Requests", headers=headers)


def limits_reported(scene: Scene, response: Response) -> None:
    assert (response.headers["retry-after"], response.body) == ("7", b'{"e":1}')
    assert response.headers["x-ratelimit-limit-requests-day"] == "5"


NOT_DOWN = (
    *(b"Connection: X-Up", b"X-Up: 1", b"Keep-Alive: 5", b"Proxy-Authenticate: x"),
    *(b"Set-Cookie: a", b"Server: s", b"Alt-Svc: h3"),
)


async def talks_of_itself(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"{}", headers=b"".join(line + b"\r\n" for line in NOT_DOWN))


def none_went_down(scene: Scene, response: Response) -> None:
    assert not set(response.headers) & {
        line.partition(b":")[0].decode().lower() for line in NOT_DOWN
    }


async def takes_the_head_only(peer: Conversation) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await peer.stream.receive(1024)
    peer.upstream.requests.append(head)


async def refuses_early(peer: Conversation) -> None:
    await takes_the_head_only(peer)
    await peer.respond(b'{"early":1}', status="400 Bad Request")
    await peer.until_disconnected()


async def refuses_early_and_stays(peer: Conversation) -> None:
    """Neither reads on nor closes."""
    await takes_the_head_only(peer)
    await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await peer.respond(b'{"early":1}', status="400 Bad Request")
    await anyio.sleep_forever()


async def talks_nonsense_early(peer: Conversation) -> None:
    await takes_the_head_only(peer)
    await peer.send(b"SSH-2.0-OpenSSH\r\n")
    await anyio.sleep_forever()


def responded_early(scene: Scene, response: Response) -> None:
    assert orjson.loads(response.body) == {"early": 1}
    assert scene.bench.running.proxy._upstream.pool.idle == 0  # it is not used again


def early(name: str, **settings: str) -> Case:
    return Case(
        f"K20 {name}",
        post(LARGE),
        400,
        up=1,
        relayed=True,
        upstream=refuses_early_and_stays,
        settings=settings,
        check=responded_early,
    )


async def takes_no_more(peer: Conversation) -> None:
    await takes_the_head_only(peer)
    await anyio.sleep_forever()


def framed(first: bytes, *lines: bytes, body: bytes = b"2\r\n{}\r\n0\r\n\r\n") -> bytes:
    return b"\r\n".join([first, *lines, b"", body])


CHUNKED = b"Transfer-Encoding: chunked"
K12 = {
    "between chunks": b"2\r\n{}\r\n",
    "inside a chunk": b"20\r\n{}",
    "bad size": b"2\r\n{}\r\nZZ\r\n",
}

CASES: list[Case] = [
    Case("K1", OK, 502, up=1, code="invalid_response", upstream=closes),
    Case("K2", OK, 502, up=1, code="invalid_response", upstream=resets),
    Case("K3", play=requested_twice(200), up=2, lines=2, upstream=responds_once),
    # Sent once more, never twice; and not where a response had begun.
    Case(
        "K4 FIN", play=requested_twice(200), up=3, lines=2, upstream=once_then(close, others=True)
    ),
    Case(
        "K4 RST", play=requested_twice(200), up=3, lines=2, upstream=once_then(reset, others=True)
    ),
    Case(
        "K4 ever", play=requested_twice(502), up=3, lines=2, upstream=once_then(close, others=False)
    ),
    Case("K4 begun", play=requested_twice(502), up=2, lines=2, upstream=begins_a_second_response),
    Case("K5", OK, 504, up=1, code="first_byte_timeout", upstream=silent, settings=QUICK),
    Case(
        "K6", OK, 504, up=1, code="first_byte_timeout", upstream=one_byte_at_a_time, settings=QUICK
    ),
    invalid("K7 garbage", b"\0\1garbage POISON\r\n\r\n"),
    invalid("K7 SSH", b"SSH-2.0-OpenSSH POISON\r\n"),
    invalid("K7 HTTP/2", b"HTTP/2 200\r\nX: POISON\r\n\r\n"),
    invalid("K7 ICY", b"ICY 200 OK\r\nX: POISON\r\n\r\n"),
    invalid("K7 999", b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"),
    invalid("K8 200 KB", JSON + TWO + b"X: " + b"y" * 200_000 + b"\r\n\r\n{}"),
    invalid("K8 10,000 lines", JSON + TWO + b"X: y\r\n" * 10_000 + b"\r\n{}"),
    invalid("K8 folded", JSON + TWO + b"X: a\r\n b\r\n\r\n{}"),
    invalid("K8 NUL", JSON + TWO + b"X: a\0b\r\n\r\n{}"),
    invalid("K9 CR", JSON + TWO + b"X: a\rSet-Cookie: b\r\n\r\n{}"),
    invalid("K9 LF", JSON + TWO + b"X: a\nSet-Cookie: b\r\n\r\n{}"),
    invalid("K10", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    invalid("K10 2,000 interim", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000),
    Case(
        "K11",
        OK,
        then="cut",
        up=1,
        upstream=raw(JSON + b'Content-Length: 100\r\n\r\n{"a":'),
        check=lambda _, response: response.headers["content-length"] == "100",
    ),
    *(
        Case(f"K12 {name}", OK, then="cut", up=1, upstream=raw(JSON + CHUNKED + b"\r\n\r\n" + body))
        for name, body in K12.items()
    ),
    Case("K13 plain", OK, up=1, upstream=raw(JSON + b"\r\n{}")),
    Case("K13 TLS", OK, then="cut", up=1, upstream=raw(JSON + b"\r\n{}"), settings=TLS),
    Case("K14", play=no_poison, up=5, lines=5, upstream=extra(one_piece=True)),
    Case("K14 two pieces", play=no_poison, up=5, lines=5, upstream=extra(one_piece=False)),
    Case("K14 TLS", play=no_poison, up=5, lines=5, upstream=extra(one_piece=True), settings=TLS),
    Case(
        "K14 TLS, two records",
        play=no_poison,
        up=5,
        lines=5,
        upstream=extra(one_piece=False),
        settings=TLS,
    ),
    invalid("K15", framed(b"HTTP/1.1 200 OK", b"Content-Length: 3", CHUNKED)),
    invalid("K16 two", framed(b"HTTP/1.1 200 OK", b"Content-Length: 2", b"Content-Length: 3")),
    invalid("K16 gzip", framed(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip, chunked")),
    invalid("K16 HTTP/1.0", framed(b"HTTP/1.0 200 OK", CHUNKED)),
    Case(
        "K17 HTML",
        OK,
        up=1,
        upstream=raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + TWO + b"\r\nhi"),
        check=lambda _, response: response.body == b"hi",
    ),
    Case(
        "K17 no JSON",
        OK,
        up=1,
        upstream=raw(JSON + TWO + b"\r\n{x"),
        check=lambda _, response: response.body == b"{x",
    ),
    Case("K18", OK, 429, up=1, relayed=True, upstream=limited, check=limits_reported),
    Case("K19", OK, up=1, upstream=talks_of_itself, check=none_went_down),
    Case(
        "K20",
        post(LARGE),
        400,
        up=1,
        relayed=True,
        upstream=refuses_early,
        check=lambda _, response: orjson.loads(response.body) == {"early": 1},
    ),
    early("neither reads nor closes"),
    early("neither reads nor closes, TLS", **TLS),
    Case("K20 nonsense", post(LARGE), 502, up=1, upstream=talks_nonsense_early),
    Case(
        "K21",
        post(LARGE),
        504,
        up=1,
        upstream=takes_no_more,
        settings={**QUICK, "CLIENT_BODY_TIMEOUT": "30"},  # the client is not slow
    ),
    Case(
        "K22",
        OK,
        then="cut",
        up=1,
        upstream=raw(JSON + b"Content-Length: 100\r\n\r\n{", "hold"),
        settings=QUICK,
    ),
]
