"""Requests that are refused: the right error, the connection kept or closed, nothing sent up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from end_to_end import (
    KEY,
    Running,
    ScriptedUpstream,
    chat,
    running_proxy,
    running_upstream,
)
from upstream_scripts import responds

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
OPEN = {"MAX_BODY_BYTES": "1000"}
LOCKED = {"APE_API_KEY": "alice:key-of-alice,key-of-nobody", **OPEN}


@asynccontextmanager
async def both(**settings: str) -> AsyncIterator[tuple[ScriptedUpstream, Running]]:
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        yield upstream, running


CLOSING = {
    "bare LF": (b"GET /health HTTP/1.1\nHost: a\n\n", 400),
    "HTTP/0.9": (b"GET /health\r\n", 400),
    "TLS to the plain port": (b"\x16\x03\x01\x02\x00\x01", 400),
    "version": (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "folded line": (b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 5, 6\r\n\r\n", 400),
    "length and coding": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "coding": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "many headers": (b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
    "large header": (
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 60_000 + b"\r\n\r\n",
        431,
    ),
    "long target": (b"GET /" + b"y" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "body too large": (HEAD + b"Content-Length: 1001\r\n\r\n", 413),
    "chunks too large": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1f4\r\n" + b"x" * 500 + b"\r\n") * 3,
        413,
    ),
    "a tunnel": (b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n", 405),
    "bad chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", CLOSING)
async def test_where_framing_is_uncertain_the_connection_closes(case: str) -> None:
    request, status = CLOSING[case]
    async with both(**OPEN) as (upstream, running):
        client = await running.client()
        response = await client.request(request + b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert response.status == status
        assert response.headers["connection"] == "close"
        assert response.headers["content-type"] == "application/json"
        body = response.json()
        assert body["error"] == {name: body[name] for name in ("message", "type", "param", "code")}
        assert body["type"] == "invalid_request_error"
        assert await client.until_closed() == b""  # only one has a response
        line = await running.lines.exchange()
        assert (line["status_code"], line["outcome"]) == (status, "refused")
        assert line["level"] == "warning"
        assert upstream.connections == 0
        assert (await (await running.client()).get("/health")).status == 200


JSON = b"Content-Type: application/json\r\n"
KEPT = {
    "empty": (chat(b""), 400),
    "not JSON": (chat(b"{"), 400),
    "not an object": (chat(b'["a"]'), 400),
    "NaN": (chat(b'{"a":NaN}'), 400),
    "model is no string": (chat(b'{"model":5}'), 400),
    "stream is no boolean": (chat(b'{"model":"m","stream":"yes"}'), 400),
    "model twice": (chat(b'{"model":"a","model":"b"}'), 400),
    "no length": (HEAD + b"\r\n", 400),
    "media type": (chat(b"{}").replace(b"application/json", b"text/plain"), 415),
    "content coding": (chat(b"{}", b"Content-Encoding: br"), 415),
    "path": (b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "path to be normalised": (b"GET /v1/../metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "path with a body": (chat(b"{}").replace(b"/v1/chat", b"/v1/chit"), 404),
    "method": (b"DELETE /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    "unknown method": (b"BREW /health HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "unknown model": (b"GET /v1/models/nope HTTP/1.1\r\nHost: a\r\n\r\n", 404),
}


@pytest.mark.parametrize("case", KEPT)
async def test_where_framing_is_sound_the_connection_is_kept(case: str) -> None:
    request, status = KEPT[case]
    async with both(**OPEN) as (upstream, running):
        client = await running.client()
        response = await client.request(request)
        assert response.status == status
        assert (await client.request(chat())).status == 200
    assert [r.partition(b" ")[0] for r in upstream.requests if b"chat" in r] == [b"POST"]


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/chat/completions", "HEAD", "POST"),
        ("/health", "POST", "GET, HEAD"),
        ("/metrics", "TRACE", "GET, HEAD"),
        ("/v1/models/x", "PUT", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_learns_the_right_ones(path: str, method: str, allowed: str) -> None:
    async with both() as (_, running):
        request = f"{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        response = await (await running.client()).request(request, method)
    assert (response.status, response.headers["allow"]) == (405, allowed)
    assert (response.body == b"") == (method == "HEAD")


async def test_a_doubled_prefix_is_explained() -> None:
    async with both(**LOCKED) as (_, running):
        client = await running.client()
        for path in ("/v1/v1/chat/completions", "/v1/v1/tcp_warming"):
            response = await client.get(path)
            assert response.status == 404
            assert "must not end in /v1" in response.json()["message"]


@pytest.mark.parametrize(
    "line",
    [
        None,
        b"Authorization: Bearer wrong",
        b"Authorization: Bearer key-of-alic",
        b"Authorization: Bearer key-of-alicee",
        b"Authorization: Bearer",
        b"Authorization: Basic key-of-alice",
        b"Authorization: key-of-alice",
        b"Authorization: Bearer \xe9\xff",
        b"X-Api-Key: key-of-alice",
    ],
)
async def test_no_key_or_a_wrong_one(line: bytes | None) -> None:
    async with both(**LOCKED) as (upstream, running):
        client = await running.client()
        response = await client.request(chat(b"{}", *([line] if line else [])))
        logged = await running.lines.exchange()
        assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
        assert (response.json()["type"], response.json()["code"]) == (
            "authentication_error",
            "invalid_api_key",
        )
        assert logged["outcome"] == "unauthorized"
        good = await client.request(chat(b"{}", b"Authorization: bEaReR key-of-alice"))
        assert good.status == 200  # the refused body was not taken for a request
    assert len(upstream.requests) == 1


async def test_a_key_that_has_a_name_is_known_by_it() -> None:
    async with both(**LOCKED) as (_, running):
        client = await running.client()
        await client.request(chat(b"{}", b"Authorization: Bearer key-of-alice"))
        await client.request(chat(b"{}", b"Authorization: Bearer key-of-nobody"))
        first, second = await running.lines.exchange(1), await running.lines.exchange(2)
    assert first["client"] == "alice"
    assert "client" not in second


async def test_what_stays_open_without_a_key() -> None:
    async with both(**LOCKED) as (upstream, running):
        client = await running.client()
        assert [
            (await client.get(path)).status
            for path in ("/health", "/metrics", "/v1/tcp_warming", "/v1/models", "/v1/anything")
        ] == [200, 200, 200, 401, 401]
        assert upstream.connections <= 1  # the warm one


async def test_keys_are_nowhere_in_what_is_written() -> None:
    secrets = [KEY.encode(), b"key-of-alice", b"key-of-nobody", b"wrong-key-1234"]
    async with both(**LOCKED) as (_, running):
        client = await running.client()
        responses = []
        for key in (b"key-of-alice", b"wrong-key-1234", b"key-of-nobody\x00"):
            responses.append(
                (await client.request(chat(b"{}", b"Authorization: Bearer " + key))).body
            )
            if b"\0" in key:
                client = await running.client()
        responses.append((await client.get("/metrics")).body)
        responses.append((await client.get("/v1/models?api_key=key-of-alice")).body)
        written = b"".join(running.lines.raw + responses)
    assert not [secret for secret in secrets if secret in written]


async def test_a_client_that_expects_100_continue() -> None:
    expecting = chat(b'{"model":"m"}', b"Expect: 100-continue")
    head, _, body = expecting.partition(b"\r\n\r\n")
    async with both(**LOCKED) as (_, running):
        refused = await running.client()
        await refused.send(head + b"\r\n\r\n")
        assert (await refused.until_closed()).startswith(b"HTTP/1.1 401 ")
        served = await running.client()
        await served.send(head + b"\r\nAuthorization: Bearer key-of-alice\r\n\r\n")
        assert b"100 Continue" in await served.until(b"\r\n\r\n")
        assert (await served.request(body)).status == 200


@pytest.mark.parametrize("length", [b"", b"\r\nContent-Length: 0"])
async def test_a_client_that_expects_100_continue_without_a_body(length: bytes) -> None:
    expecting = b" /nope HTTP/1.1\r\nHost: a\r\nExpect: 100-continue" + length + b"\r\n\r\n"
    async with both(**OPEN) as (_, running):
        client = await running.client()
        for method in (b"GET", b"POST", b"GET"):  # and stays: there is no body to be got rid of
            assert (await client.request(method + expecting)).status == 404


async def test_a_body_refused_while_it_is_being_sent_still_gets_its_response() -> None:
    async with both(**OPEN) as (_, running):
        client = await running.client()
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with anyio.move_on_after(1):
                    upload = HEAD + b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000
                    with suppress(anyio.BrokenResourceError):
                        await client.send(upload)

            tasks.start_soon(send)
            response = await client.response()
    assert response.status == 413


async def test_a_request_in_one_byte_packets_is_a_request() -> None:
    async with both() as (_, running):
        client = await running.client()
        for byte in chat(b'{"model":"m"}'):
            await client.send(bytes([byte]))
        assert (await client.response()).status == 200


async def test_connections_end_after_so_many_requests() -> None:
    async with both(MAX_REQUESTS_PER_CONNECTION="3") as (_, running):
        client = await running.client()
        responses = [await client.get("/health") for _ in range(3)]
        assert [each.headers.get("connection") for each in responses] == [
            None,
            None,
            "close",
        ]
        assert await client.until_closed() == b""


async def test_a_connection_waits_for_room() -> None:
    async with both(MAX_CONNECTIONS="2") as (_, running):
        first, second = await running.client(), await running.client()
        await first.get("/health")
        await second.get("/health")
        third = await running.client()
        await third.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        with anyio.move_on_after(0.1) as waited:
            await third.response()
        assert waited.cancelled_caught
        first.stream.close()
        assert (await third.response()).status == 200
