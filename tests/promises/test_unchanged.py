"""A response passes byte for byte: what the client gets is what the API sent for that very request,
and what the API got is what the client sent."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
import pytest
import recorded_streams
from anyio.abc import ByteStream
from end_to_end import running_proxy, running_upstream, serve_each
from running_simulator import chat, post
from sdks import MESSAGE_PACK, REQUEST, TOOL
from upstream_scripts import pieces_of, streams

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.server import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]


class Tapped(ByteStream):
    """A connection that keeps what is sent over it."""

    def __init__(self, stream: SocketStream, sent: list[bytes]) -> None:
        self._stream = stream
        self._sent = sent

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)
        self._sent.append(bytes(item))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self._stream.close()
        await anyio.lowlevel.checkpoint()


class TappedSimulator:
    """A simulator that listens; ``sent`` is every byte that it wrote."""

    def __init__(self) -> None:
        self.simulator = Simulator(Simulation(ttft=0.01, rate=2000.0, tokens_per_chunk=4))
        self.sent: list[bytes] = []
        self.port = 0

    async def converse(self, stream: SocketStream) -> None:
        await self.simulator.handle(Tapped(stream, self.sent))

    def body(self) -> bytes:
        """The bytes behind the head, chunks joined."""
        head, _, rest = b"".join(self.sent).partition(b"\r\n\r\n")
        if b"chunked" not in head.lower():
            return rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
        return body

    def headers(self) -> dict[str, str]:
        lines = b"".join(self.sent).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines)
        return {name.strip().lower(): value.strip() for name, _, value in pairs}


@asynccontextmanager
async def tapped_simulator() -> AsyncIterator[TappedSimulator]:
    tapped = TappedSimulator()
    async with anyio.create_task_group() as tasks:
        tapped.port = await tasks.start(serve_each, tapped.converse)
        yield tapped
        tasks.cancel_scope.cancel()


JSON = "Content-Type: application/json"
BINARY = ("Content-Type: application/vnd.msgpack", "Content-Encoding: gzip")
STREAM = {"stream": True}
ZIPPED = gzip.compress(orjson.dumps({**REQUEST, **STREAM}))

REQUESTS = {
    "plain": chat(model="llama3.1-8b"),
    "plain with reasoning": chat(model="gpt-oss-120b"),
    "text stream": chat(STREAM, model="llama3.1-8b"),
    "reasoning stream": chat(STREAM, model="gpt-oss-120b"),
    "stream with usage": chat({**STREAM, "stream_options": {"include_usage": True}}),
    "stream of choices": chat({**STREAM, "n": 3}),
    "tool call": chat({"tools": [TOOL]}, model="gpt-oss-120b"),
    "tool-call stream": chat({**STREAM, "tools": [TOOL]}, model="gpt-oss-120b"),
    "stream that fails": chat(STREAM, "X-Simulate: fault=error_event, at=3"),
    "refusal": chat(model="nobody"),
    "rate limit": chat(STREAM, "X-Simulate: fault=429"),
    "server error": chat(STREAM, "X-Simulate: fault=500"),
    "gzip": post(ZIPPED, JSON, "Content-Encoding: gzip"),
    "MessagePack": post(MESSAGE_PACK, BINARY[0]),
    "MessagePack and gzip": post(gzip.compress(MESSAGE_PACK), *BINARY),
}
KEPT = ("content-type", "inference-id", "cf-ray", "retry-after", "x-ratelimit-limit-requests-day")


@pytest.mark.parametrize("kind", REQUESTS)
async def test_every_byte_of_a_response(kind: str) -> None:
    async with tapped_simulator() as api, running_proxy(api.port) as running:
        client = await running.client()
        response = await client.request(REQUESTS[kind])
        [truth] = api.simulator.truth
    sent = REQUESTS[kind].partition(b"\r\n\r\n")[2]
    assert response.complete
    assert response.body == api.body() != b""
    assert truth.body == sent
    theirs: dict[str, Any] = api.headers()
    assert {name: response.headers.get(name) for name in KEPT} == {
        name: theirs.get(name) for name in KEPT
    }


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
@pytest.mark.parametrize("recording", [recorded_streams.TEXT, recorded_streams.TOOL_CALL])
async def test_every_byte_of_a_recorded_stream(recording: bytes, size: int) -> None:
    """However the real API's stream is cut into chunks."""
    async with (
        running_upstream(streams(*pieces_of(recording, size))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(REQUESTS["reasoning stream"])
    assert response.complete
    assert response.body == recording
