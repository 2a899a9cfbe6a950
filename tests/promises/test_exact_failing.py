"""Failures of a plain request that was converted to a stream: always with a status."""

import orjson
import pytest
from end_to_end import (
    TOKEN,
    Conversation,
    chat,
    error_shape,
    events,
    running_proxy,
    running_upstream,
)
from upstream_scripts import one_token_and_no_more, streams

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

EXACT = {"TTFT_MODE": "exact", "UPSTREAM_IDLE_TIMEOUT": "5"}
ERROR = {"message": "Oh", "type": "server_error", "param": "", "code": "", "id": ""}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("given", "status"), [(500, 500), (503, 503), (429, 429), (400, 400), (200, 502), (None, 502)]
)
async def test_an_error_event_becomes_an_error(given: int | None, status: int, begun: bool) -> None:
    event = orjson.dumps({"status_code": given, "error": ERROR})
    script = streams(events(*([TOKEN] if begun else []), event))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        client = await running.client()
        response = await client.request(chat())
        again = await client.request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_errors_total") == 2
        assert not await running.metric("cerebras_proxy_ttft_seconds_count")
    assert (response.status, again.status) == (status, status)
    assert (response.body, response.complete) == (event, True)
    assert response.headers["content-type"] == "application/json"
    assert (line["outcome"], line["level"]) == ("upstream_stream_error", "error")
    assert (line["status_code"], line["upstream_status"]) == (status, 200)
    assert line["ttft_source"] is None


FAILURES = {
    "cut off": (
        streams(events(TOKEN), then="leave"),
        *(502, "stream_truncated", "upstream_truncated"),
    ),
    "cut in an event": (
        streams(events(TOKEN) + b"data: {", then="leave"),
        *(502, "stream_truncated", "upstream_truncated"),
    ),
    "nothing but a head": (streams(then="leave"), 502, "stream_truncated", "upstream_truncated"),
    "ended without the marker": (
        streams(events(TOKEN)),
        *(502, "stream_truncated", "upstream_truncated"),
    ),
    "no JSON": (
        streams(events(TOKEN, b"{nonsense")),
        *(502, "invalid_response", "upstream_invalid"),
    ),
    "no event of a completion": (
        streams(events(TOKEN, b"[1]", b"[DONE]")),
        *(502, "invalid_response", "upstream_invalid"),
    ),
    "no response": (streams(events(b"[DONE]")), 502, "invalid_response", "upstream_invalid"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_stream_that_is_none_becomes_an_error(kind: str) -> None:
    script, status, code, outcome = FAILURES[kind]
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        client = await running.client()
        response = await client.request(chat())
        again = await client.request(chat())
        line = await running.lines.exchange()
    assert (response.status, again.status) == (status, status)
    assert response.complete
    assert error_shape(response.json()) == ("upstream_error", code)
    assert response.headers["x-should-retry"] == "false"
    assert (line["outcome"], line["error"], line["status_code"]) == (outcome, code, status)
    assert line["ttft_source"] is None


async def test_a_response_that_does_not_end_is_not_held_for_ever() -> None:
    piece = events(b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"a" * 2**20))

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        while True:
            await peer.chunk(piece)

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        client = await running.client()
        await client.send(chat())
        response = await client.response(timeout=60)  # behind many megabytes
        await upstream.disconnected.wait()
    assert (response.status, response.json()["code"]) == (502, "invalid_response")


@pytest.mark.parametrize(
    ("setting", "code", "outcome"),
    [
        ("UPSTREAM_IDLE_TIMEOUT", "stream_timeout", "upstream_stalled"),
        ("REQUEST_TIMEOUT", "exchange_timeout", "exchange_timeout"),
    ],
)
async def test_a_stream_that_stalls(setting: str, code: str, outcome: str) -> None:
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, **{**EXACT, setting: "0.05"}) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()
    assert (response.status, response.json()["code"]) == (504, code)
    assert line["outcome"] == outcome
