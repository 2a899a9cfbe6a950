"""Nothing that comes from a client or from upstream holds the event loop for long: a body of up to
1 MB less than 10 ms, a larger one less than 250 ms.

The proxy has a loop to itself, with its client and its upstream in threads, and what each step of
the loop does is counted. A body is parsed, or a reassembled reply written, in one step: its memory
grows with the size, its calls do not. Everything else stays below what takes 10 ms on a slow
machine, whatever the size.
"""

import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import pytest
import trustme
from end_to_end import TOKEN, Running, chat, events, running_proxy
from exchanges import chat_exchange, plain_exchange, stream_exchange, with_timings
from loop_steps import Steps, watched_steps
from threaded_peers import ThreadedUpstream, in_chunks, plain, request_all

from ape_cerebras import errors
from ape_cerebras.config.prices import PriceTable
from ape_cerebras.config.settings import BUCKETS
from ape_cerebras.errors import ProxyError
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.loops_in_turn,
    # uvloop's steps cannot be watched; what is done in them is the same as on asyncio.
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True),
]

MIB = 2**20
MANY = 2_500  # of events, 60 calls each: in one step they were four times what that may be
LARGEST = 10 * MIB - 100  # of a body that is accepted
MOST_CALLS = 40_000
MOST_BYTES = 6 * MIB
BYTES_OF_ONE = (
    20  # of memory for each byte of a body; orjson allocates twelve to parse one, and uses a part
)
GAPS = len(BUCKETS["gap"]) + 1
STATUSES = (400, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
ROUTES = (
    *("/v1/chat/completions", "/v1/models", "/v1/models/{id}", "/v1/tcp_warming"),
    *("/health", "/metrics", "*", "unknown"),
)
EXACT = {"TTFT_MODE": "exact"}

FINISH = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3,"total_tokens":4}}'
REPLY = plain(b'{"choices":[{"message":{"content":"a"}}],"usage":{"total_tokens":4}}')
NAMED = b'{"model":"old",'
MESSAGE = b'{"role":"user","content":"%s"}' % (b'word, \\"x\\" \\n' * 600)
REQUEST = chat(b'{"stream":true}')


def many(start: bytes, item: bytes, end: bytes, size: int = LARGEST) -> bytes:
    return start + item * ((size - len(start) - len(end)) // len(item)) + end


def members(start: bytes, count: int) -> bytes:
    return start + b",".join(b'"%d":1' % number for number in range(count)) + b"}"


def chat_in_chunks(body: bytes, size: int) -> bytes:
    head = chat(body).partition(b"Content-Length")[0]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, size)


def streamed(body: bytes, size: int = MIB) -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head + in_chunks(body + events(FINISH, b"[DONE]"), size)


def text_event(size: int) -> bytes:
    return events(TOKEN.replace(b'"a"', b'"%s"' % (b"a" * size)))


def dense_event(size: int) -> bytes:
    return events(many(TOKEN[:-1] + b',"x":[', b"[],", b"1]}", size))


@dataclass(frozen=True)
class Case:
    """What a client sends, or what upstream responds, is made only when it is played. ``at_once``:
    the bytes that may be parsed or written in one step."""

    request: Callable[[], bytes] = lambda: chat(b"{}")
    response: Callable[[], bytes] = lambda: REPLY
    statuses: tuple[int, ...] = (200,)
    settings: dict[str, str] = field(default_factory=dict)
    write_bytes: int = 100 * MIB
    at_once: int = 0


def body(make: Callable[[int], bytes], size: int, **options: object) -> Case:
    return Case(lambda: chat(make(size)), at_once=size, **options)  # type: ignore[arg-type]


def stream(make: Callable[[], bytes], **options: object) -> Case:
    return Case(lambda: REQUEST, lambda: streamed(make()), **options)  # type: ignore[arg-type]


def reassembled(make: Callable[[], bytes], status: int = 200, at_once: int = 0) -> Case:
    """The same for a client that wants no stream, so that the proxy makes one reply of it."""
    return Case(
        response=lambda: streamed(make()), statuses=(status,), settings=EXACT, at_once=at_once
    )


def compressed(size: int) -> Case:
    fields = b"Content-Encoding: gzip"
    return Case(lambda: chat(os.urandom(size), fields), at_once=size)


BODIES = {
    "one string": lambda size: many(NAMED + b'"x":"', b"x", b'"}', size),
    "one string of commas": lambda size: many(NAMED + b'"x":"', b",", b'"}', size),
    "messages and no model": lambda size: many(b'{"messages":[', MESSAGE + b",", b"1]}", size),
    "messages and a tool's model": lambda size: many(
        NAMED + b'"x":{"model":1},"messages":[', MESSAGE + b",", b"1]}", size
    ),
}
DENSE_BODIES = {
    "90,000 members": lambda size: members(NAMED + b'"x":{"model":1},', 90_000),
    "a prompt in numbers": lambda size: NAMED + b'"prompt":[' + b"50256," * 131_072 + b"1]}",
}
REQUESTS = {
    **{f"{name}, 1 MB": body(make, MIB) for name, make in (BODIES | DENSE_BODIES).items()},
    **{f"{name}, 10 MB": body(make, LARGEST) for name, make in BODIES.items()},
    "compressed": compressed(LARGEST),
    "small chunks": Case(
        lambda: chat_in_chunks(many(NAMED + b'"x":"', b"x", b'"}', MIB // 16), 16), at_once=MIB
    ),
    "150 at once": Case(
        lambda: b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 150, statuses=(200,) * 150
    ),
}
RESPONSES = {
    "one string": Case(
        response=lambda: plain(many(b'{"choices":[{"message":{"content":"', b"x", b'"}}]}'))
    ),
    "small values": Case(response=lambda: plain(many(b'{"choices":[', b"[],", b"1]}"))),
    "as many models as are read": Case(
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        lambda: plain(many(b'{"data":[', b'{"id":"a"},', b'{"id":"b"}]}', MIB // 16)),
    ),
}
STREAMS = {
    "many tiny events": lambda: events(TOKEN) + b"data:{}\n\n" * MANY,
    "many events with usage": lambda: events(TOKEN, *[FINISH] * MANY),
    "a text of 1 MB first": lambda: text_event(MIB),
}
CASES = {
    **{f"a request: {name}": case for name, case in REQUESTS.items()},
    **{f"a response: {name}": case for name, case in RESPONSES.items()},
    "a stream: 10,000 events": stream(lambda: events(*[TOKEN] * 10_000)),  # of 5 calls
    "reassembled: many events": reassembled(lambda: events(*[TOKEN] * MANY), at_once=MIB),
    **{f"a stream: {name}": stream(make) for name, make in STREAMS.items()},
    **{f"reassembled: {name}": reassembled(make, at_once=MIB) for name, make in STREAMS.items()},
    "a stream: 1 MB of small values": stream(lambda: dense_event(MIB)),
    # More than anybody means to send.
    "reassembled: 1 MB of small values": reassembled(lambda: dense_event(MIB), 502),
    "reassembled: 10 MB": reassembled(lambda: text_event(MIB // 16) * 160, at_once=10 * MIB),
}


@asynccontextmanager
async def proxy_before(upstream: ThreadedUpstream, **settings: str) -> AsyncIterator[Running]:
    with upstream.serving():
        async with running_proxy(upstream.port, MODEL_ALIASES="old=new", **settings) as running:
            await request(Case(), upstream, running)
            yield running


async def request(
    case: Case,
    upstream: ThreadedUpstream,
    running: Running,
    watch: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - it keeps nothing
) -> Any:
    upstream.response = case.response()
    sends = case.request()
    send = partial(request_all, running.port, sends, len(case.statuses), case.write_bytes)
    with watch as watched:
        statuses = await anyio.to_thread.run_sync(send)
    assert tuple(statuses) == case.statuses
    return watched


async def play(case: Case, upstream: ThreadedUpstream, running: Running) -> Steps:
    """The work of the largest steps."""
    steps: Steps = await request(case, upstream, running, watched_steps())
    return steps


def check(steps: Steps, case: Case) -> None:
    assert steps.most_calls <= MOST_CALLS
    assert steps.most_bytes <= MOST_BYTES + BYTES_OF_ONE * case.at_once


@pytest.mark.parametrize("name", CASES)
async def test_the_loop_is_free(name: str) -> None:
    case, upstream = CASES[name], ThreadedUpstream()
    async with proxy_before(upstream, **case.settings) as running:
        check(await play(case, upstream, running), case)


async def test_the_loop_is_free_while_upstream_speaks_tls(
    authority: trustme.CA, bundle: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    upstream = ThreadedUpstream(context)
    url = f"https://localhost:{upstream.port}"
    response = RESPONSES["one string"].response
    case = body(BODIES["messages and no model"], LARGEST, response=response)
    async with proxy_before(upstream, CEREBRAS_BASE_URL=url, SSL_CERT_FILE=bundle) as running:
        check(await play(case, upstream, running), case)


def every_outcome() -> list[Exchange]:
    """One exchange for each way in which one can end on each route, and for each model."""
    known = vars(errors).values()
    kinds = [kind for kind in known if isinstance(kind, type) and issubclass(kind, ProxyError)]
    failures = [kind.__new__(kind) for kind in kinds]
    ended = [
        chat_exchange(route=route, error=failure, status=failure.status)
        for route in ROUTES
        for failure in failures
    ]
    ended += [chat_exchange(upstream_status=status, status=status) for status in STATUSES]
    waits = ("admission_wait_seconds", "pool_wait_seconds", "retry_seconds")
    parts = dict.fromkeys((*waits, "connect_seconds", "tls_seconds"), 0.1)
    for model in (*PriceTable.built_in().prices, "unknown"):
        ended.append(stream_exchange(model=model, gap_counts=[1] * GAPS, **parts))
        ended.append(plain_exchange(model=model, time_info=TimeInfo(0.1, 0.1, 0.1)))
    return ended


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
async def test_the_loop_is_free_while_metrics_are_scraped(accept: str) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: %s\r\n\r\n" % accept.encode()
    upstream, case = ThreadedUpstream(), Case(lambda: request)
    async with proxy_before(upstream) as running:
        for exchange in every_outcome():
            running.proxy._metrics.observe(*with_timings(exchange))
        check(await play(case, upstream, running), case)


HEALTH = Case(lambda: b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")


def report_at_length() -> tuple[int, dict[str, object]]:
    for number in range(MOST_CALLS):
        abs(number)
    return 200, {}


def report_much() -> tuple[int, dict[str, object]]:
    return 200, {"x": "x" * MOST_BYTES}


@pytest.mark.parametrize("report", [report_at_length, report_much])
async def test_a_handler_that_holds_the_loop_is_found(
    report: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = ThreadedUpstream()
    async with proxy_before(upstream) as running:
        check(await play(HEALTH, upstream, running), HEALTH)
        monkeypatch.setattr(running.proxy._health, "report", report)
        with pytest.raises(AssertionError):
            check(await play(HEALTH, upstream, running), HEALTH)
