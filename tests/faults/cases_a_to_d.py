"""A request line, B fields, C Host, D framing."""

import re

import anyio
from end_to_end import KEY, Response
from fault_bench import BODY, HEALTH, Case, Scene, get, post
from head_cases import REFUSED

__all__ = ("CASES",)

CHUNKED = b"Transfer-Encoding: chunked"
IN_ONE_CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LARGEST = b'{"model":"gpt-oss-120b","x":"%s"}' % (b"y" * (10 * 2**20 - 31))


def refused(prefix: str) -> list[Case]:
    """The heads that ``head`` refuses, whole and with another request behind them."""
    return [
        Case(name, raw + HEALTH, refusal.status, "close")
        for name, (raw, refusal) in REFUSED.items()
        if re.match(rf"{prefix}( |$)", name)
    ]


def has_allow(scene: Scene, response: Response) -> None:
    assert "POST" in response.headers["allow"]
    assert b"Bearer" not in scene.seen


def only_ours(scene: Scene, response: Response) -> None:
    """B13: what a client lists is dropped before our own is put in."""
    lines = scene.request.lower().split(b"\r\n")
    assert not [line for line in lines if line.startswith(b"x-a:")]
    assert b"authorization: bearer " + KEY.encode() in lines
    assert b"content-length: %d" % len(BODY) in lines


HOP = (
    *(b"Keep-Alive: 5", b"Proxy-Connection: x", b"Proxy-Authorization: x", b"TE: trailers"),
    *(b"Trailer: X", b"Upgrade: h2c", b"Cookie: a=b", b"Forwarded: for=6.6.6.6"),
    *(b"X-Forwarded-For: 6.6.6.6", b"Via: 1.1 x", b"X-Real-IP: 6.6.6.6"),
)


def none_crossed(scene: Scene, response: Response) -> None:
    names = {line.partition(b":")[0].lower() for line in scene.request.split(b"\r\n")}
    assert not names & {line.partition(b":")[0].lower() for line in HOP}
    assert b"6.6.6.6" not in b"".join(scene.written)


def replaced(scene: Scene, response: Response) -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


def upstream_got_the_body(scene: Scene, response: Response) -> None:
    assert scene.request.endswith(b"\r\n\r\n" + BODY)


async def comes_and_goes(scene: Scene) -> None:
    """A28"""
    for sends in (b"", b"G"):
        for disconnects in ("close", "reset"):
            client = await scene.client()
            await client.send(sends) if sends else None
            getattr(client.stream, disconnects)()
    await scene.logged(0)


async def body_cut(scene: Scene, how: str) -> None:
    client = await scene.client()
    await client.send(post(b"x" * 10, length=b"Content-Length: 100"))
    if how == "reset":
        client.stream.reset()
    else:
        await client.stream.send_eof()
        assert await client.until_closed() == b""
    [line] = await scene.logged()
    assert line["outcome"] == "client_disconnected"


async def cut_by_fin(scene: Scene) -> None:
    await body_cut(scene, "fin")


async def cut_by_reset(scene: Scene) -> None:
    await body_cut(scene, "reset")


async def waits_its_turn(scene: Scene, first: bytes, status: int, method: str = "GET") -> None:
    """Bytes of a body are never taken for a request: two responses, or one and the end."""
    client = await scene.client()
    await client.send(first + HEALTH)
    response = await client.response(method)
    assert response.status == status
    if response.headers.get("connection") != "close":
        assert (await client.response()).status == 200
    await anyio.lowlevel.checkpoint()
    await client.stream.send_eof()
    assert await client.until_closed() == b""


def smuggled(number: str, line: bytes, status: int, *, key: bool = True) -> Case:
    inner = b"GET /v1/nope HTTP/1.1\r\nHost: a\r\n\r\n"
    method = line.partition(b" ")[0].decode()

    async def play(scene: Scene) -> None:
        whole = post(inner, line=line) if key else post(inner, line=line, key=None)
        await waits_its_turn(scene, whole, status, method)
        assert "/v1/nope" not in str(scene.exchanges)

    return Case(f"{number} {line.decode()} {status}", play=play, lines=None)


def path(number: str, text: bytes) -> Case:
    line = b"POST " + text + b" HTTP/1.1"
    return Case(f"{number} {text.decode()}", post(line=line), 404)


SHORTEST = len(b"Host: a\r\nX: \r\n\r\n")


def block(size: int) -> bytes:
    """A head whose header block has that size."""
    return get(b"GET /health HTTP/1.1", b"X: " + b"y" * (size - SHORTEST))


CASES: list[Case] = [
    *refused("A1"),
    *refused("A2"),
    Case("A3 one empty line before", b"\r\n" + HEALTH),
    *(case for number in range(4, 11) for case in refused(f"A{number}")),
    Case("A11 FOO", post(line=b"FOO /v1/chat/completions HTTP/1.1"), 501),
    Case("A11 get", get(b"get /health HTTP/1.1"), 501),
    *(
        Case(f"A12 {name}", post(line=line), 405, check=has_allow)
        for name in ("DELETE", "PUT", "PATCH", "GET")
        if (line := f"{name} /v1/chat/completions HTTP/1.1".encode())
    ),
    Case("A13", post(line=b"TRACE /v1/chat/completions HTTP/1.1"), 405, check=has_allow),
    Case("A14", get(b"CONNECT evil:443 HTTP/1.1", host=b"Host: evil:443") + HEALTH, 405, "close"),
    *refused("A15"),
    Case("A16", get(b"GET /health?" + b"a" * (8192 - 8) + b" HTTP/1.1")),
    *(case for number in range(17, 21) for case in refused(f"A{number}")),
    Case(
        "A21",
        get(b"OPTIONS * HTTP/1.1"),
        check=lambda _, response: response.headers["allow"] == "GET, HEAD, OPTIONS, POST",
    ),
    Case("A22", get(b"GET http://a/health HTTP/1.1")),
    *refused("A23"),
    *(
        path("A24", text)
        for text in (
            *(b"/v1/%2e%2e/metrics", b"/v1/../metrics", b"//v1/chat/completions"),
            *(b"/v1/chat/completions/", b"/V1/chat/completions", b"/v1/chat/completions;x=y"),
        )
    ),
    *(
        path("A25", b"/v1/chat/completions" + text)
        for text in (b"%00", b"%0d%0aX:%20y", b"%ff", b"%", b"%1")
    ),
    Case(
        "A26",
        post(line=b"POST /v1/chat/completions?api_key=SECRETQ HTTP/1.1"),
        up=1,
        check=lambda scene, _: b"SECRETQ" not in b"".join([*scene.written, scene.request]),
    ),
    Case("A27", post(), pieces=len(post()), up=1),
    Case("A28", play=comes_and_goes, lines=None),
    *(case for number in range(1, 6) for case in refused(f"B{number}")),
    Case("B6", get(b"GET /health HTTP/1.1", b"X: \x80\xff", b"User-Agent: \xff")),
    Case("B6 chat", post(BODY, b"User-Agent: \xff\xfe", b"X-Stainless-A: \xe9"), up=1),
    Case("B7", get(b"GET /health HTTP/1.1", b"X-Empty:", b"X:\tv\t")),
    Case("B7 chat", post(BODY, b"User-Agent:", b"X-Stainless-A:\tv\t"), up=1),
    *refused("B8"),
    Case("B8 100 of them", get(b"GET /health HTTP/1.1", *[b"X: y"] * 99)),
    *refused("B9"),
    Case("B10 exactly", block(16384)),
    Case("B10 one more", block(16385), 431, "close"),
    Case("B10 exactly, in 20 packets", block(16384), pieces=20),
    Case("B10 one more, in 20 packets", block(16385), 431, "close", pieces=20),
    *refused("B11"),
    *refused("B12"),
    Case(
        "B13",
        post(BODY, b"Connection: close, Authorization, Content-Length, Host, X-A", b"X-A: 1"),
        then="close",
        up=1,
        check=only_ours,
    ),
    Case("B14", post(BODY, *HOP), up=1, check=none_crossed),
    Case(
        "B15",
        post(BODY, b"Accept-Encoding: gzip, br"),
        up=1,
        check=lambda scene, _: b"accept-encoding: identity" in scene.request.lower(),
    ),
    Case(
        "B16",
        post(BODY, b"X-Request-Id: abc-123"),
        up=1,
        check=lambda _, response: response.headers["x-request-id"] == "abc-123",
    ),
    *(
        Case(f"B17 {text[:12]!r}", post(BODY, b"X-Request-Id: " + text), up=1, check=replaced)
        for text in (
            *(b"a" * 10240, b"a b", b'a"b', b"\xff", b"<script>", b"%0d%0aSet-Cookie: x"),
            *(b"${jndi:x}", "\u2028".encode()),
        )
    ),
    *refused("C1"),
    *refused("C2"),
    *refused("C3"),
    *(
        Case(f"C4 {host.decode()}", get(host=b"Host: " + host))
        for host in (b"[::1]:8080", b"A.Example.", b"127.0.0.1", b"a:")
    ),
    Case("C5", b"GET /health HTTP/1.0\r\n\r\n", then="close"),
    *(
        Case(f"D1 {first!r}", post(b"0\r\n\r\n" + HEALTH, first, length=second), 400, "close")
        for first, second in (
            (b"Content-Length: 5", CHUNKED),
            (CHUNKED, b"Content-Length: 5"),
            (b"CONTENT-LENGTH: 5", b"tRANSFER-eNCODING: cHUNKED"),
        )
    ),
    Case("D2", post(b"0\r\n\r\nG", b"Content-Length: 6", length=CHUNKED), 400, "close"),
    Case(
        "D3",
        post(
            b"5c\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n0\r\n\r\n",
            b"Content-Length: 4",
            length=CHUNKED,
        ),
        400,
        "close",
    ),
    *(case for number in range(4, 6) for case in refused(f"D{number}")),
    *(
        Case(f"D6 {coding!r}", post(IN_ONE_CHUNK, length=line), 400, "close")
        for coding in (b"chunked, gzip", b"chunked, identity", b"", b",chunked", b"chunked;q=1")
        if (line := b"Transfer-Encoding: " + coding)
    ),
    *(
        Case(f"D7 {line!r}", post(IN_ONE_CHUNK, length=line), up=1, check=upstream_got_the_body)
        for line in (b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: Chunked ")
    ),
    *(case for number in range(8, 13) for case in refused(f"D{number}")),
    Case("D13", post(LARGEST), up=1, check=lambda scene, _: scene.request.endswith(LARGEST)),
    Case("D14", play=cut_by_fin),
    Case("D15", play=cut_by_reset),
    Case("D16", post(b"", length=b""), 400),
    smuggled("D17", b"GET /health HTTP/1.1", 200),
    smuggled("D18", b"OPTIONS /health HTTP/1.1", 405),
    smuggled("D18", b"HEAD /health HTTP/1.1", 200),
    smuggled("D18", b"POST /v1/nothing HTTP/1.1", 404),
    smuggled("D18", b"PUT /health HTTP/1.1", 405),
    smuggled("D18", b"POST /v1/chat/completions HTTP/1.1", 401, key=False),
]
