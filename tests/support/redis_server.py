"""Debian's redis-server, started for a test on a port of its own, killed and started again; a relay
to it that can spoil its replies; and limit stores that use either."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream as Connection
from end_to_end import free_port, serve_each
from orjson import loads

from ape_cerebras.limits.redis_store import RedisLimitStore
from ape_cerebras.limits.token_buckets import Charge, Decision, Hold
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.telemetry.logs import Logs

__all__ = ("PASSWORD", "RedisRelay", "RedisServer", "Store", "redis_relay", "redis_server", "store")

PASSWORD = "password-of-the-store"


def _url_of(port: int) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{port}/0"


class RedisServer:
    """It writes every change to disk before it responds, so that a kill loses nothing."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return _url_of(self.port)

    def start(self) -> None:
        """Return when it takes connections."""
        options = ("--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD)
        kept = ("--dir", str(self._directory), "--appendonly", "yes", "--appendfsync", "always")
        self._process = subprocess.Popen(
            ("redis-server", *options, *kept), stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        pytest.fail("redis-server does not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """One that runs; the test is skipped where there is none to be run, but not by CI."""
    if shutil.which("redis-server") is None:
        missing = "redis-server is missing: apt-get install redis-server"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    server = RedisServer(directory)
    try:
        yield server
    finally:
        server.kill()


Spoil = Callable[[SocketStream, bytes], Awaitable[object]]


class RedisRelay:
    """Passes everything on between clients and a Redis. ``spoil`` gets what Redis replies to a
    script, in place of the client."""

    def __init__(self, server: RedisServer) -> None:
        self.spoil: Spoil | None = None
        self.connections = self.open = self.calls = 0
        self.port = 0
        self._server = server

    @property
    def url(self) -> str:
        return _url_of(self.port)

    async def _converse(self, client: SocketStream) -> None:
        self.connections += 1
        self.open += 1
        failures = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
        try:
            with suppress(*failures, OSError):
                async with (
                    await anyio.connect_tcp("127.0.0.1", self._server.port) as redis,
                    anyio.create_task_group() as tasks,
                ):
                    tasks.start_soon(self._pass_down, redis, client)
                    with suppress(*failures):
                        while True:
                            data = await client.receive()
                            self.calls += data.count(b"EVALSHA")
                            await redis.send(data)
                    tasks.cancel_scope.cancel()
        finally:
            self.open -= 1
            client.close()

    async def _pass_down(self, redis: Connection, client: SocketStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                data = await redis.receive()
                if self.spoil is None or not self.calls:
                    await client.send(data)
                else:
                    await self.spoil(client, data)
        client.close()


@asynccontextmanager
async def redis_relay(server: RedisServer) -> AsyncIterator[RedisRelay]:
    relay = RedisRelay(server)
    async with anyio.create_task_group() as tasks:
        relay.port = await tasks.start(
            lambda *, task_status: serve_each(relay._converse, task_status=task_status)
        )
        yield relay
        tasks.cancel_scope.cancel()


class Store:
    """A shared store with its clock, and its log: of the outages, whether Redis responds."""

    def __init__(self, url: str, timeout: float = 5.0, *, closed: bool = True) -> None:
        self.lines: list[dict[str, Any]] = []
        self.now = 0.0
        self.limits = RedisLimitStore(
            url,
            timeout,
            closed=closed,
            logs=Logs("info", lambda line: self.lines.append(loads(line))),
            clock=lambda: self.now,
        )

    @property
    def logged(self) -> list[bool]:
        messages = [line["message"] for line in self.lines]
        return [message.endswith("again") for message in messages if "respond" in message]

    @property
    def damaged(self) -> list[str]:
        return [line["entry"] for line in self.lines if "damaged" in line["message"]]

    async def charge(self, charges: list[Charge], now: float, hold: Hold | None = None) -> Decision:
        self.now = now
        return await self.limits.charge(charges, now, hold)


@asynccontextmanager
async def store(url: str, timeout: float = 5.0, *, closed: bool = True) -> AsyncIterator[Store]:
    made = Store(url, timeout, closed=closed)
    try:
        yield made
    finally:
        made.limits.close()
