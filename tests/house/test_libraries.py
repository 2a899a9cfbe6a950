"""The libraries do their work for real: their functions take part in a chat request, with the bytes
that were really sent."""

from typing import Any
from unittest.mock import patch

import httpcore
import pytest
from end_to_end import FINISH, TOKEN, Conversation, chat, events, running_proxy, running_upstream

from ape_cerebras.upstream.connection import UpstreamStream

pytestmark = pytest.mark.anyio

STREAM = events(TOKEN, TOKEN, FINISH, b"[DONE]")
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-ID: 1\r\nCF-Ray: from-%b\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


class Traced:
    """Requests and responses of ``handle_async_request``, and what was read from its stream: within
    it, which is what h11 parsed, and after it."""

    def __init__(self) -> None:
        self.exchanges: list[tuple[httpcore.Request, httpcore.Response]] = []
        self.parsed: list[bytes] = []
        self.piped: list[bytes] = []
        self._within = False

    def patches(self) -> tuple[Any, Any]:
        handle = httpcore.AsyncHTTP11Connection.handle_async_request
        read = UpstreamStream.read

        async def traced_handle(
            connection: httpcore.AsyncHTTP11Connection, request: httpcore.Request
        ) -> httpcore.Response:
            self._within = True
            response = await handle(connection, request)
            self._within = False
            self.exchanges.append((request, response))
            return response

        async def traced_read(
            stream: UpstreamStream, max_bytes: int, timeout: float | None = None
        ) -> bytes:
            data = await read(stream, max_bytes, timeout)
            (self.parsed if self._within else self.piped).append(data)
            return data

        return (
            patch.object(httpcore.AsyncHTTP11Connection, "handle_async_request", traced_handle),
            patch.object(UpstreamStream, "read", traced_read),
        )


async def test_httpcore_sends_each_request_parses_each_head_and_pipes_each_body() -> None:
    async def script(peer: Conversation) -> None:
        for number in (b"1", b"2"):
            await peer.request()
            await peer.send(HEAD % number + b"%x\r\n%b\r\n" % (len(STREAM), STREAM))
            await peer.end()
        await peer.until_disconnected()

    traced = Traced()
    handle, read = traced.patches()
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        with handle, read:
            responses = [await client.request(chat()) for _ in range(2)]
    assert len(traced.exchanges) == 2
    for number, (request, response) in enumerate(traced.exchanges):
        head = upstream.requests[number].partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert head[1:] == [b"%b: %b" % field for field in request.headers]
        assert (b"CF-Ray", b"from-%d" % (number + 1)) in response.headers
        assert responses[number].headers["cf-ray"] == f"from-{number + 1}"
        assert responses[number].body == STREAM
    assert traced.parsed == [HEAD % b"1", HEAD % b"2"]
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM), STREAM)
    assert b"".join(traced.piped) == framed * 2
