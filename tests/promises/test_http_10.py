"""HTTP/1.0 clients that ask for a connection to go on: it does where a response has a length."""

import re
import socket
from pathlib import Path

import anyio
import pytest
from end_to_end import TOKEN, chat, events, running_proxy, running_upstream
from programs import tool
from server_process import TIMEOUT, serving
from upstream_scripts import responds, streams

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

KEEP_ALIVE = b"Connection: keep-alive"
BODY, STREAMED = b'{"messages":[]}', b'{"messages":[],"stream":true}'
STREAM = events(TOKEN, b"[DONE]")


def old(request: bytes) -> bytes:
    return request.replace(b"HTTP/1.1", b"HTTP/1.0", 1)


def get(*extra: bytes, method: bytes = b"GET", path: bytes = b"/health") -> bytes:
    lines = b"".join(line + b"\r\n" for line in extra)
    return b"%b %b HTTP/1.0\r\n%b\r\n" % (method, path, lines)


@pytest.mark.parametrize(
    "options", [KEEP_ALIVE, b"Connection: Keep-Alive", b"Connection: te\r\nConnection: keep-alive"]
)
async def test_a_connection_goes_on_behind_responses_with_a_length(options: bytes) -> None:
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        for request, status in (
            (old(chat(BODY, options)), 200),
            (get(options), 200),
            (old(chat(BODY, options)), 200),
            (get(options, path=b"/nowhere"), 404),
        ):
            response = await client.request(request)
            assert (response.status, response.headers["connection"]) == (status, "keep-alive")
            assert response.body.startswith(b"{")
            assert response.complete
        await client.send(get(options, method=b"HEAD"))
        assert (await client.response("HEAD")).headers["connection"] == "keep-alive"
        last = await client.request(get())  # which does not ask for it
        assert last.headers["connection"] == "close"
        assert await client.until_closed() == b""
        await running.lines.exchange(6)
    assert upstream.connections == 1


async def test_requests_may_be_pipelined_and_mixed_with_http_11() -> None:
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send((old(chat(BODY, KEEP_ALIVE)) + chat() + get(KEEP_ALIVE)) * 2)
        responses = [await client.response() for _ in range(6)]
    assert [response.headers.get("connection") for response in responses] == [
        *("keep-alive", None, "keep-alive"),
        *("keep-alive", None, "keep-alive"),
    ]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    "request_bytes",
    [
        get(),
        get(b"Connection: close"),
        get(b"Connection: keep-alive, close"),
        get(b"Connection: keep-alive", b"Connection: close"),
        get(b"Keep-Alive: timeout=5"),
        get(b"Proxy-Connection: keep-alive"),
    ],
)
async def test_without_the_option_the_response_ends_the_connection(request_bytes: bytes) -> None:
    async with running_proxy(1) as running:
        client = await running.client()
        await client.send(request_bytes)
        response = await client.until_closed()
    assert b"\r\nConnection: close\r\n" in response
    assert b"keep-alive" not in response


async def test_a_stream_has_no_length_and_ends_the_connection() -> None:
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.send(old(chat(STREAMED, KEEP_ALIVE)) + get(KEEP_ALIVE))
        head, _, body = (await client.until_closed()).partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"chunked" not in head.lower()
    assert body == STREAM


def test_a_stream_of_a_killed_process_is_reset(backend: str) -> None:
    """Nothing but the connection's end shows that it was cut, and the kernel closes it."""
    body = b'{"messages":[{"role":"user","content":"a"}],"stream":true}'
    stalls = b"X-Simulate: fault=stall, at=2"
    with (
        serving("serve", "--demo", BACKEND=backend) as served,
        socket.create_connection(("127.0.0.1", served.port), TIMEOUT) as client,
    ):
        client.sendall(old(chat(body, stalls)))
        received = b""
        while b"data: " not in received:
            data = client.recv(65536)
            assert data, received
            received += data
        served.process.kill()
        with pytest.raises(ConnectionResetError):
            client.makefile("rb").read()


async def test_a_drain_and_the_limit_of_requests_end_it() -> None:
    async with running_proxy(1, MAX_REQUESTS_PER_CONNECTION="2") as running:
        client = await running.client()
        responses = [await client.request(get(KEEP_ALIVE)) for _ in range(2)]
        assert await client.until_closed() == b""
        connection = [response.headers["connection"] for response in responses]
        assert connection == ["keep-alive", "close"]
        client = await running.client()
        await client.request(get(KEEP_ALIVE))
        running.proxy.begin_drain()
        assert await client.until_closed() == b""


async def test_ab_keeps_its_connections_alive(tmp_path: Path) -> None:
    program, body = tool("ab", "apache2-utils"), tmp_path / "body"
    body.write_bytes(BODY)
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        [(host, port)] = running.proxy.addresses
        sends = ("-k", "-n", "60", "-c", "4", "-p", str(body), "-T", "application/json")
        url = f"http://{host}:{port}/v1/chat/completions"
        done = await anyio.run_process((program, *sends, url))
        await running.lines.exchange(60)
    printed = done.stdout.decode()
    counts = {
        name: int(found[1])
        for name in ("Complete requests", "Failed requests", "Keep-Alive requests")
        if (found := re.search(rf"{name}: +(\d+)", printed))
    }
    assert counts == {
        "Complete requests": 60,
        "Failed requests": 0,
        "Keep-Alive requests": 60,
    }, printed
