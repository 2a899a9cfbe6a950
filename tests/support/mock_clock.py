"""A proxy on trio's clock that only moves when all tasks wait, so that 20 s are exactly 20.0."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import anyio
import trio
from anyio import to_thread
from end_to_end import KEY, Lines, chat, events
from memory_stream import MemoryStream, memory_pair
from trio.testing import MockClock

from ape_cerebras import Config, Proxy

ROLE = b'{"choices":[{"delta":{"role":"assistant"},"index":0}],"model":"gpt-oss-120b"}'
THOUGHT = b'{"choices":[{"delta":{"reasoning":"hm"},"index":0}],"model":"gpt-oss-120b"}'
TOKEN = b'{"choices":[{"delta":{"content":"a"},"index":0}],"model":"gpt-oss-120b"}'
FINISH = (
    b'{"choices":[{"delta":{},"finish_reason":"stop","index":0}],"model":"gpt-oss-120b",'
    b'"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15},'
    b'"time_info":{"queue_time":1.5,"prompt_time":2.5,"completion_time":8.0}}'
)

STREAMED = chat(b'{"model":"gpt-oss-120b","stream":true,"messages":[]}')

CAPACITY = 64 * 1024  # bytes on their way to the client, as a socket's buffer has them

Script = Callable[[MemoryStream], Awaitable[None]]


class Rig:
    """A proxy between a client and an upstream in memory."""

    def __init__(self, another_client: Callable[[], MemoryStream], lines: Lines) -> None:
        self.another_client = another_client
        self.client = another_client()
        self.lines = lines

    async def line(self) -> dict[str, Any]:
        """The log line of the exchange, however late on this clock."""
        return await self.lines.exchange(timeout=1e6)


@asynccontextmanager
async def rig(script: Script, connecting: float = 0, /, **settings: str) -> AsyncIterator[Rig]:
    """``connecting``: seconds that it takes to reach the upstream."""
    lines = Lines()
    config = Config.from_environment(
        {
            "CEREBRAS_API_KEY": KEY,
            "CEREBRAS_BASE_URL": "http://upstream",
            "UPSTREAM_IDLE_TIMEOUT": "1000",
            "UPSTREAM_FIRST_BYTE_TIMEOUT": "1000",
            "CLIENT_BODY_TIMEOUT": "1000",
            **settings,
        }
    )
    async with anyio.create_task_group() as tasks:

        async def connect(host: str, port: int) -> MemoryStream:
            await anyio.sleep(connecting)
            ours, theirs = memory_pair()
            tasks.start_soon(converse, theirs)
            return ours

        async def converse(stream: MemoryStream) -> None:
            request = b""
            while not request.endswith(b"]}"):
                request += await stream.receive()
            await script(stream)

        proxy = Proxy(config, lines.write, connect=connect)

        def another_client() -> MemoryStream:
            client, server_end = memory_pair(capacity=CAPACITY)
            tasks.start_soon(proxy.handle, server_end)
            return client

        yield Rig(another_client, lines)
        tasks.cancel_scope.cancel()


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on a clock that jumps to the next deadline when all tasks wait. As it would jump
    while a thread works, work for threads is done at once."""
    with patch.object(to_thread, "run_sync", _run_at_once):
        trio.run(test, clock=MockClock(autojump_threshold=0))


async def _run_at_once(work: Callable[..., Any], *arguments: object, **_: object) -> Any:
    await trio.lowlevel.checkpoint()
    return work(*arguments)


async def head(stream: MemoryStream) -> None:
    await stream.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


async def chunk(stream: MemoryStream, data: bytes) -> None:
    await stream.send(b"%x\r\n%s\r\n" % (len(data), data))


async def slow_stream(stream: MemoryStream) -> None:
    """Head at 2 s, role at 5, reasoning at 20, output at 23, last token at 28, end at 30."""
    await anyio.sleep(2)
    await head(stream)
    await anyio.sleep(3)
    await chunk(stream, events(ROLE))
    await anyio.sleep(15)
    await chunk(stream, events(THOUGHT))
    await anyio.sleep(3)
    await chunk(stream, events(TOKEN))
    await anyio.sleep(5)
    await chunk(stream, events(TOKEN))
    await anyio.sleep(2)
    await chunk(stream, events(FINISH, b"[DONE]"))
    await stream.send(b"0\r\n\r\n")


async def closing_stream(stream: MemoryStream) -> None:
    await slow_stream(stream)
    stream.close()


SLOW_STREAM_TIMES = {
    "ttft_seconds": 20.0,
    "upstream_ttft_seconds": 20.0,
    "proxy_ttft_seconds": 0.0,
    "ttfb_seconds": 2.0,
    "ttfo_seconds": 23.0,
    "total_time_seconds": 30.0,
    "generation_seconds": 8.0,
    "max_chunk_gap_seconds": 5.0,
    "tpot_seconds": 2.0,
    "queue_seconds": 1.5,
    "prompt_seconds": 2.5,
    "completion_seconds": 8.0,
    "network_seconds": 16.0,
    "connect_seconds": 0.0,
    "proxy_own_seconds": 0.0,
    "overhead_seconds": 0.0,
}


def times_of(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.endswith("_seconds")}
