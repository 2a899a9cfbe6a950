"""How a stream has ended: complete, failed or cut, as upstream's bytes and framing say it."""

from typing import NamedTuple

import orjson
import pytest
from end_to_end import TOKEN, Conversation, Script, chat, events, running_proxy, running_upstream
from upstream_scripts import one_after_another, pieces_of, streams

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

EXACT = {"TTFT_MODE": "exact"}
STOP = b'{"choices":[{"delta":{},"finish_reason":"stop","index":0}]}'
SECOND = b'{"choices":[{"delta":{"content":"b"},"finish_reason":"length","index":1}]}'
SPACED = b'{"choices": [{"delta": {"content": "c"}, "finish_reason": "stop", "index": 0}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}'
MANY = b'{"model":"m","n":2,"messages":[]}'
MESSAGE_PACK = b"Content-Type: application/msgpack"
ONE = chat(b'{"model":"m","messages":[]}')
DONE = b"data: [DONE]"


def framed_by(framing: str, body: bytes) -> Script:
    """A stream in one piece, whose end its framing announces, or which ends with the connection."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        length = b"Content-Length: %d\r\n" % len(body) if framing == "length" else b""
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + length + b"\r\n" + body
        )

    return streams(body) if framing == "chunks" else script


class Ending(NamedTuple):
    body: bytes
    complete: bool
    request: bytes = ONE
    framing: str = "chunks"


ENDINGS = {
    **{
        f"end marker, then {end!r}, in {framing}": Ending(
            events(TOKEN) + DONE + end, True, framing=framing
        )
        for end in (b"", b"\n", b"\r", b"\r\n")
        for framing in ("chunks", "length", "nothing")
    },
    "half an end marker": Ending(events(TOKEN) + b"data: [DON", False),
    "finished": Ending(events(TOKEN, STOP), True),
    "finished in the last event, which has no end": Ending(events(TOKEN, STOP)[:-2], True),
    "finished, then usage": Ending(events(TOKEN, STOP, USAGE), True),
    "finished, of a known length": Ending(events(TOKEN, STOP), True, framing="length"),
    "finished with a token": Ending(events(TOKEN, SPACED), True),
    "finished with a token, among many": Ending(events(*[TOKEN] * 30, SPACED, USAGE), True),
    "finished, and the connection ended": Ending(events(TOKEN, STOP), False, framing="nothing"),
    "one of two finished": Ending(events(TOKEN, STOP), False, chat(MANY)),
    "one of two finished twice": Ending(events(TOKEN, STOP, STOP), False, chat(MANY)),
    "both finished": Ending(events(TOKEN, STOP, SECOND), True, chat(MANY)),
    "finished, of nobody knows how many": Ending(
        events(TOKEN, STOP),
        False,
        chat(b"\x80").replace(b"Content-Type: application/json", MESSAGE_PACK),
    ),
    "not finished": Ending(events(TOKEN), False),
    "an event without an end": Ending(events(TOKEN)[:-2], False),
    "half an event": Ending(events(TOKEN) + b'data: {"choices":[{"fin', False),
}


@pytest.mark.parametrize("kind", ENDINGS)
async def test_a_stream_is_complete_where_the_sdks_take_it_so(kind: str) -> None:
    body, complete, request, framing = ENDINGS[kind]
    script = framed_by(framing, body)
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(request)
        line = await running.lines.exchange()
    assert response.complete is complete
    assert response.body == body if complete else response.body.startswith(body)
    assert line["outcome"] == ("completed" if complete else "upstream_truncated")
    # An error event behind a part of one would be read as part of it.
    assert (b"stream_truncated" in response.body) is (not complete and body.endswith(b"\n\n"))


@pytest.mark.parametrize("kind", [kind for kind in ENDINGS if "nobody" not in kind])
async def test_the_same_as_one_reply(kind: str) -> None:
    body, complete, request, framing = ENDINGS[kind]
    async with (
        running_upstream(framed_by(framing, body)) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(request)
        line = await running.lines.exchange()
    assert response.status == (200 if complete else 502)
    assert line["outcome"] == ("completed" if complete else "upstream_truncated")
    if complete:
        assert response.json()["choices"][0]["message"]["content"].startswith("a")


async def test_a_first_token_that_the_end_of_the_body_ends_is_timed() -> None:
    token = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop","index":0}]}'
    async with (
        running_upstream(streams(*pieces_of(token, 20))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        assert (await (await running.client()).request(chat())).complete
        line = await running.lines.exchange()
    assert (line["outcome"], line["ttft_source"]) == ("completed", "measured")
    parts = line["upstream_ttft_seconds"] + line["proxy_ttft_seconds"]
    assert line["ttft_seconds"] == pytest.approx(parts)


def in_one_piece(body: bytes) -> Script:
    """A stream as the response to a request that has been read."""

    async def response(peer: Conversation) -> None:
        await peer.stream_head()
        await peer.chunk(body)
        await peer.end()

    return response


FAILURES = {
    "wrapped": (b'data: {"error":{"message":"no"}}\n\n', 502),
    "wrapped, with its status": (b'data: {"status_code":503,"error":{"message":"no"}}\n\n', 503),
    "its status inside": (b'data: {"error":{"message":"no","code":429}}\n\n', 429),
    "a text": (b'data: {"error":"no"}\n\n', 502),
    "flat": (b'data: {"message":"no","type":"t","param":"p","code":"c"}\n\n', 502),
    "flat, with its status": (b'data: {"status_code":400,"message":"no"}\n\n', 400),
    "detail": (b'data: {"detail":[{"msg":"no"}]}\n\n', 502),
    "an object": (b'data: {"object":"error","message":"no","code":404}\n\n', 404),
    "an object with no choices": (b'data: {"object":"error","choices":[]}\n\n', 502),
    "of a type inside": (b'data: {"type":"error","message":{"text":"no"}}\n\n', 502),
    "of a type": (b'event: error\ndata: {"message":"no","status":500}\n\n', 500),
    "of a type, as text": (b"event: error\ndata: no\n\n", 502),
    "of a type, empty": (b"event: error\n\n", 502),
    "without an end": (b'data: {"message":"no"}', 502),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_an_error_of_any_shape_is_a_failure(kind: str) -> None:
    """As the first event or behind tokens, and whether the end marker comes behind it or not."""
    failure, status = FAILURES[kind]
    whole = failure if failure.endswith(b"\n\n") else failure + b"\n\n"
    bodies = [
        events(*[TOKEN] * tokens) + end
        for tokens in (0, 1, 20)
        for end in (failure, whole + events(b"[DONE]"))
    ]
    script = one_after_another(*map(in_one_piece, bodies))
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port) as passing,
        running_upstream(script) as same,
        running_proxy(same.port, **EXACT) as exact,
    ):
        for number, body in enumerate(bodies, 1):
            passed = await (await passing.client()).request(chat())
            response = await (await exact.client()).request(chat())
            lines = await passing.lines.exchange(number), await exact.lines.exchange(number)
            assert (passed.body, passed.complete) == (body, True)
            assert [line["outcome"] for line in lines] == ["upstream_stream_error"] * 2
            assert response.status == status
            if failure.startswith(b"event:"):
                assert "error" in orjson.loads(response.body)
            else:
                assert b"data: %s\n\n" % response.body in body + b"\n\n"
    assert len(upstream.requests) == len(same.requests) == len(bodies)


HARMLESS = {
    "null": b'{"choices":[{"delta":{"content":"b"},"index":0}],"error":null}',
    "a message beside choices": b'{"choices":[{"delta":{},"index":0}],"message":"fine"}',
    "neither": b'{"type":"ping"}',
    "quoted": b'{"choices":[{"delta":{"content":"\\"error\\":1"},"index":0}]}',
}


@pytest.mark.parametrize("kind", HARMLESS)
async def test_what_only_looks_like_one_is_none(kind: str) -> None:
    script = streams(events(TOKEN, HARMLESS[kind], STOP), events(b"[DONE]"))
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        assert (await (await running.client()).request(chat())).complete
        line = await running.lines.exchange()
    assert line["outcome"] == "completed"
