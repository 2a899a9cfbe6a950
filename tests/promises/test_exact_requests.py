"""``TTFT_MODE=exact``: what of a request goes upstream, and which requests are not converted."""

import gzip

import pytest
from end_to_end import TOKEN, body_of, chat, events, running_proxy, running_upstream
from running_simulator import chat as request_for
from running_simulator import post
from running_simulator import rig as simulator
from sdks import MESSAGE_PACK
from upstream_scripts import streams

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

EXACT = {"TTFT_MODE": "exact"}
STREAM = events(TOKEN, b"[DONE]")


@pytest.mark.parametrize(
    ("sent", "passed", "converted"),
    [
        (
            b'{"n":1.0, "model" : "old" }',
            b'{"n":1.0, "model" : "gpt-oss-120b" }',
            b'{"stream":true,%s,"n":1.0, "model" : "gpt-oss-120b" }',
        ),
        (
            b'{"stream":false ,"x":"\\u00e9" }',
            b'{"model":"gpt-oss-120b","stream":false ,"x":"\\u00e9" }',
            b'{"model":"gpt-oss-120b",%s,"stream":true ,"x":"\\u00e9" }',
        ),
        (
            b'{"model":"m","stream":null,"stream_options":{"include_usage":false}}',
            b'{"model":"m","stream":null,"stream_options":{"include_usage":false}}',
            b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}',
        ),
        (
            b'{"stream":false,"model":"old"}',
            b'{"stream":false,"model":"gpt-oss-120b"}',
            b'{%s,"stream":true,"model":"gpt-oss-120b"}',
        ),
    ],
)
async def test_what_goes_up_in_either_mode(sent: bytes, passed: bytes, converted: bytes) -> None:
    settings = {"DEFAULT_MODEL": "gpt-oss-120b", "MODEL_ALIASES": "old=gpt-oss-120b"}
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port, **settings) as passing,
        running_proxy(upstream.port, **settings, **EXACT) as exact,
    ):
        await (await passing.client()).request(chat(sent))
        await (await exact.client()).request(chat(sent))
    asked = b'"stream_options":{"include_usage":true}'
    bodies = [body_of(request) for request in upstream.requests]
    assert bodies == [passed, converted.replace(b"%s", asked)]


@pytest.mark.parametrize("mode", ["passthrough", "exact"])
async def test_a_requested_stream_passes_byte_for_byte(mode: str) -> None:
    body = b'{ "model":"gpt-oss-120b","stream" : true }'
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port, TTFT_MODE=mode) as running,
    ):
        response = await (await running.client()).request(chat(body))
        line = await running.lines.exchange()
    assert body_of(upstream.requests[0]) == body
    assert response.body == STREAM
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (line["stream"], line["ttft_source"]) == (True, "measured")


@pytest.mark.parametrize(
    ("compressed", "lines"),
    [
        (
            gzip.compress(body_of(request_for(model="gpt-oss-120b")), mtime=0),
            ("Content-Type: application/json", "Content-Encoding: gzip"),
        ),
        (
            MESSAGE_PACK.replace(b"\xa6stream\xc3", b"\xa6stream\xc2"),
            ("Content-Type: application/msgpack",),
        ),
    ],
)
async def test_a_compressed_request_passes_as_it_is(
    compressed: bytes, lines: tuple[str, ...]
) -> None:
    async with simulator(rate=2000.0) as api, running_proxy(api.port, **EXACT) as running:
        response = await (await running.client()).request(post(compressed, *lines))
        line = await running.lines.exchange()
        [truth] = api.simulator.truth
    assert truth.body == compressed
    assert response.json()["object"] == "chat.completion"
    assert (line["stream"], line["ttft_source"]) == (False, "derived")
