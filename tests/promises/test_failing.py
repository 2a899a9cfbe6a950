"""Failures of an exchange: the client's response, the outcome, and the connections."""

import errno
from collections.abc import Callable

import anyio
import pytest
from end_to_end import (
    TOKEN,
    Conversation,
    chat,
    error_shape,
    events,
    free_port,
    running_proxy,
    running_upstream,
)
from upstream_scripts import closes, one_token_and_no_more, resets, responds_once, silent, streams
from waiting import until

from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.upstream.connect import AttemptFailed, EgressRefused

pytestmark = pytest.mark.anyio


async def test_nobody_listens() -> None:
    port = free_port()
    async with running_proxy(port) as running:
        client = await running.client()
        response = await client.request(chat())
        line = await running.lines.exchange()
        again = await client.request(chat())
        labels = 'cause="ECONNREFUSED",outcome="upstream_connect_failed"'
        failures = await running.sample(f"cerebras_proxy_upstream_failures_total{{{labels}}}")
    assert response.status == again.status == 502
    assert error_shape(response.json()) == ("upstream_error", "connect_error")
    assert "x-should-retry" not in response.headers
    assert (line["outcome"], line["error"]) == ("upstream_connect_failed", "connect_error")
    assert (line["cause"], line["upstream_address"]) == ("ECONNREFUSED", f"127.0.0.1:{port}")
    assert (line["level"], failures) == ("error", 2)


async def test_a_name_that_nobody_knows() -> None:
    async with running_proxy(0, CEREBRAS_BASE_URL="http://no-such-host.invalid") as running:
        await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert line["outcome"] == "upstream_connect_failed"
    assert line["cause"] in ("EAI_NONAME", "EAI_AGAIN")  # as the machine's resolver is
    assert "upstream_address" not in line


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (AttemptFailed(errno.ENETUNREACH, ("192.0.2.1", 443)), "ENETUNREACH"),
        (AttemptFailed(errno.EHOSTUNREACH, ("192.0.2.1", 443)), "EHOSTUNREACH"),
        (AttemptFailed(errno.ETIMEDOUT, ("192.0.2.1", 443)), "ETIMEDOUT"),
        (AttemptFailed(errno.EACCES, ("192.0.2.1", 443)), "EPERM"),
        (AttemptFailed(errno.ENOBUFS, ("192.0.2.1", 443)), "EMFILE"),
        (AttemptFailed(errno.EPROTO, ("192.0.2.1", 443)), "E_OTHER"),
        (EgressRefused(0, "192.0.2.1:443"), "proxy_invalid"),
        (EgressRefused(403, "192.0.2.1:443"), "proxy_refused"),
        (EgressRefused(407, "192.0.2.1:443"), "proxy_auth"),
        (EgressRefused(503, "192.0.2.1:443"), "proxy_unreachable"),
    ],
)
async def test_why_no_connection_was_made(error: OSError, cause: str) -> None:
    async def connect(host: str, port: int) -> TimestampedStream:
        raise error

    async with running_proxy(1, connect) as running:
        await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (line["cause"], line["upstream_address"]) == (cause, "192.0.2.1:443")


async def speaks_another_protocol(peer: Conversation) -> None:
    await peer.request()
    await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def switches_protocols(peer: Conversation) -> None:
    await peer.request()
    await peer.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (closes, "closed"),
        (resets, "ECONNRESET"),
        (speaks_another_protocol, "malformed_head"),
        (switches_protocols, "malformed_head"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_no_valid_response(script: Callable[..., object], cause: str) -> None:
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:  # type: ignore[arg-type]
        client = await running.client()
        response = await client.request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
    assert response.status == 502
    assert error_shape(response.json()) == ("upstream_error", "invalid_response")
    assert response.headers["x-should-retry"] == "false"
    assert (line["outcome"], line["cause"]) == ("upstream_invalid", cause)
    assert line["upstream_address"] == f"127.0.0.1:{upstream.port}"
    assert len(upstream.requests) == 1


async def test_no_response_in_time() -> None:
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, UPSTREAM_FIRST_BYTE_TIMEOUT="0.05") as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()
    assert response.status == 504
    assert error_shape(response.json()) == ("upstream_error", "first_byte_timeout")
    assert line["outcome"] == "upstream_timeout"


async def test_a_head_that_never_ends_is_cut_by_the_total() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        while True:  # each read makes progress, but the head never comes, nor becomes too large
            await peer.send(b"X-A: b\r\n")
            await anyio.sleep(0.005)

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, UPSTREAM_FIRST_BYTE_TIMEOUT="0.1") as running,
    ):
        response = await (await running.client()).request(chat())
    assert response.status == 504


@pytest.mark.parametrize("boundary", [True, False])
async def test_a_stream_that_is_cut_is_never_ended_cleanly(boundary: bool) -> None:
    sent = events(TOKEN) if boundary else events(TOKEN) + b"data: {"

    async with (
        running_upstream(streams(sent, then="leave")) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.status == 200
    assert not response.complete
    assert b"[DONE]" not in response.body
    assert response.body.startswith(sent)
    event = response.body[len(sent) :]
    if boundary:
        assert event.startswith(b'data: {"status_code":502,"error":{"message":')
        assert event.endswith(b'"code":"stream_truncated"},"choices":[]}\n\n')
    else:
        assert event == b""
    assert (line["status_code"], line["outcome"]) == (200, "upstream_truncated")


async def test_a_clean_end_without_the_marker_is_a_cut_too() -> None:
    async with (
        running_upstream(streams(events(TOKEN))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert not response.complete
    assert b"stream_truncated" in response.body
    assert line["outcome"] == "upstream_truncated"


async def test_a_stream_that_stalls() -> None:
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, UPSTREAM_IDLE_TIMEOUT="0.05") as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()
    assert not response.complete
    assert b'"code":"stream_timeout"' in response.body
    assert line["outcome"] == "upstream_stalled"


async def test_a_plain_response_that_is_cut() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        await peer.send(b"Content-Length: 100\r\n\r\n{")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.complete, response.headers["content-length"]) == (False, "100")
    assert line["outcome"] == "upstream_truncated"


async def test_an_error_event_passes_and_the_exchange_has_failed() -> None:
    event = b'{"status_code":500,"error":{"message":"x","type":"server_error"}}'

    async with (
        running_upstream(streams(events(TOKEN, event))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_errors_total") == 1
    assert response.complete
    assert response.body == events(TOKEN, event)
    assert (line["outcome"], line["level"]) == ("upstream_stream_error", "error")


async def test_an_error_event_behind_the_end_marker_passes_and_counts_for_nothing() -> None:
    """The SDKs read no further than that."""
    sent = events(TOKEN, b"[DONE]", b'{"error":{"message":"x"}}')
    async with running_upstream(streams(sent)) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_errors_total") == 0
    assert (response.body, response.complete) == (sent, True)
    assert line["outcome"] == "completed"


@pytest.mark.parametrize("stalls", [False, True])
async def test_an_error_event_is_the_last_however_its_stream_ends(stalls: bool) -> None:
    sent = events(TOKEN, b'{"status_code":500,"error":{"message":"x","type":"server_error"}}')

    async with (
        running_upstream(streams(sent, then="stay" if stalls else "leave")) as upstream,
        running_proxy(upstream.port, UPSTREAM_IDLE_TIMEOUT="0.05") as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.body, response.complete) == (sent, False)
    assert line["outcome"] == "upstream_stream_error"


async def test_an_upstream_connection_closed_while_idle_is_found_before_use() -> None:
    async with running_upstream(responds_once) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        statuses = [(await client.request(chat())).status for _ in range(5)]
    assert statuses == [200] * 5
    assert len(upstream.requests) == 5


async def test_bytes_behind_a_response_never_reach_the_next_request() -> None:
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"

    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison)

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        bodies = [(await client.request(chat())).body for _ in range(3)]
    assert bodies == [b"ok"] * 3
    assert upstream.connections == 3


async def test_all_connections_in_use() -> None:
    """The only one is made in advance: on a busy machine that may take longer than a request may
    wait for it."""
    settings = {
        "CONNECTION_POOL_SIZE": "1",
        "UPSTREAM_CONNECT_TIMEOUT": "0.05",
        "WARM_CONNECTIONS": "1",
    }
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        await until(lambda: running.proxy._upstream.pool.idle == 1)
        await (await running.client()).send(chat())
        await until(lambda: bool(upstream.requests))
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert error_shape(response.json()) == ("overloaded_error", "overloaded")
    assert line["outcome"] == "overloaded"


async def test_the_whole_exchange_has_a_deadline_where_one_is_set() -> None:
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, REQUEST_TIMEOUT="0.05") as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()
    assert response.status == 504
    assert line["outcome"] == "exchange_timeout"
