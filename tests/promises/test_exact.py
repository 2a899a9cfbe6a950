"""``TTFT_MODE=exact``: a plain request gets the same response, and its TTFT is measured."""

from typing import Any

import anyio
import orjson
import pytest
import recorded_streams
from end_to_end import (
    FINISH,
    TOKEN,
    Conversation,
    body_of,
    chat,
    events,
    running_proxy,
    running_upstream,
)
from running_simulator import chat as request_for
from running_simulator import rig as simulator
from sdks import TOOL
from upstream_scripts import pieces_of, streams

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

EXACT = {"TTFT_MODE": "exact"}
CONVERTED = (
    b'{"stream":true,"stream_options":{"include_usage":true},"model":"gpt-oss-120b","messages":[]}'
)
STREAM = events(TOKEN, FINISH, b"[DONE]")


def without_what_differs(body: bytes) -> bytes:
    """A completion less its ids and times, all else and its order as it was."""
    whole = orjson.loads(body)
    for each in whole["choices"]:
        for call in each["message"].get("tool_calls", ()):
            assert len(call.pop("id")) == 9
    for name in ("id", "created", "time_info"):
        assert whole[name]
        whole[name] = None
    return orjson.dumps(whole)


REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "words": ("llama3.1-8b", {}, ""),
    "stream switched off": ("llama3.1-8b", {"stream": False}, ""),
    "stream null": ("llama3.1-8b", {"stream": None}, ""),
    "reasoning": ("gpt-oss-120b", {}, "tokens_per_chunk=1"),
    "choices": ("qwen-3.8-27b", {"n": 3}, ""),
    "a call": ("zai-glm-4.7", {"tools": [TOOL]}, "tokens_per_chunk=1"),
    "a call cut": ("zai-glm-4.7", {"tools": [TOOL], "max_tokens": 18}, ""),
    "cut in the reasoning": ("gpt-oss-120b", {"max_completion_tokens": 3}, ""),
    "one token": ("gpt-oss-120b", {"max_completion_tokens": 1}, ""),
    "JSON": ("gpt-oss-120b", {"response_format": {"type": "json_object"}}, "tokens_per_chunk=3"),
    "logprobs": ("gpt-oss-120b", {"logprobs": True, "top_logprobs": 2, "n": 2}, ""),
    "usage requested": ("gemma-4-31b", {"stream_options": {"include_usage": True}}, ""),
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_the_response_is_that_of_the_other_mode(kind: str) -> None:
    model, fields, simulate = REQUESTS[kind]
    request = request_for(fields, f"X-Simulate: tokens=30, {simulate}".rstrip(", "), model=model)
    async with (
        simulator() as api,
        running_proxy(api.port) as passing,
        running_proxy(api.port, **EXACT) as exact,
    ):
        expected = await (await passing.client()).request(request)
        response = await (await exact.client()).request(request)
        line, other = await exact.lines.exchange(), await passing.lines.exchange()
        plain, converted = api.simulator.truth
        assert await exact.metric("cerebras_proxy_ttft_seconds_count") == 1
    assert without_what_differs(response.body) == without_what_differs(expected.body)
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert orjson.loads(converted.body) == {**orjson.loads(plain.body), **asked}
    assert (response.status, response.complete) == (200, True)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-length"] == str(len(response.body))
    assert response.headers["inference-id"] == orjson.loads(response.body)["id"]
    assert response.headers.keys() - {"content-length"} == expected.headers.keys() - {
        "transfer-encoding"
    }
    assert (line["stream"], line["outcome"]) == (False, "completed")
    assert (line["ttft_source"], other["ttft_source"]) == ("measured", "derived")
    same = [name for name in other if name.endswith(("_tokens", "usd", "model", "usage_source"))]
    same.remove("reserved_tokens")  # the request is longer
    assert [line.get(name) for name in same] == [other[name] for name in same]
    parts = line["upstream_ttft_seconds"] + line["proxy_ttft_seconds"]
    assert line["ttft_seconds"] == pytest.approx(parts)
    assert line["ttft_seconds"] <= line["total_time_seconds"]
    assert "generation_seconds" in line


@pytest.mark.parametrize("recording", [recorded_streams.TEXT, recorded_streams.TOOL_CALL])
@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
async def test_a_recorded_stream_however_it_is_cut(recording: bytes, size: int) -> None:
    async with (
        running_upstream(streams(*pieces_of(recording, size))) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    whole = response.json()
    assert whole["object"] == "chat.completion"
    assert line["total_tokens"] == whole["usage"]["total_tokens"]
    assert line["ttft_source"] == "measured"
    assert ("ttfo_seconds" in line) is (recording is recorded_streams.TEXT)


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        ("200 OK", b"application/json", b'{ "id": "x", "choices" : [ ],"model":"gpt-oss-120b" }'),
        ("200 OK", b"text/plain", b"what?"),
        ("429 Too Many Requests", b"application/json", b'{"message":"Slow down"}'),
        ("500 Oh", b"application/json", b'{"status_code":500,"error":{"message":"Oh"}}'),
        ("503 Oh", b"text/event-stream", b"data: no\n\n"),
    ],
)
async def test_what_is_no_stream_passes_as_it_is(
    status: str, content_type: bytes, body: bytes
) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 %s\r\nContent-Type: %s\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%s"
            % (status.encode(), content_type, len(body), body)
        )

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert body_of(upstream.requests[0]) == CONVERTED
    assert (response.status, response.body) == (int(status[:3]), body)
    assert response.headers["content-type"] == content_type.decode()
    assert response.headers["retry-after"] == "7"
    assert line["upstream_status" if response.status != 200 else "status_code"] == response.status
    assert line["ttft_source"] is None


async def test_headers_of_the_stream_come_with_the_reply() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Content-Length: %d\r\nx-ratelimit-remaining-requests-day: 7\r\ncf-ray: abc\r\n"
            b"Connection: keep-alive, X-Up\r\nX-Up: 1\r\nSet-Cookie: a=b\r\nDate: then\r\n\r\n%s"
            % (len(STREAM), STREAM)
        )

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
    assert response.headers.pop("x-trace-id")
    assert response.headers.pop("x-request-id")
    assert response.headers == {
        "content-type": "application/json",
        "content-length": str(len(response.body)),
        "x-ratelimit-remaining-requests-day": "7",
        "cf-ray": "abc",
        "date": "then",
    }
    assert response.body == (
        b'{"choices":[{"finish_reason":"stop","index":0,"message":{"content":"a","role":'
        b'"assistant"}}],"model":"gpt-oss-120b","object":"chat.completion",'
        + FINISH.partition(b'"gpt-oss-120b",')[2]
    )


async def test_connections_serve_on() -> None:
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        client = await running.client()
        await client.send(chat() + chat(b'{"stream":true}') + chat())  # in one packet
        kinds = [(await client.response()).headers["content-type"] for _ in range(3)]
    assert [kind.partition(";")[0] for kind in kinds] == [
        *("application/json", "text/event-stream", "application/json"),
    ]
    assert upstream.connections == 1


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("last", [STREAM, events(TOKEN) + events(b'{"error":{"message":"Oh"}}')])
async def test_the_end_of_the_framing_is_not_waited_for(last: bytes, stays: bool) -> None:
    async with (
        running_upstream(streams(last, then="stay" if stays else "leave")) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
    assert response.complete
    assert (response.status, line["outcome"]) == (
        (200, "completed") if last is STREAM else (502, "upstream_stream_error")
    )


@pytest.mark.parametrize("after", [events(TOKEN), events(b'{"error":{"message":"Oh"}}')])
async def test_what_comes_after_the_end_changes_nothing(after: bytes) -> None:
    async with (
        running_upstream(streams(STREAM + after, after, b"data: nonsense\n\n")) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_errors_total") == 0
    assert response.json()["choices"][0]["message"]["content"] == "a"
    assert (line["outcome"], line["ttft_source"]) == ("completed", "measured")


async def test_a_disconnect_ends_the_upstream_request() -> None:
    begun = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN))
        begun.set()
        await peer.until_disconnected()

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        client = await running.client()
        await client.send(chat())
        await begun.wait()
        client.stream.close()
        with anyio.fail_after(5):
            await upstream.disconnected.wait()
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
    assert (line["outcome"], line["level"]) == ("client_disconnected", "info")
    assert line["ttft_source"] is None
    assert "status_code" not in line
