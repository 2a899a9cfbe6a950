"""Compression of large bodies on their way upstream: which, how, and which stay untouched."""

import gzip
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

import anyio
import httpx
import orjson
import pytest
from end_to_end import TOKEN, Client, Conversation, chat, events, running_proxy, running_upstream
from sdks import MESSAGE_PACK, NO_CERTIFICATES, REQUEST
from server_process import serving
from waiting import wait_all_tasks_blocked

from ape_cerebras.chat import request
from ape_cerebras.chat.request import Compression
from ape_cerebras.config.config import Config
from ape_cerebras.http1.messages import Headers

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

WORDS = b"All work and no play makes a dull token. "
LONG_REQUEST = b'{ "model":"old","messages":[{"content":"%s"}]}' % (WORDS * 500)
HEADERS: Headers = ((b"content-type", b"application/json"), (b"accept", b"*/*"))
LEAST = {"UPSTREAM_GZIP_MIN_BYTES": "1000"}


async def compress(headers: Headers, body: bytes, **settings: str) -> tuple[Headers, bytes]:
    config = Config.from_environment({"CEREBRAS_API_KEY": "csk-x", **settings})
    compression = Compression(config.upstream_gzip_min_bytes)
    headers, compressed = await compression.compress(headers, body)
    return headers, compressed


async def test_compression_is_off_by_default() -> None:
    body = WORDS * 100_000
    assert await compress(HEADERS, body) == (HEADERS, body)


async def test_large_bodies_are_compressed_and_small_ones_are_not() -> None:
    small, large = b"a" * 999, b"a" * 1000
    assert await compress(HEADERS, small, **LEAST) == (HEADERS, small)
    headers, compressed = await compress(HEADERS, large, **LEAST)
    assert headers == (*HEADERS, (b"content-encoding", b"gzip"))
    assert gzip.decompress(compressed) == large
    assert len(compressed) < 100


async def test_an_incompressible_body_stays_unchanged() -> None:
    body = os.urandom(5000)
    assert await compress(HEADERS, body, **LEAST) == (HEADERS, body)


async def test_there_is_one_content_encoding() -> None:
    plain = (*HEADERS, (b"content-encoding", b"identity"))
    headers, _ = await compress(plain, WORDS * 100, **LEAST)
    assert headers == (*HEADERS, (b"content-encoding", b"gzip"))


# On its way


async def respond(peer: Conversation) -> None:
    while True:
        await peer.request()
        await peer.respond(b"{}")


async def respond_stream(peer: Conversation) -> None:
    while True:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN, b"[DONE]"))
        await peer.end()


def split(request: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a request's head, in lower case, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    return head.lower().split(b"\r\n"), body


@pytest.mark.parametrize("mode", ["passthrough", "exact"])
async def test_upstream_gets_the_same_body_compressed(mode: str) -> None:
    settings = {**LEAST, "TTFT_MODE": mode, "MODEL_ALIASES": "old=gpt-oss-120b"}
    async with (
        running_upstream(respond_stream) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        response = await (await running.client()).request(chat(LONG_REQUEST))
        line = await running.lines.exchange()
    lines, body = split(upstream.requests[0])
    expected = LONG_REQUEST.replace(b'"old"', b'"gpt-oss-120b"')
    if mode == "exact":
        added = b'{"stream":true,"stream_options":{"include_usage":true},'
        expected = expected.replace(b"{", added, 1)
    assert gzip.decompress(body) == expected
    assert len(body) < len(expected) / 10
    assert [text for text in lines if text.startswith(b"content-")] == [
        b"content-length: %d" % len(body),
        b"content-type: application/json",
        b"content-encoding: gzip",
    ]
    assert response.status == 200
    assert (line["outcome"], line["model"]) == ("completed", "gpt-oss-120b")


COMPRESSED = gzip.compress(LONG_REQUEST, 0)  # larger than it was, and still not ours to touch
UNTOUCHED = {
    "gzip": (b"Content-Type: application/json\r\nContent-Encoding: gzip", COMPRESSED),
    "MessagePack": (b"Content-Type: application/msgpack", MESSAGE_PACK + WORDS * 100),
    "small": (b"Content-Type: application/json", b'{"model":"m"}'),
}


@pytest.mark.parametrize("kind", UNTOUCHED)
async def test_binary_and_small_bodies_pass_byte_for_byte(kind: str) -> None:
    fields, body = UNTOUCHED[kind]
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n%s\r\nContent-Length: %d\r\n\r\n"
    async with (
        running_upstream(respond) as upstream,
        running_proxy(upstream.port, **LEAST) as running,
    ):
        await (await running.client()).request(head % (fields, len(body)) + body)
    lines, passed = split(upstream.requests[0])
    assert passed == body
    assert (b"content-encoding: gzip" in lines) == (kind == "gzip")


def test_the_simulator_reads_a_compressed_body(backend: str) -> None:
    words = {"role": "user", "content": WORDS.decode() * 1000}
    trace_id = token_hex(16)
    with serving("serve", "--demo", BACKEND=backend, LOG_LEVEL="debug", **LEAST) as served:
        response = httpx.post(
            f"http://127.0.0.1:{served.port}/v1/chat/completions",
            content=orjson.dumps({**REQUEST, "messages": [words]}),
            headers={"content-type": "application/json", "x-trace-id": trace_id},
            verify=NO_CERTIFICATES,
        )
        line = served.exchange(trace_id)
    assert response.status_code == 200
    assert line["prompt_tokens"] > 10_000


# The thread


class Gate:
    """In the place of gzip: takes a thread's time until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.inside = self.most_inside = 0
        self._lock = threading.Lock()

    def __call__(self, body: bytes) -> bytes:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.inside, self.most_inside)
        self.entered.release()
        assert self.opened.wait(5)
        with self._lock:
            self.inside -= 1
        return gzip.compress(body)

    async def until_entered(self) -> None:
        assert await anyio.to_thread.run_sync(self.entered.acquire, True, 5)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(request, "_gzip", gate)
    yield gate
    gate.opened.set()


@contextmanager
def opening(gate: Gate) -> Iterator[None]:
    """Open the gate at the end, also after a failure, so that the waiting threads end."""
    try:
        yield
    finally:
        gate.opened.set()


async def test_other_requests_are_served_during_compression(gate: Gate) -> None:
    async with (
        running_upstream(respond) as upstream,
        running_proxy(upstream.port, **LEAST) as running,
    ):
        client, other = await running.client(), await running.client()
        with opening(gate):
            await client.send(chat(LONG_REQUEST))
            await gate.until_entered()
            assert (await other.get("/health")).status == 200
            assert (await other.request(chat())).body == b"{}"
            assert len(upstream.requests) == 1
        assert (await client.response()).body == b"{}"


async def test_compression_uses_one_thread_per_core_of_its_own(gate: Gate) -> None:
    cores = os.cpu_count() or 1
    async with (
        running_upstream(respond) as upstream,
        running_proxy(upstream.port, **LEAST) as running,
    ):
        clients = [await running.client() for _ in range(cores + 3)]
        with opening(gate):
            for client in clients:
                await client.send(chat(LONG_REQUEST))
            for _ in range(cores):
                await gate.until_entered()
            await wait_all_tasks_blocked()
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        for client in clients:
            assert (await client.response()).body == b"{}"
    assert gate.most_inside == cores


async def test_a_disconnect_during_compression_leaves_nothing_behind(gate: Gate) -> None:
    async with (
        running_upstream(respond) as upstream,
        running_proxy(upstream.port, **LEAST) as running,
    ):
        with opening(gate):
            disconnecting: Client = await running.client()
            await disconnecting.send(chat(LONG_REQUEST))
            await gate.until_entered()
            disconnecting.stream.reset()
            await (await running.client()).get("/health")  # by then the proxy has seen the reset
        await running.lines.exchange(2)
        outcomes = {line["outcome"] for line in running.lines.exchanges()}
        assert outcomes == {"completed", "client_disconnected"}
        assert upstream.connections == 0
        assert await running.sample("cerebras_proxy_requests_in_flight") == 1  # the scrape
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
        client = await running.client()
        assert (await client.request(chat(LONG_REQUEST))).body == b"{}"


async def test_compression_counts_as_the_proxys_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(body: bytes) -> bytes:
        assert not threading.Event().wait(0.05)
        return gzip.compress(body)

    monkeypatch.setattr(request, "_gzip", slow)
    async with (
        running_upstream(respond_stream) as upstream,
        running_proxy(upstream.port, **LEAST) as running,
    ):
        body = LONG_REQUEST.replace(b"{", b'{"stream":true,', 1)
        await (await running.client()).request(chat(body))
        line = await running.lines.exchange()
    assert line["proxy_own_seconds"] >= 0.05
    assert line["overhead_seconds"] >= 0.05
    assert line["ttft_seconds"] == pytest.approx(
        line["upstream_ttft_seconds"] + line["proxy_ttft_seconds"], abs=1e-9
    )
