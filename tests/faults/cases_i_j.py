"""I request bodies, J the way upstream."""

import gzip
import random
import socket
from collections.abc import Awaitable, Callable

import anyio
import orjson
from cases_e_f import QUICK
from end_to_end import Conversation, Response, running_proxy
from fault_bench import BODY, Case, Scene, post
from upstream_scripts import silent
from waiting import until

__all__ = ("CASES",)

OK = post()


# I


def numbered(number: str, *bodies: bytes) -> list[Case]:
    return [Case(f"{number} {body[:24]!r} {len(body)}", post(body), 400) for body in bodies]


def untouched(sent: bytes) -> Callable[[Scene, Response], object]:
    lines = sent.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    about = [line for line in lines if line.startswith((b"content-type", b"content-encoding"))]

    def check(scene: Scene, response: Response) -> None:
        assert scene.request.endswith(b"\r\n\r\n" + sent.partition(b"\r\n\r\n")[2])
        assert set(about) <= set(scene.request.lower().split(b"\r\n"))

    return check


def passes(number: str, sent: bytes) -> Case:
    return Case(number, sent, up=1, check=untouched(sent))


def kind(text: bytes) -> bytes:
    return b"Content-Type: " + text


DEEP = b'{"model":"m","metadata":' + b"[" * 300 + b"]" * 300 + b"}"
ZIPPED = gzip.compress(BODY)
MANY_NAMES = orjson.dumps(dict.fromkeys(range(700_000), 1), option=orjson.OPT_NON_STR_KEYS)

I = [  # noqa: E741 - the list's own letter
    *numbered("I1", b"", b" ", b"{", b'{"a":1,}', b"{'a':1}", b"nul", b"{} x", b"{}{}"),
    *numbered("I2", b"[]", b'"s"', b"1", b"null", b"true"),
    *numbered("I3", b"[" * 100_000, b"[" * 1025 + b"]" * 1025),
    passes("I4", post(DEEP)),
    *numbered("I5", b'{"a":NaN}', b'{"a":Infinity}'),
    *numbered("I6", b'{"model":"a","model":"b"}', b'{"model":"a","stream":true,"stream":false}'),
    *numbered(
        "I7",
        *(b'{"a":"\xff"}', b'{"a":"\\ud800"}', '{"a":1}'.encode("utf-16")),
        *(b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-32")),
    ),
    *(
        Case(f"I8 {len(body)}", post(body), (200, 400), "either", up=None)
        for body in (
            b'{"model":"m","x":"' + b"y" * 10_000_000 + b'"}',
            b'{"model":"m",' + MANY_NAMES[1:],
            b'{"model":"m","a":[' + b"1," * 999_999 + b"1]}",
        )
    ),
    *(
        passes(f"I9 {name.decode()}", post(kind=kind(name)))
        for name in (
            *(b"application/json", b"application/msgpack", b"application/vnd.msgpack"),
            b"application/x-msgpack",
        )
    ),
    Case("I9 text/plain", post(kind=kind(b"text/plain")), 415),
    Case("I9 none", post(kind=None), 415),
    Case("I9 form", post(kind=kind(b"application/x-www-form-urlencoded")), 415),
    passes("I10 charset", post(kind=kind(b"application/json; charset=utf-8"))),
    passes("I10 case", post(kind=kind(b"Application/JSON"))),
    Case("I11 identity", post(BODY, b"Content-Encoding: identity"), up=1),
    passes("I11 gzip", post(ZIPPED, b"Content-Encoding: gzip")),
    *(
        Case(f"I11 {name.decode()}", post(BODY, b"Content-Encoding: " + name), 415)
        for name in (b"br", b"deflate", b"gzip, gzip", b"zstd")
    ),
    *numbered("I12", b'{"stream":"yes"}', b'{"stream":1}', b'{"model":5}', b'{"model":""}'),
]


# J


async def blackhole(scene: Scene) -> None:
    """A listener whose backlog is full drops connection attempts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for sock in filling:
            sock.setblocking(False)
            sock.connect_ex(address)
        await requested_of(address[1], 504, "connect_timeout")
        for sock in filling:
            sock.close()


async def requested_of(port: int, status: int, code: str, **settings: str) -> None:
    """The response of a proxy in front of that port, twice on one connection."""
    async with running_proxy(port, **{**QUICK, **settings}) as running:
        client = await running.client()
        for _ in range(2):
            response = await client.request(OK)
            assert (response.status, response.json()["code"]) == (status, code)


async def first_address_is_dead(scene: Scene) -> None:
    """``localhost`` is ::1 too, nearly everywhere, where nobody listens."""
    url = f"http://localhost:{scene.upstream.port}"
    async with running_proxy(0, CEREBRAS_BASE_URL=url) as running:
        assert (await (await running.client()).request(OK)).status == 200


async def plain_http(peer: Conversation) -> None:
    await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def without_tls(
    script: Callable[[Conversation], Awaitable[None]], status: int, code: str
) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        scene.upstream.script = script
        response = await (await scene.client()).request(OK)
        assert (response.status, response.json()["code"]) == (status, code)

    return play


async def never_shakes_hands(peer: Conversation) -> None:
    await peer.until_disconnected()


async def churn(scene: Scene) -> None:
    """10 clients for each of two connections, most of which disconnect midway."""
    dice = random.Random(2)

    async def come_and_go() -> None:
        for _ in range(6):
            client = await scene.client()
            await client.send(OK)
            for _ in range(dice.randrange(30)):
                await anyio.lowlevel.checkpoint()
            client.stream.reset()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(come_and_go)
    assert (await (await scene.client()).request(OK)).status == 200


async def full_and_stays_full(scene: Scene) -> None:
    holder = await scene.client()
    await holder.send(OK)
    await until(lambda: bool(scene.upstream.requests))
    response = await (await scene.client()).request(OK)
    assert (response.status, response.json()["code"]) == (503, "overloaded")
    assert "retry-after" in response.headers


async def in_a_bounded_queue(scene: Scene) -> None:
    """One whose response comes late, three in the queue of which one disconnects, one too many
    before and one more after that."""
    late = anyio.Event()

    async def responds_late(peer: Conversation) -> None:
        while True:
            await peer.request()
            await late.wait()
            await peer.respond(b"{}")

    scene.upstream.script = responds_late
    clients = []
    for number in range(5):
        clients.append(await scene.client())
        await clients[-1].send(post(b'{"model":"m","messages":[],"seed":%d}' % number))
        await until_waiting(scene, min(number, 3))
    refused = await clients.pop().response()
    assert (refused.status, refused.json()["code"]) == (503, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    clients.pop(2).stream.reset()
    await until_waiting(scene, 2)
    clients.append(await scene.client())
    await clients[-1].send(post(b'{"model":"m","messages":[],"seed":5}'))
    await until_waiting(scene, 3)
    late.set()
    for client in clients:
        assert (await client.response()).status == 200
    assert [request[-2:-1] for request in scene.upstream.requests] == [b"0", b"1", b"3", b"5"]


async def until_waiting(scene: Scene, count: int) -> None:
    """Return once ``count`` requests wait in the queue, as the proxy counts them, and one has its
    response."""
    await until(lambda: bool(scene.upstream.requests))
    running = scene.bench.running
    await running.until_metric("cerebras_proxy_queue_length", lambda n: n == count)


def untrusted(number: str, name: str) -> Case:
    return Case(f"{number} {name}", OK, 502, code="tls_error", settings={"TLS": name})


J = [
    Case("J1", OK, 502, code="connect_error", settings={"CEREBRAS_BASE_URL": "http://127.0.0.1:1"}),
    Case("J2", play=blackhole, lines=0),
    Case("J3", play=first_address_is_dead, lines=0, up=1),
    untrusted("J4", "elsewhere.example"),
    untrusted("J4", "expired"),
    untrusted("J4", "not yet valid"),
    untrusted("J4", "self-signed"),
    Case(
        "J5",
        play=without_tls(plain_http, 502, "tls_error"),
        settings={"TLS": "localhost", **QUICK},
    ),
    Case(
        "J6",
        play=without_tls(never_shakes_hands, 504, "connect_timeout"),
        up=None,
        settings={"TLS": "localhost", **QUICK},
    ),
    Case("J7", play=churn, lines=None, up=None, settings={"CONNECTION_POOL_SIZE": "2"}),
    Case(
        "J8",
        play=full_and_stays_full,
        lines=2,
        up=1,
        upstream=silent,
        settings={"CONNECTION_POOL_SIZE": "1", "UPSTREAM_CONNECT_TIMEOUT": "1"},
    ),
    Case(
        "J8 first come, first served, in a bounded queue",
        play=in_a_bounded_queue,
        lines=None,
        up=4,
        settings={
            "MAX_CONCURRENT_REQUESTS": "1",
            "MAX_QUEUE_SECONDS": "5",
            "MAX_QUEUE_LENGTH": "3",
        },
    ),
    Case(
        "J8 the queue's deadline",
        play=full_and_stays_full,
        lines=2,
        up=1,
        upstream=silent,
        settings={"MAX_CONCURRENT_REQUESTS": "1", "MAX_QUEUE_SECONDS": "0.2"},
    ),
]


CASES: list[Case] = [*I, *J]
