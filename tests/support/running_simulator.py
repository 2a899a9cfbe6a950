"""A running simulator, and requests to it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
import trio
from end_to_end import Client, Response
from trio.testing import MockClock

from ape_cerebras.chat.sse import EventReader
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.quota import AccountLimits
from ape_cerebras.simulator.server import Simulator
from ape_cerebras.upstream.connect import connect_tcp

__all__ = (
    "DONE",
    "KEY",
    "STREAM",
    "Rig",
    "bare",
    "chat",
    "on_mock_clock",
    "payloads",
    "post",
    "rig",
)

KEY = "Authorization: Bearer any"
DONE = b"data: [DONE]\n\n"
STREAM = {"stream": True}


def chat(fields: dict[str, Any] | None = None, *lines: str, model: str = "gemma-4-31b") -> bytes:
    """A chat request; ``lines`` are more of its header's."""
    request = {"model": model, "messages": [{"role": "user", "content": "hi"}], **(fields or {})}
    return post(orjson.dumps(request), "Content-Type: application/json", *lines)


def post(body: bytes, *lines: str, key: str = "Authorization: Bearer any") -> bytes:
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: a", key, f"Content-Length: {len(body)}"]
    return "\r\n".join([*filter(None, head), *lines, "", ""]).encode() + body


def bare(request_line: str) -> bytes:
    return f"{request_line} HTTP/1.1\r\nHost: a\r\n{KEY}\r\n\r\n".encode()


def payloads(body: bytes) -> list[bytes]:
    return EventReader().feed(body)


class Rig:
    """A simulator that listens."""

    def __init__(self, simulator: Simulator, port: int) -> None:
        self.simulator = simulator
        self.port = port
        self.clients: list[Client] = []

    async def client(self) -> Client:
        stream = await connect_tcp("127.0.0.1", self.port)
        assert isinstance(stream, SocketStream)
        self.clients.append(Client(stream))
        return self.clients[-1]

    async def request(self, request: bytes) -> Response:
        """The response to a request on a connection of its own."""
        return await (await self.client()).request(request)

    async def get(self, path: str, *lines: str) -> Response:
        return await (await self.client()).get(path, *lines)


@asynccontextmanager
async def rig(limits: AccountLimits | None = None, **options: Any) -> AsyncIterator[Rig]:
    simulator = Simulator(Simulation(**{"ttft": 0.0, "rate": 0.0, **options}), limits=limits)
    async with anyio.create_task_group() as tasks:
        running = Rig(simulator, await tasks.start(simulator.serve, "127.0.0.1", 0))
        yield running
        for client in running.clients:
            client.stream.close()
        tasks.cancel_scope.cancel()


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0))

    run.__name__ = test.__name__
    return run
