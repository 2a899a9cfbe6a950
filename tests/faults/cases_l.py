"""L streams."""

from collections.abc import Callable

import anyio
import orjson
import pytest
from cases_e_f import QUICK, endless
from cases_k import raw
from codings import bomb
from end_to_end import (
    KEY,
    TOKEN,
    Client,
    Conversation,
    Response,
    Script,
)
from end_to_end import events as sent_as
from fault_bench import Case, Scene, post
from upstream_scripts import pieces_of, silent

__all__ = ("CASES",)

OK = post()
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
ONE = sent_as(TOKEN)
FULL = sent_as(
    b'{"choices":[{"delta":{"role":"assistant"}}]}',
    TOKEN,
    '{"choices":[{"delta":{"content":"é☃"}}]}'.encode(),
    b"[DONE]",
)
FAILED = sent_as(TOKEN, b'{"error":{"message":"x"}}')
STOP = sent_as(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
OLD = OK.replace(b"HTTP/1.1", b"HTTP/1.0")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def in_pieces(pieces: list[bytes]) -> Script:
    async def script(peer: Conversation) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await anyio.lowlevel.checkpoint()
        await peer.until_disconnected()

    return script


def passed_on(body: bytes) -> Callable[[Scene, Response], object]:
    def check(scene: Scene, response: Response) -> None:
        assert response.body == body
        assert response.headers["content-type"].startswith("text/event-stream")

    return check


def streams(name: str, wire: bytes, body: bytes = FULL, size: int = 10**6) -> Case:
    pieces = in_pieces(pieces_of(HEAD + wire, size))
    return Case(name, OK, up=1, upstream=pieces, check=passed_on(body))


def breaks(name: str, code: str, wire: bytes, then: str = "close") -> Case:
    """The events so far, one that reports the break, and no clean end."""

    def check(scene: Scene, response: Response) -> None:
        assert response.body.startswith(ONE)
        reported = response.body.removeprefix(ONE)
        assert reported.startswith(b"data: {")
        assert reported.endswith(b"}\n\n")
        error = orjson.loads(reported[6:])["error"]
        assert (error["type"], error["code"]) == ("upstream_error", code)

    settings = QUICK if then == "hold" else {}
    script = raw(HEAD + wire, then)
    return Case(name, OK, then="cut", up=1, upstream=script, check=check, settings=settings)


async def one_by_one(scene: Scene) -> None:
    """Each event reaches the client before upstream sends the next."""
    seen: list[anyio.Event] = [anyio.Event() for _ in range(30)]

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        for number, event in enumerate(seen):
            await peer.chunk(sent_as(b'{"choices":[{"delta":{"content":"#%d#"}}]}' % number))
            await event.wait()
        await peer.chunk(sent_as(b"[DONE]"))
        await peer.end()

    scene.upstream.script = script
    client = await scene.client()
    await client.send(OK)
    for number, event in enumerate(seen):
        await client.until(b"#%d#" % number)
        event.set()
    await client.until(b"[DONE]\n\n\r\n0\r\n\r\n")


async def server_error(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b'{"e":1}', status="500 Internal Server Error")


def is_json(scene: Scene, response: Response) -> None:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == "7"


async def disconnects_at_the_third_event(scene: Scene) -> None:
    client = await scene.client()
    await client.send(OK)
    await client.until(ONE * 3)
    client.stream.close()
    with anyio.fail_after(5):
        await scene.upstream.disconnected.wait()
    [line] = await scene.logged()
    assert line["outcome"] == "client_disconnected"


FAILURES = (
    b'event: error\ndata: {"message":"x"}\n\n',
    b'data: {"message":"x"}\n\n',
    b'data: {"object":"error"}\n\n',
)


PACKED = (
    b"HTTP/1.1 %s\r\nContent-Type: text/event-stream\r\nContent-Encoding: %s\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LEAK = b'{"message":"No quota for %s***"}' % KEY[:6].encode()


def packed(
    name: str, coding: str, data: bytes, status: int = 200, code: str = "", *, blanks: int = 0
) -> Case:
    """A compressed response, ``data`` behind so many blanks: it passes as it is, or is withheld for
    the reason ``code``."""
    named, body = bomb(coding, blanks, data)
    wire = PACKED % (b"%d X" % status, named) + chunk(body) + END

    def check(scene: Scene, response: Response) -> bool:
        [line] = scene.exchanges
        return bool(code) or (response.body == body and line["outcome"] == "completed")

    status = 502 if code else status
    return Case(name, OK, status, up=1, code=code, upstream=raw(wire, "hold"), check=check)


def reported_failed(body: bytes) -> Callable[[Scene, Response], object]:
    def check(scene: Scene, response: Response) -> bool:
        [line] = scene.exchanges
        return response.body == body and line["outcome"] == "upstream_stream_error"

    return check


def not_kept(scene: Scene, response: Response) -> None:
    assert response.body == FULL
    assert scene.bench.running.proxy._upstream.pool.idle == 0


async def takes_its_time(peer: Conversation) -> None:
    """Each pause is shorter than UPSTREAM_IDLE_TIMEOUT, and all of them are longer."""
    await peer.request()
    await peer.stream_head()
    for _ in range(8):
        await peer.chunk(ONE)
        await anyio.sleep(0.05)
    await peer.chunk(sent_as(b"[DONE]"))
    await peer.end()


async def old_client_cut(scene: Scene) -> None:
    """Where the connection's end would be the body's end, only a reset is a cut."""
    client = await scene.client()
    await client.send(OLD)
    await client.until(ONE)
    with pytest.raises(anyio.BrokenResourceError):
        await _read_on(client)


async def _read_on(client: Client) -> None:
    while True:
        await client.stream.receive()


CASES: list[Case] = [
    streams("L1", chunk(FULL) + END),
    Case("L2", play=one_by_one, up=1),
    streams("L3 50 segments", chunk(FULL) + END, size=len(FULL) // 50),
    streams("L3 a byte each", chunk(FULL) + END, size=1),
    streams("L3 chunks of 7", b"".join(chunk(part) for part in pieces_of(FULL, 7)) + END),
    streams("L3 CRLF", chunk(FULL.replace(b"\n", b"\r\n")) + END, FULL.replace(b"\n", b"\r\n")),
    Case("L4", OK, 500, up=1, relayed=True, upstream=server_error, check=is_json),
    Case("L5", OK, 504, up=1, code="first_byte_timeout", upstream=silent, settings=QUICK),
    breaks("L6 FIN", "stream_truncated", chunk(ONE)),
    breaks("L6 RST", "stream_truncated", chunk(ONE), "reset"),
    breaks("L6 inside a chunk", "stream_truncated", b"ffff\r\n" + ONE),
    Case(
        "L6 inside an event",
        OK,
        then="cut",
        up=1,
        upstream=raw(HEAD + chunk(ONE + b"data: {")),
        check=lambda _, response: response.body == ONE + b"data: {",
    ),
    Case("L6 HTTP/1.0", play=old_client_cut, up=1, upstream=raw(HEAD + chunk(ONE))),
    breaks("L7", "stream_truncated", chunk(ONE) + END),
    breaks("L8", "stream_timeout", chunk(ONE), "hold"),
    Case("L9", play=disconnects_at_the_third_event, up=1, upstream=endless),
    Case(
        "L10", OK, up=1, upstream=raw(HEAD + chunk(FAILED) + END, "hold"), check=passed_on(FAILED)
    ),
    Case("L11", OK, up=1, upstream=raw(HEAD + chunk(FULL), "hold"), check=not_kept),
    Case("L12", OK, up=1, upstream=takes_its_time, settings=QUICK),
    *(
        streams(f"L13 {end!r}", chunk(body := FULL.rstrip() + end) + END, body)
        for end in (b"", b"\n", b"\r", b"\r\n")
    ),
    streams("L14", chunk(ONE + STOP) + END, ONE + STOP),
    *(
        Case(f"L15 {failure!r}", OK, up=1, upstream=raw(wire), check=reported_failed(body))
        for failure in FAILURES
        for body in (ONE + failure + sent_as(b"[DONE]"),)
        for wire in (HEAD + chunk(body) + END,)
    ),
    *(packed(f"L16 {coding}", coding, FULL) for coding in ("gzip", "deflate", "raw deflate")),
    *(
        packed(f"L16 {coding} quotes the key", coding, LEAK, 400, "answer_withheld")
        for coding in ("gzip", "two members", "raw deflate")
    ),
    packed("L16 bomb", "gzip", FULL, blanks=10**8),
    packed("L16 bomb quotes the key", "gzip", LEAK, 400, "answer_withheld", blanks=10**8),
]
