"""Limits of the proxy's own, as clients meet them: over real sockets."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from end_to_end import (
    Client,
    Conversation,
    Running,
    chat,
    error_shape,
    running_proxy,
    running_upstream,
)
from upstream_scripts import responds

pytestmark = pytest.mark.anyio

KEYS = {"APE_API_KEY": "alice:key-of-alice,bob:key-of-bob"}
ONE = {"MAX_CONCURRENT_REQUESTS": "1", "MAX_QUEUE_SECONDS": "30", **KEYS}


def request_of(name: str, number: int = 0) -> bytes:
    body = b'{"model":"gpt-oss-120b","messages":[],"seed":%d}' % number
    return chat(body, b"Authorization: Bearer key-of-%s" % name.encode())


class Gate:
    """An upstream that responds on demand."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self._open = anyio.Semaphore(0)
        self._requested = anyio.Event()

    async def script(self, peer: Conversation) -> None:
        while True:
            request = await peer.request()
            [seed] = re.findall(rb'"seed":(\d+)', request)
            self.requested.append(int(seed))
            self._requested.set()
            await self._open.acquire()
            await peer.respond(b"{}")

    def release(self) -> None:
        self._open.release()

    async def until_requested(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.requested) < count:
                self._requested = anyio.Event()
                await self._requested.wait()


async def until_waiting(running: Running, count: int) -> None:
    await running.until_metric("cerebras_proxy_queue_length", lambda n: n == count)


async def chat_lines(running: Running, count: int) -> list[dict[str, Any]]:
    """Those of so many chat exchanges, once they are there."""
    with anyio.fail_after(5):
        while True:
            lines = [line for line in running.lines.exchanges() if line["route"].endswith("tions")]
            if len(lines) == count:
                return lines
            await anyio.lowlevel.checkpoint()


async def queued(running: Running, *who: tuple[str, int]) -> list[Client]:
    """Clients that send a request each, once the request before waits in the queue."""
    clients = []
    for count, (name, number) in enumerate(who, 1):
        client = await running.client()
        await client.send(request_of(name, number))
        await until_waiting(running, count)
        clients.append(client)
    return clients


@asynccontextmanager
async def held(gate: Gate, **settings: str) -> AsyncIterator[tuple[Running, Client]]:
    """A proxy whose one slot a client of alice's has."""
    async with (
        running_upstream(gate.script) as upstream,
        running_proxy(upstream.port, **{**ONE, **settings}) as it,
    ):
        holder = await it.client()
        await holder.send(request_of("alice", 0))
        await gate.until_requested(1)
        yield it, holder


async def test_names_take_turns_and_each_wait_is_logged() -> None:
    gate = Gate()
    async with held(gate) as (it, holder):
        clients = await queued(it, ("alice", 1), ("alice", 2), ("alice", 3), ("bob", 4))
        for count in range(2, 7):
            gate.release()
            if count < 6:
                await gate.until_requested(count)
        assert gate.requested == [0, 1, 4, 2, 3]
        for client in (holder, *clients):
            assert (await client.response()).status == 200
        chats = await chat_lines(it, 5)
        assert [line.get("wait_seconds", 0.0) > 0 for line in chats] == [False, *[True] * 4]
        assert all(line["overhead_seconds"] < line["total_time_seconds"] for line in chats[1:])
        assert await it.metric("cerebras_proxy_wait_seconds_count") == 4


async def test_a_client_that_disconnects_is_out_of_the_queue_at_once() -> None:
    gate = Gate()
    async with held(gate) as (it, _):
        first, second = await queued(it, ("alice", 1), ("alice", 2))
        first.stream.reset()
        await until_waiting(it, 1)
        gate.release()
        await gate.until_requested(2)
        gate.release()
        assert (await second.response()).status == 200
        assert gate.requested == [0, 2]
        outcomes = [line["outcome"] for line in await chat_lines(it, 3)]
        assert outcomes == ["client_disconnected", "completed", "completed"]


async def test_a_client_that_disconnects_midway_gives_its_slot_to_the_next() -> None:
    gate = Gate()
    async with held(gate) as (it, holder):
        [next_one] = await queued(it, ("bob", 1))
        holder.stream.reset()
        await gate.until_requested(2)
        gate.release()
        gate.release()
        assert (await next_one.response()).status == 200


async def test_past_the_limits_it_is_overloaded_with_a_retry_after() -> None:
    gate = Gate()
    settings = {"MAX_QUEUE_LENGTH": "1"}
    async with held(gate, **settings) as (it, _):
        await queued(it, ("alice", 1))
        refused = await it.client()
        for _ in range(2):  # on one connection
            response = await refused.request(request_of("bob", 2))
            assert response.status == 503
            assert error_shape(response.json()) == ("overloaded_error", "overloaded")
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert [line["outcome"] for line in await chat_lines(it, 2)] == ["overloaded"] * 2
        assert gate.requested == [0]


async def test_local_responses_never_wait() -> None:
    gate = Gate()
    settings = {**ONE, "MAX_QUEUE_SECONDS": "0", "RATE_LIMIT_PER_MINUTE": "2"}
    key = "Authorization: Bearer key-of-bob"
    async with held(gate, **settings) as (it, _):
        client = await it.client()
        assert (await client.request(request_of("bob"))).status == 503
        assert (await client.request(request_of("bob"))).status == 429
        for path in ("/health", "/metrics", "/v1/tcp_warming"):
            for _ in range(5):
                assert (await client.get(path)).status == 200
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, **settings) as it,
    ):
        client = await it.client()
        for _ in range(5):
            assert (await client.get("/v1/models", key)).status == 200


async def test_requests_per_minute() -> None:
    settings = {"RATE_LIMIT_PER_MINUTE": "2", **KEYS}
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, **settings) as it,
    ):
        client = await it.client()
        assert (await client.request(request_of("alice"))).status == 200
        assert (await client.request(chat(b"not JSON"))).status == 401
        assert (await client.request(request_of("bob"))).status == 200
        for _ in range(2):
            response = await client.request(request_of("bob"))
            assert response.status == 429
            assert error_shape(response.json()) == (
                "too_many_requests_error",
                "rate_limit_exceeded",
            )
            assert 1 <= int(response.headers["retry-after"]) <= 30
            limits = {n: v for n, v in response.headers.items() if n.startswith("x-ratelimit-")}
            assert limits.pop("x-ratelimit-limit-requests-minute") == "2"
            assert limits.pop("x-ratelimit-remaining-requests-minute") == "0"
            assert 0 < float(limits.pop("x-ratelimit-reset-requests-minute")) <= 30
            assert not limits
        line = (await chat_lines(it, 5))[-1]
        assert (line["outcome"], line["error"]) == ("rate_limited", "rate_limit_exceeded")
        assert line["level"] == "warning"
        assert len(upstream.requests) == 2


async def test_the_end_of_a_drain_ends_the_wait_too() -> None:
    gate = Gate()
    settings = {"GRACEFUL_SHUTDOWN_TIMEOUT": "0.1"}
    async with held(gate, **settings) as (it, _):
        [waiting] = await queued(it, ("bob", 1))
        it.proxy.begin_drain()
        assert (await waiting.response()).status == 503
        with anyio.fail_after(5):
            await it.ended.wait()
        assert [line["outcome"] for line in await chat_lines(it, 2)] == ["shut_down"] * 2
