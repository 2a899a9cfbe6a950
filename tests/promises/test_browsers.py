"""Cross-Origin Resource Sharing: what a browser gets with responses, errors and preflights."""

from collections.abc import Mapping

import pytest
from end_to_end import (
    TOKEN,
    Conversation,
    Response,
    Running,
    chat,
    events,
    running_proxy,
    running_upstream,
)

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

PAGE, OTHER = "https://app.example.com", "https://evil.example.com"
ALLOW = "access-control-allow-origin"
ONE = {"CORS_ORIGINS": f"{PAGE},http://localhost:3000"}


async def streams(peer: Conversation) -> None:
    await peer.request()
    body = events(TOKEN, b"[DONE]")
    fields = (
        b"Content-Type: text/event-stream\r\nAccess-Control-Allow-Origin: *\r\n"
        b"Access-Control-Expose-Headers: x\r\nContent-Length: %d\r\n" % len(body)
    )
    await peer.send(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (fields, body))


async def responded(running: Running, request: bytes, method: str = "POST") -> Response:
    return await (await running.client()).request(request, method)


def from_page(request: bytes, origin: str = PAGE, *lines: str) -> bytes:
    head, _, rest = request.partition(b"\r\n")
    more = "\r\n".join((f"Origin: {origin}", *lines)).encode()
    return b"%b\r\n%b\r\n%b" % (head, more, rest)


def asks(path: str = "/v1/chat/completions", origin: str = PAGE, names: str = "") -> bytes:
    lines = ["Access-Control-Request-Method: POST"]
    lines += [f"Access-Control-Request-Headers: {names}"] if names else []
    request = f"OPTIONS {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    return from_page(request, origin, *lines)


def cors_of(headers: Mapping[str, str]) -> set[str]:
    return {name for name in headers if name.startswith("access-control-")}


async def test_a_page_may_read_responses_streams_and_errors() -> None:
    async with (
        running_upstream(streams) as upstream,
        running_proxy(upstream.port, **ONE, APE_API_KEY="agent:ape-key-1") as running,
    ):
        key = "Authorization: Bearer ape-key-1"
        found = [
            await responded(running, from_page(chat(), PAGE, key)),
            await responded(running, from_page(chat())),  # without a key
            await responded(running, from_page(chat(b"{"), PAGE, key)),
            await responded(running, from_page(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"), "GET"),
        ]
        stranger = await responded(running, from_page(chat(), OTHER, key))
        nobody = await responded(running, chat())
    assert [each.status for each in found] == [200, 401, 400, 404]
    for each in found:
        assert each.headers[ALLOW] == PAGE
        assert each.headers["vary"] == "origin"
        exposed = each.headers["access-control-expose-headers"].split(", ")
        wanted = {
            "x-request-id",
            "x-trace-id",
            "retry-after",
            "x-ratelimit-remaining-tokens-minute",
        }
        assert wanted <= set(exposed)
    assert found[0].complete
    for each in (stranger, nobody):
        assert not cors_of(each.headers)
        assert each.headers["vary"] == "origin"


async def test_a_preflight_is_answered_without_a_key() -> None:
    async with running_proxy(1, **ONE, APE_API_KEY="agent:ape-key-1") as running:
        names = "authorization, content-type,x-stainless-lang"
        response = await responded(running, asks(names=names), "OPTIONS")
        elsewhere = await responded(running, asks("/v1/nowhere"), "OPTIONS")
        line = await running.lines.exchange()
    assert (response.status, response.body) == (204, b"")
    assert response.headers[ALLOW] == PAGE
    assert response.headers["access-control-allow-methods"] == "POST"
    assert response.headers["access-control-allow-headers"] == names
    assert response.headers["access-control-max-age"] == "3600"
    assert (line["route"], line["outcome"]) == ("/v1/chat/completions", "completed")
    assert (elsewhere.status, elsewhere.headers[ALLOW]) == (204, PAGE)


@pytest.mark.parametrize(
    "request_bytes",
    [
        asks(origin=OTHER),
        asks(origin="null"),
        asks(origin=PAGE + ":8443"),
        asks(origin=PAGE.upper()),
        b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n",
        from_page(b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n"),  # no preflight
    ],
)
async def test_any_other_is_refused(request_bytes: bytes) -> None:
    async with running_proxy(1, **ONE) as running:
        response = await responded(running, request_bytes, "OPTIONS")
    assert response.status == 405
    assert "access-control-allow-methods" not in response.headers


@pytest.mark.parametrize("names", ["a b", "a,,b", "a:b", "(x)"])
async def test_names_of_headers_that_are_none_are_not_repeated(names: str) -> None:
    async with running_proxy(1, **ONE) as running:
        response = await responded(running, asks(names=names), "OPTIONS")
    assert response.status == 204
    assert "access-control-allow-headers" not in response.headers


async def test_every_origin() -> None:
    async with (
        running_upstream(streams) as upstream,
        running_proxy(upstream.port, CORS_ORIGINS="*") as running,
    ):
        for request in (chat(), from_page(chat(), OTHER)):
            response = await responded(running, request)
            assert (response.status, response.headers[ALLOW]) == (200, "*")
            assert "vary" not in response.headers


async def test_by_default_no_page_may_read_anything() -> None:
    async with running_upstream(streams) as upstream, running_proxy(upstream.port) as running:
        response = await responded(running, from_page(chat()))
        refused = await responded(running, asks(), "OPTIONS")
    assert response.status == 200
    assert refused.status == 405
    assert not cors_of(response.headers) | cors_of(refused.headers)
    assert "vary" not in response.headers


async def test_a_drain_is_told_to_pages_too() -> None:
    async with running_proxy(1, **ONE) as running:
        client = await running.client()
        await client.get("/health")
        running.proxy.close()
        response = await client.request(from_page(chat()), "POST")
    assert (response.status, response.headers[ALLOW]) == (503, PAGE)
