"""One request to the API by itself: its bytes, its record, its failures, its response."""

import math

import anyio
import pytest
from end_to_end import KEY, Conversation, Script, running_upstream
from exchanges import chat_exchange
from hypothesis import given
from hypothesis import strategies as st
from scraped_metrics import observed, value
from upstream_scripts import silent

from ape_cerebras.config.config import Config
from ape_cerebras.errors import (
    FirstByteTimeout,
    IdleTimeout,
    InvalidResponse,
    ProxyError,
    Truncated,
)
from ape_cerebras.telemetry.exchange import Exchange, Quota
from ape_cerebras.telemetry.timings import Timings
from ape_cerebras.upstream.client import (
    UpstreamClient,
    UpstreamRequest,
    read_error_code,
    read_quota,
)

pytestmark = pytest.mark.anyio


def upstream_at(port: int, path: str = "", **settings: str) -> UpstreamClient:
    url = f"http://127.0.0.1:{port}{path}"
    return UpstreamClient(
        Config.from_environment({"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": url, **settings})
    )


async def body_of(upstream: UpstreamClient, exchange: Exchange, body: bytes = b"{}") -> bytes:
    response_body = b""
    try:
        request = UpstreamRequest("POST", "/v1/x", ((b"a", b"b"),), body)
        with await upstream.send(exchange, request) as response:
            while (chunk := await response.next_chunk()) is not None:
                response_body += chunk
    finally:
        upstream.pool.close()
    return response_body


async def responds(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"hello", headers=b"X-RateLimit-Limit-Tokens-Minute: 5\r\n")


async def test_what_is_sent_and_what_is_recorded() -> None:
    exchange = Exchange(started_at=anyio.current_time())
    async with running_upstream(responds) as scripted:
        assert await body_of(upstream_at(scripted.port, "/prefix/v1/"), exchange) == b"hello"
    head, _, body = scripted.requests[0].partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.decode().split("\r\n") == [
        "POST /prefix/v1/x HTTP/1.1",
        f"host: 127.0.0.1:{scripted.port}",
        "content-length: 2",
        f"authorization: Bearer {KEY}",
        "accept-encoding: identity",
        "a: b",
    ]
    assert exchange.upstream_status == 200
    assert exchange.quota == Quota({("tokens", "minute"): 5.0}, {}, 0)
    assert exchange.sent_at is not None
    assert exchange.head_at is not None
    assert exchange.started_at <= exchange.sent_at <= exchange.head_at
    assert 0 < exchange.upstream_wait_seconds < 5


async def redirects(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"", status="302 Found", headers=b"Location: http://127.0.0.1:1/\r\n")


async def sends_an_unknown_status(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"", status="999 Strange")


async def cuts_the_body(peer: Conversation) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhell")


async def sends_a_chunk_of_no_size(peer: Conversation) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"5 \r\nhello\r\n",
        b"5;\r\nhello\r\n",
        b"5\nhello\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"0\r\n:\r\n",
    ],
)
async def test_ambiguous_chunks_truncate_the_response(body: bytes) -> None:
    """h11 takes the first two."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await peer.send(body)
        await peer.until_disconnected()

    async with running_upstream(script) as scripted:
        upstream = upstream_at(scripted.port)
        with pytest.raises(Truncated):
            await body_of(upstream, Exchange(started_at=anyio.current_time()))
        assert (upstream.pool.active, upstream.pool.idle) == (0, 0)


async def test_chunks_are_joined_and_their_connection_is_reused() -> None:
    parts = [b"%x\r\n%b\r\n" % (size, b"x" * size) for size in (1, 70_000, 3, 100)]

    async def script(peer: Conversation) -> None:
        for ends in (b"0\r\n\r\n", b"0;a=b\r\nX: y\r\n\r\n"):
            await peer.request()
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            await peer.send(head + b"".join(parts) + ends)

    async with running_upstream(script) as scripted:
        upstream = upstream_at(scripted.port)
        for use in ("new", "reused"):
            exchange = Exchange(started_at=anyio.current_time())
            response_body = b""
            with await upstream.send(exchange, UpstreamRequest("GET", "/v1/x")) as response:
                while (chunk := await response.next_chunk()) is not None:
                    response_body += chunk
            assert response_body == b"x" * 70_104
            assert exchange.connection == use
        upstream.pool.close()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (redirects, InvalidResponse),
        (sends_an_unknown_status, InvalidResponse),
        (cuts_the_body, Truncated),
        (sends_a_chunk_of_no_size, Truncated),
        (silent, FirstByteTimeout),
    ],
)
async def test_failures(script: Script, error: type[ProxyError]) -> None:
    exchange = Exchange(started_at=anyio.current_time())
    async with running_upstream(script) as scripted:
        upstream = upstream_at(scripted.port, UPSTREAM_FIRST_BYTE_TIMEOUT="0.1")
        with pytest.raises(error) as caught:
            await body_of(upstream, exchange)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        assert (upstream.pool.active, upstream.pool.idle) == (0, 0)
        assert exchange.sent_at is not None
        assert exchange.upstream_wait_seconds > 0


async def test_a_failed_wait_for_a_connection_counts_as_waiting_for_upstream() -> None:
    async def never(host: str, port: int) -> None:
        await anyio.sleep_forever()

    config = Config.from_environment({"CEREBRAS_API_KEY": KEY, "UPSTREAM_CONNECT_TIMEOUT": "0.05"})
    exchange = Exchange(started_at=anyio.current_time())
    with pytest.raises(ProxyError):
        await body_of(UpstreamClient(config, never), exchange)  # type: ignore[arg-type]
    assert exchange.upstream_wait_seconds >= 0.05
    assert exchange.sent_at is None


async def test_a_large_body_is_sent_whole() -> None:
    async with running_upstream(responds) as scripted:
        body = b"x" * 5_000_000
        exchange = Exchange(started_at=anyio.current_time())
        assert await body_of(upstream_at(scripted.port), exchange, body) == b"hello"
        assert scripted.requests[0].endswith(b"\r\n\r\n" + body)


async def responds_before_all_has_arrived(peer: Conversation) -> None:
    await peer.stream.receive(1)
    await peer.respond(b"hello")
    await peer.until_disconnected()


async def test_a_response_that_overtakes_its_request_takes_no_negative_time() -> None:
    async with running_upstream(responds_before_all_has_arrived) as scripted:
        upstream = upstream_at(scripted.port)
        exchange = Exchange(started_at=anyio.current_time())
        body = b"x" * 8_000_000  # more than fits in between
        request = UpstreamRequest("POST", "/v1/x", body=body)
        with await upstream.send(exchange, request) as response:
            assert await response.next_chunk() == b"hello"
            assert Timings.of(exchange).ttfb_seconds == 0
            assert response.arrived_at == exchange.sent_at
        upstream.pool.close()


async def test_after_its_content_a_response_is_read_without_a_wait_and_left_as_it_was() -> None:
    may_end = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await peer.send(head + b"5\r\nhello\r\n")
        await may_end.wait()
        await peer.send(b"0\r\n\r\n")
        await peer.until_disconnected()

    async def hook() -> None:
        calls.append(1)

    calls: list[int] = []
    exchange = Exchange(started_at=anyio.current_time())
    async with running_upstream(script) as scripted:
        upstream = upstream_at(scripted.port)
        with await upstream.send(exchange, UpstreamRequest("GET", "/v1/x")) as response:
            response.before_wait(hook)
            assert await response.next_chunk() == b"hello"
            response.wind_down(0)
            waited = exchange.upstream_wait_seconds
            with pytest.raises(IdleTimeout):
                await response.next_chunk()
            may_end.set()
            response.wind_down(5)
            assert await response.next_chunk() is None
        assert calls == []
        assert exchange.upstream_wait_seconds == waited > 0
        raw = (await upstream.pool.lease()).connection.stream.raw
        assert exchange.connection == "new"
        assert (raw.before_wait, raw.read_timeout) == (None, math.inf)
        raw.close()


# What a response reports


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"message":"m","type":"t","param":"queue","code":"queue_exceeded"}', "queue_exceeded"),
        (b'{"status_code":503,"error":{"message":"m","code":"c_1"}}', "c_1"),
        (b'{"error":{"code":""}}', None),
        (b'{"error":"queue_exceeded"}', None),
        (b'{"code":429}', None),
        (b'{"code":"Not A Code"}', None),
        (b'{"code":"' + b"a" * 65 + b'"}', None),
        (b'["code"]', None),
        (b'{"code":"queue_exceeded"', None),
        (b"[" * 60_000, None),
        (b"", None),
        (b"<html>503</html>", None),
    ],
)
def test_the_code_of_an_error(body: bytes, code: str | None) -> None:
    assert read_error_code(body) == code


@given(st.binary(max_size=200))
def test_any_body_has_a_code_or_none(body: bytes) -> None:
    read_error_code(body)


def test_the_quota_is_read_by_kind_and_window() -> None:
    headers = (
        (b"x-ratelimit-limit-tokens-minute", b"30000"),
        (b"x-ratelimit-remaining-tokens-minute", b"29123.5"),
        (b"x-ratelimit-reset-tokens-minute", b"11.382867097854614"),
        (b"x-ratelimit-remaining-requests-day", b"999997455"),
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-request-id", b"1"),
    )
    assert read_quota(headers) == Quota(
        {("tokens", "minute"): 30_000.0},
        {("tokens", "minute"): 29_123.5, ("requests", "day"): 999_997_455.0},
        0,
        1,  # without a window
    )


@pytest.mark.parametrize("text", [b"-1", b"-4096.5", b"-0"])
def test_an_overdrawn_quota_has_nothing_left(text: bytes) -> None:
    quota = read_quota(((b"x-ratelimit-remaining-tokens-minute", text),))
    assert quota == Quota({}, {("tokens", "minute"): 0.0}, 0)


def test_quota_headers_with_unknown_names_are_counted() -> None:
    headers = (
        (b"x-ratelimit-limit-images-minute", b"5"),
        (b"x-ratelimit-remaining-tokens-week", b"5"),
        (b"x-ratelimit-reset-tokens-minute", b"5"),
        (b"x-ratelimits", b"5"),
    )
    assert read_quota(headers) == Quota({}, {}, 0, 2)
    metrics = observed(chat_exchange(quota=read_quota(headers)))
    assert value(metrics, "unknown_quota_headers_total") == 2
    assert value(metrics, "malformed_quota_headers_total") == 0


@pytest.mark.parametrize("text", [b"", b"-1", b"1e5", b"nan", b"inf", b"5, 5", b"\xff", b"9" * 40])
def test_quota_that_cannot_be_read_is_counted(text: bytes) -> None:
    headers = (
        (b"x-ratelimit-limit-tokens-minute", text),
        (b"x-ratelimit-remaining-tokens-minute", b"5"),
    )
    assert read_quota(headers) == Quota({}, {("tokens", "minute"): 5.0}, 1)
    metrics = observed(chat_exchange(quota=read_quota(headers)))
    assert value(metrics, "malformed_quota_headers_total") == 1
    labels = {"kind": "tokens", "window": "minute"}
    assert value(metrics, "upstream_ratelimit_limit", **labels) is None
    assert value(metrics, "upstream_ratelimit_remaining", **labels) == 5
