"""Responses that are compressed although nobody asked for it: they pass byte for byte, and what is
looked at is looked at all the same."""

import gzip

import anyio
import pytest
from codings import CODINGS, bomb, compressed
from end_to_end import (
    FINISH,
    KEY,
    TOKEN,
    Conversation,
    Script,
    chat,
    error_shape,
    events,
    running_proxy,
    running_upstream,
)
from upstream_scripts import one_after_another, pieces_of

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

EXACT = {"TTFT_MODE": "exact"}
STREAM = events(*[TOKEN] * 20, FINISH, b"[DONE]")
PLAIN = (
    b'{"model":"gpt-oss-120b","choices":[],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14}}'
)
JSON, EVENTS = b"application/json", b"text/event-stream"
MIB = 1024 * 1024


def responds(
    body: bytes,
    coding: bytes,
    content_type: bytes = JSON,
    *,
    status: bytes = b"200 OK",
    size: int = 10**9,
    then: str = "end",
    requested: bool = True,
) -> Script:
    """A compressed response in chunks of a size. ``then``: it is cut, or ends. ``requested``:
    whether it reads the request first."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        await respond(peer)

    async def respond(peer: Conversation) -> None:
        await peer.send(
            b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Encoding: %s\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" % (status, content_type, coding)
        )
        for piece in pieces_of(body, size):
            await peer.chunk(piece)
        if then == "end":
            await peer.end()
        else:
            raise anyio.EndOfStream

    return script if requested else respond


@pytest.mark.parametrize("size", [1, 50, 10**6])
@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_stream_passes_and_is_metered(coding: str, size: int) -> None:
    name, body = compressed(coding, STREAM)
    async with (
        running_upstream(responds(body, name, EVENTS, size=size)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat(b'{"stream":true}'))
        line = await running.lines.exchange()
    assert (response.status, response.body, response.complete) == (200, body, True)
    assert response.headers["content-encoding"] == name.decode()
    assert (line["outcome"], line["ttft_source"]) == ("completed", "measured")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (10, 4)


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_stream_becomes_one_reply(coding: str) -> None:
    name, body = compressed(coding, STREAM)
    async with (
        running_upstream(responds(body, name, EVENTS, size=50)) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.json()["choices"][0]["message"]["content"] == "a" * 20
    assert "content-encoding" not in response.headers
    assert (line["outcome"], line["ttft_source"]) == ("completed", "measured")


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_reply_is_metered(coding: str) -> None:
    name, body = compressed(coding, PLAIN)
    async with (
        running_upstream(responds(body, name)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.body, response.complete) == (body, True)
    assert (line["prompt_tokens"], line["usage_source"]) == (10, "upstream")


@pytest.mark.parametrize("size", [1, 10**6])
@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_error_that_quotes_the_accounts_key_is_withheld(
    coding: str, size: int
) -> None:
    name, body = compressed(coding, b'{"message":"No quota for %s***"}' % KEY[:6].encode())
    script = responds(body, name, status=b"403 Forbidden", size=size)
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.status == 502
    assert error_shape(response.json()) == ("upstream_error", "answer_withheld")
    assert line["outcome"] == "upstream_invalid"


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_error_passes_and_its_code_is_read(coding: str) -> None:
    name, body = compressed(coding, b'{"message":"Busy","code":"queue_exceeded"}')
    failing = responds(body, name, status=b"429 Too Many", requested=False)
    plain = responds(PLAIN, b"identity", requested=False)
    async with (
        running_upstream(one_after_another(failing)) as upstream,
        running_proxy(upstream.port) as running,
        running_upstream(one_after_another(failing, plain)) as busy,
        running_proxy(busy.port, RETRY_ATTEMPTS="1", RETRY_BACKOFF="0.01") as retrying,
    ):
        response = await (await running.client()).request(chat())
        retried = await (await retrying.client()).request(chat())
        line = await retrying.lines.exchange()
    assert (response.status, response.body) == (429, body)
    assert (retried.status, line["tries"]) == (200, 2)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_compressed_stream_that_quotes_the_accounts_key_is_cut(coding: str) -> None:
    quoted = events(TOKEN, b'{"choices":[{"delta":{"content":"%s"}}]}' % KEY.encode(), b"[DONE]")
    name, body = compressed(coding, quoted)
    async with (
        running_upstream(responds(body, name, EVENTS)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.body, response.complete) == (b"", False)
    assert line["error"] == "answer_withheld"


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_a_compressed_stream_that_is_cut_is_cut_without_an_event(coding: str) -> None:
    name, body = compressed(coding, STREAM)
    script = responds(body[:-30], name, EVENTS, size=10, then="cut")
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.body, response.complete) == (body[:-30], False)
    assert line["outcome"] == "upstream_truncated"


async def test_a_compressed_stream_that_is_cut_behind_its_content_is_cut() -> None:
    """What is missing is gzip's checksum."""
    script = responds(gzip.compress(STREAM)[:-4], b"gzip", EVENTS, then="cut")
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
    assert not response.complete


async def test_a_compressed_stream_without_its_end_is_truncated() -> None:
    script = responds(gzip.compress(events(TOKEN)), b"gzip", EVENTS)
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert not response.complete
    assert line["outcome"] == "upstream_truncated"


UNREADABLE = {
    "unknown": (b"compress", b"\x1f\x9d\x90"),
    "two codings": (b"gzip, gzip", gzip.compress(gzip.compress(STREAM))),
    "not of the coding": (b"gzip", STREAM),
    "a bomb": bomb("gzip", 100 * MIB, STREAM),
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_what_cannot_be_read_passes_where_it_is_no_error(kind: str) -> None:
    name, body = UNREADABLE[kind]
    whole = responds(body, name, EVENTS, requested=False)
    cut = responds(body, name, EVENTS, then="cut", requested=False)
    async with (
        running_upstream(one_after_another(whole, cut)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        broken = await (await running.client()).request(chat())
        await running.lines.exchange(2)
        outcomes = [line["outcome"] for line in running.lines.exchanges()]
    assert (response.body, response.complete, broken.complete) == (body, True, False)
    assert outcomes == ["completed", "upstream_truncated"]


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_what_cannot_be_read_is_no_reply(kind: str) -> None:
    name, body = UNREADABLE[kind]
    async with (
        running_upstream(responds(body, name, EVENTS)) as upstream,
        running_proxy(upstream.port, **EXACT) as running,
    ):
        response = await (await running.client()).request(chat())
    assert (response.status, response.json()["code"]) == (502, "invalid_response")


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize(("key", "passes"), [(KEY, False), ("letters", True)])
async def test_an_error_that_cannot_be_read_is_withheld(kind: str, key: str, passes: bool) -> None:
    """A key so short that it may be a word is not looked for."""
    name, body = UNREADABLE[kind]
    script = responds(body, name, status=b"400 Bad")
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, CEREBRAS_API_KEY=key) as running,
    ):
        response = await (await running.client()).request(chat())
    assert response.status == (400 if passes else 502)
    assert response.body == body if passes else response.json()["code"] == "answer_withheld"


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_list_of_models_is_read(coding: str) -> None:
    name, body = compressed(coding, b'{"object":"list","data":[{"id":"one"}]}')
    async with (
        running_upstream(responds(body, name)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).get("/v1/models")
    assert response.json()["data"] == [{"id": "one"}]
