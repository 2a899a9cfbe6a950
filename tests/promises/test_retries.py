"""Retries: the bytes that upstream got, and the response that the client got.

Pauses are drawn from no more than a few milliseconds here; how long they are is seen on a clock of
the test's own, in ``test_retries_timing``.
"""

import socket
from collections.abc import Callable

import anyio
import pytest
from end_to_end import (
    FINISH,
    KEY,
    TOKEN,
    Conversation,
    Script,
    body_of,
    chat,
    error_shape,
    events,
    free_port,
    running_proxy,
    running_upstream,
)
from upstream_scripts import closes, one_after_another, resets, responds_with, silent
from waiting import until

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.simulator.replies import ERRORS
from ape_cerebras.upstream.connect import connect_tcp

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

TWICE = {"RETRY_ATTEMPTS": "2", "RETRY_BACKOFF": "0.001"}
PLAIN = b'{"choices":[{"index":0,"message":{"content":"a"}}],"model":"gpt-oss-120b"}'
STREAM = events(TOKEN, FINISH, b"[DONE]")
STREAMED = chat(b'{"model":"gpt-oss-120b","stream":true,"messages":[]}')


def error(name: str, headers: bytes = b"") -> Script:
    return responds_with(ERRORS[name].status, ERRORS[name].body, headers)


async def streams_all(peer: Conversation) -> None:
    await peer.stream_head()
    await peer.chunk(STREAM)
    await peer.end()


AGAIN = {
    "queue": "queue_exceeded",
    "server_error": "500",
    "unavailable": "503",
    "502": "502",
    "504": "504",
}


def failing(name: str) -> Script:
    return error(name) if name in ERRORS else responds_with(int(name), b"<html></html>")


@pytest.mark.parametrize("name", AGAIN)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_upstream_did_not_accept_is_retried(name: str, stream: bool) -> None:
    script = one_after_another(failing(name), streams_all if stream else responds_with(200, PLAIN))
    request = STREAMED if stream else chat()
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(request)
        line = await running.lines.exchange()
        retries = f'cerebras_proxy_retries_total{{reason="{AGAIN[name]}"}}'
        assert await running.sample(retries) == 1
        assert await running.metric("cerebras_proxy_retries_forgone_total") == 0
        assert await running.metric("cerebras_proxy_retry_seconds_count") == 1
        assert await running.metric("cerebras_proxy_requests_total") == 1
        assert await running.metric("cerebras_proxy_errors_total") == 0
    assert (response.status, response.body) == (200, STREAM if stream else PLAIN)
    assert len(upstream.requests) == 2
    assert upstream.requests[0] == upstream.requests[1]
    assert upstream.connections == 1
    assert (line["outcome"], line["tries"]) == ("completed", 2)
    assert 0 < line["retry_seconds"] < line["total_time_seconds"]
    assert not {"error", "upstream_status", "upstream_code"} & line.keys()


async def test_by_default_nothing_is_retried() -> None:
    async with (
        running_upstream(one_after_another(error("queue"))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_retries_total") == 0
        assert await running.metric("cerebras_proxy_retries_forgone_total") == 0
    assert (response.status, response.body) == (429, ERRORS["queue"].body)
    assert len(upstream.requests) == 1
    assert not {"tries", "retry_seconds"} & line.keys()
    assert (line["upstream_status"], line["upstream_code"]) == (429, "queue_exceeded")


@pytest.mark.parametrize(
    "name", ["requests", "tokens", "payment_required", "model_not_found", "unknown_field", "501"]
)
async def test_what_the_client_has_to_know_is_passed_on(name: str) -> None:
    async with (
        running_upstream(one_after_another(failing(name))) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert len(upstream.requests) == 1
    if name in ERRORS:
        assert (response.status, response.body) == (ERRORS[name].status, ERRORS[name].body)
    assert "tries" not in line


@pytest.mark.parametrize("script", [closes, resets], ids=lambda script: script.__name__)
async def test_a_request_that_may_have_been_carried_out_is_not_retried(script: Script) -> None:
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
    assert error_shape(response.json()) == ("upstream_error", "invalid_response")
    assert len(upstream.requests) == 1


async def test_a_request_without_a_response_in_time_is_not_retried() -> None:
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, UPSTREAM_FIRST_BYTE_TIMEOUT="0.05", **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
    assert (response.status, len(upstream.requests)) == (504, 1)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_stream_that_has_begun_is_not_retried(cut: bool) -> None:
    failed = b'{"status_code":500,"error":{"message":"x","type":"server_error","code":""}}'

    async def breaks_off(peer: Conversation) -> None:
        await peer.stream_head()
        await peer.chunk(events(TOKEN) if cut else events(failed))
        raise anyio.EndOfStream  # which closes the connection

    async with (
        running_upstream(one_after_another(breaks_off)) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(STREAMED)
        line = await running.lines.exchange()
    assert (response.status, response.complete, len(upstream.requests)) == (200, False, 1)
    assert "tries" not in line


async def test_the_last_failure_is_passed_on_byte_for_byte() -> None:
    body = b'{ "status_code": 503,\n "error": {"message":"x","code":"busy"} , "id": "3" }'
    script = one_after_another(
        responds_with(500), responds_with(502), responds_with(503, body, b"X-Response: 3\r\n")
    )
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        attempts = 'cerebras_proxy_retries_forgone_total{why="attempts"}'
        assert await running.sample(attempts) == 1
        assert await running.metric("cerebras_proxy_retries_total") == 2
        assert await running.metric("cerebras_proxy_upstream_connection_uses_total") == 1
    assert (response.status, response.body) == (503, body)
    assert response.headers["x-response"] == "3"
    assert len(upstream.requests) == 3
    assert (line["tries"], line["upstream_status"], line["upstream_code"]) == (3, 503, "busy")
    assert line["outcome"] == "upstream_failed"


async def test_an_error_that_is_too_long_to_be_read_ahead_is_passed_on_byte_for_byte() -> None:
    """A 429 is known by its body; here that has no end within what is read of it."""
    body = b'{"code":"queue_exceeded","message":"' + b"x" * 200_000 + b'"}'
    async with (
        running_upstream(one_after_another(responds_with(429, body))) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.body) == (429, body)
    assert len(upstream.requests) == 1
    assert "upstream_code" not in line


async def test_a_connection_whose_error_was_too_long_is_not_used_again() -> None:
    script = one_after_another(responds_with(503, b"x" * 200_000), responds_with(200, PLAIN))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
    assert (response.status, response.body) == (200, PLAIN)
    assert (len(upstream.requests), upstream.connections) == (2, 2)


async def test_upstream_may_forbid_a_retry() -> None:
    script = one_after_another(error("unavailable", b"X-Should-Retry: false\r\n"))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        await running.lines.exchange()
        assert await running.sample('cerebras_proxy_retries_forgone_total{why="refused"}') == 1
    assert (response.status, response.headers["x-should-retry"]) == (503, "false")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("retry_after", "settings", "why"),
    [("61", {}, "retry_after"), ("30", {"REQUEST_TIMEOUT": "20"}, "deadline")],
)
async def test_a_response_whose_retry_after_is_too_long_is_passed_on_at_once(
    retry_after: str, settings: dict[str, str], why: str
) -> None:
    script = one_after_another(error("queue", b"Retry-After: %s\r\n" % retry_after.encode()))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE, **settings) as running,
    ):
        response = await (await running.client()).request(chat())
        await running.lines.exchange()
        assert await running.sample(f'cerebras_proxy_retries_forgone_total{{why="{why}"}}') == 1
    assert (response.status, response.body) == (429, ERRORS["queue"].body)
    assert response.headers["retry-after"] == retry_after
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("settings", [{}, TWICE])
async def test_a_request_whose_idle_connection_ends_is_sent_once_more_over_a_new_one(
    settings: dict[str, str],
) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(PLAIN)
        await peer.request()

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        client = await running.client()
        for status in (200, 200):
            assert (await client.request(chat())).status == status
        line = await running.lines.exchange(2)
        series = 'cerebras_proxy_retries_total{reason="connection_lost"}'
        assert await running.sample(series) == 1
    assert (len(upstream.requests), upstream.connections) == (3, 2)
    assert upstream.requests[1] == upstream.requests[2]
    assert (line["tries"], line["connection"], line["outcome"]) == (2, "new", "completed")
    assert 0 <= line["retry_seconds"] < line["total_time_seconds"]


async def test_a_malformed_retry_after_is_a_wait_and_is_counted() -> None:
    script = one_after_another(error("queue", b"Retry-After: soon\r\n"), responds_with(200, PLAIN))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        await running.lines.exchange()
        assert await running.metric("cerebras_proxy_malformed_retry_after_total") == 1
    assert (response.status, len(upstream.requests)) == (200, 2)


async def test_a_retry_after_of_zero_adds_no_wait() -> None:
    script = one_after_another(error("queue", b"Retry-After: 0\r\n"), responds_with(200, PLAIN))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        assert (await (await running.client()).request(chat())).status == 200
        await running.lines.exchange()
        assert await running.metric("cerebras_proxy_malformed_retry_after_total") == 0


# Connections


async def test_nobody_listens() -> None:
    async with running_proxy(free_port(), **TWICE) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.sample('cerebras_proxy_retries_total{reason="connect"}') == 2
    assert error_shape(response.json()) == ("upstream_error", "connect_error")
    assert (line["outcome"], line["tries"]) == ("upstream_connect_failed", 3)


def refusing(times: int, how: type[OSError]) -> Callable[[str, int], object]:
    """Connects, after it has failed so often: refused by a port where nobody listens, or with a
    name that nobody knows."""
    left = times

    async def connect(host: str, port: int) -> TimestampedStream:
        nonlocal left
        if left == 0:
            return await connect_tcp(host, port)
        left -= 1
        if how is socket.gaierror:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await connect_tcp("127.0.0.1", free_port())

    return connect


@pytest.mark.parametrize("how", [ConnectionRefusedError, socket.gaierror])
async def test_a_connection_that_could_not_be_made_is_retried(how: type[OSError]) -> None:
    async with (
        running_upstream(one_after_another(streams_all)) as upstream,
        running_proxy(upstream.port, refusing(2, how), **TWICE) as running,  # type: ignore[arg-type]
    ):
        response = await (await running.client()).request(STREAMED)
        line = await running.lines.exchange()
    assert (response.status, response.body) == (200, STREAM)
    assert len(upstream.requests) == 1
    assert (line["outcome"], line["tries"], line["connection"]) == ("completed", 3, "new")


async def test_fields_of_an_earlier_attempt_are_not_logged_for_the_last() -> None:
    """The first attempt gets a response, the others find no connection."""

    async def responds_and_closes(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(b"{}", status="503 X", headers=b"Connection: close\r\n")

    connects = 0

    async def connect(host: str, port: int) -> TimestampedStream:
        nonlocal connects
        connects += 1
        return await connect_tcp(host, port if connects == 1 else free_port())

    async with (
        running_upstream(responds_and_closes) as upstream,
        running_proxy(upstream.port, connect, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        uses = await running.metric("cerebras_proxy_upstream_connection_uses_total")
    assert (response.status, line["error"], line["tries"]) == (502, "connect_error", 3)
    of_the_first = {"upstream_status", "upstream_code", "connection", "connect_seconds"}
    assert not (of_the_first | {"ttfb_seconds"}) & line.keys()
    assert uses == 0


# In place of a plain reply, a stream that is reassembled


async def test_a_converted_request_is_retried_as_a_stream() -> None:
    async with (
        running_upstream(one_after_another(error("queue"), streams_all)) as upstream,
        running_proxy(upstream.port, TTFT_MODE="exact", **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.status == 200
    assert response.json()["choices"][0]["message"]["content"] == "a"
    converted = (
        b'{"stream":true,"stream_options":{"include_usage":true},'
        b'"model":"gpt-oss-120b","messages":[]}'
    )
    assert [body_of(request) for request in upstream.requests] == [converted] * 2
    assert (line["tries"], line["ttft_source"]) == (2, "measured")


# Clients, and how often they retry


async def test_a_disconnect_while_a_retry_is_waited_for_is_noticed_at_once() -> None:
    requested = anyio.Event()

    async def responds_later(peer: Conversation) -> None:
        await error("queue", b"Retry-After: 50\r\n")(peer)
        requested.set()

    async with (
        running_upstream(one_after_another(responds_later)) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        client = await running.client()
        await client.send(chat())
        await requested.wait()
        scrapes = 1
        while await running.sample('cerebras_proxy_upstream_connections{state="idle"}') != 1:
            scrapes += 1
        client.stream.close()
        line = await running.lines.exchange(scrapes + 1)
        assert await running.metric("cerebras_proxy_requests_in_flight") == 1  # the scrape's own
    assert (line["outcome"], line["tries"]) == ("client_disconnected", 1)
    assert line["retry_seconds"] <= line["total_time_seconds"]
    assert len(upstream.requests) == 1


async def test_clients_own_retries_are_counted() -> None:
    counts = (b"0", b"1", b"2", b"x", b"-1", b"0002", b"", b"00")
    async with (
        running_upstream(one_after_another(responds_with(200, PLAIN))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.request(chat())
        for count in counts:
            await client.request(chat(b'{"model":"x"}', b"X-Stainless-Retry-Count: " + count))
        await running.lines.exchange(len(counts) + 1)
        labelled = await running.sample('cerebras_proxy_client_retries_total{model="other"}')
        assert await running.metric("cerebras_proxy_client_retries_total") == labelled == 3
    assert len(upstream.requests) == len(counts) + 1


async def test_an_upstream_that_fails_for_all_is_not_hammered() -> None:
    count = 100
    async with (
        running_upstream(one_after_another(error("unavailable"))) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        client = await running.client()
        statuses = {(await client.request(chat())).status for _ in range(count)}
        await running.lines.exchange(count)
        lines = running.lines.exchanges()
        suppressed = await running.sample('cerebras_proxy_retries_forgone_total{why="budget"}')
        assert await running.metric("cerebras_proxy_retries_total") == count / 5
    assert statuses == {503}
    assert len(upstream.requests) == sum(line.get("tries", 1) for line in lines) == count * 6 / 5
    assert suppressed > 0


async def test_a_response_that_quotes_the_key_is_never_passed_on() -> None:
    body = b'{"message":"%s","code":"queue_exceeded"}' % KEY.encode()
    async with (
        running_upstream(one_after_another(responds_with(429, body))) as upstream,
        running_proxy(upstream.port, **TWICE) as running,
    ):
        response = await (await running.client()).request(chat())
    assert (response.status, len(upstream.requests)) == (502, 1)
    assert KEY[:6].encode() not in response.body


async def test_a_wait_for_a_retry_holds_no_connection() -> None:
    """Others can have it meanwhile."""

    async def script(peer: Conversation) -> None:
        while True:
            request = await peer.request()
            is_first = b"first" in request and len(peer.upstream.requests) == 1
            await (
                error("queue", b"Retry-After: 50\r\n") if is_first else responds_with(200, PLAIN)
            )(peer)

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, CONNECTION_POOL_SIZE="1", **TWICE) as running,
    ):
        first, second = await running.client(), await running.client()
        await first.send(chat(b'{"model":"first"}'))
        await until(lambda: bool(upstream.requests))
        assert (await second.request(chat())).status == 200
        assert isinstance(first.stream, SocketStream)
        assert len(upstream.requests) == 2
