"""Warm connections as requests find them: over TLS, through the running proxy."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
import trustme
from end_to_end import (
    KEY,
    Conversation,
    Running,
    ScriptedUpstream,
    chat,
    running_proxy,
    running_upstream,
)
from memory_stream import MemoryStream, memory_pair
from server_process import refusing_port
from tls_upstream import over_tls
from trio.testing import MockClock
from waiting import wait_all_tasks_blocked

from ape_cerebras import Config, Proxy
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.upstream.connect import Connect

pytestmark = pytest.mark.every_loop

REACHABLE = "cerebras_proxy_upstream_reachable"
USES = "cerebras_proxy_upstream_connection_uses_total"


class Site:
    """An upstream behind TLS that responds, and reports when a connection has been made."""

    def __init__(self) -> None:
        self.ready = 0
        self._open: set[anyio.CancelScope] = set()
        self._more = anyio.Event()

    async def response(self, peer: Conversation) -> None:
        self.ready += 1
        self._more.set()
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            while True:
                await peer.request()
                await peer.respond(b"{}")

    async def until_ready(self, count: int) -> None:
        """Wait until so many connections have been made, TLS and all."""
        with anyio.fail_after(4):
            while self.ready < count:
                self._more = anyio.Event()
                await self._more.wait()
        await wait_all_tasks_blocked()

    def close_all(self) -> None:
        while self._open:
            self._open.pop().cancel()


@asynccontextmanager
async def a_site(
    authority: trustme.CA, bundle: str, **settings: str
) -> AsyncIterator[tuple[Site, ScriptedUpstream, Running]]:
    site = Site()
    leaf = authority.issue_cert("localhost")
    async with (
        running_upstream(over_tls(site.response, leaf)) as upstream,
        running_proxy(
            0,
            CEREBRAS_BASE_URL=f"https://localhost:{upstream.port}",
            SSL_CERT_FILE=bundle,
            **settings,
        ) as running,
    ):
        yield site, upstream, running


@pytest.mark.anyio
async def test_the_start_makes_them_and_a_burst_of_first_requests_finds_them(
    authority: trustme.CA, bundle: str
) -> None:
    async with a_site(authority, bundle, WARM_CONNECTIONS="10") as (site, upstream, running):
        await site.until_ready(10)
        assert upstream.requests == []
        clients = [await running.client() for _ in range(10)]
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.request, chat())
        lines = [await running.lines.exchange(number) for number in range(1, 11)]
    assert [line["connection"] for line in lines] == ["warm"] * 10
    assert not [line for line in lines if "connect_seconds" in line or "tls_seconds" in line]
    assert upstream.connections == 10


@pytest.mark.anyio
async def test_those_that_upstream_closes_are_replaced_before_the_next_request(
    authority: trustme.CA, bundle: str
) -> None:
    async with a_site(authority, bundle, WARM_CONNECTIONS="1") as (site, _, running):
        await site.until_ready(1)
        client = await running.client()
        await client.request(chat())
        site.close_all()
        await site.until_ready(2)
        await client.request(chat())
        lines = [await running.lines.exchange(number) for number in (1, 2)]
    assert [line["connection"] for line in lines] == ["warm", "warm"]


@pytest.mark.anyio
async def test_what_cannot_be_kept_warm_is_logged_once_and_fails_no_request() -> None:
    with refusing_port() as port:
        async with running_proxy(port, WARM_CONNECTIONS="2") as running:
            client = await running.client()
            for _ in range(20):
                assert (await client.get("/v1/tcp_warming")).body == b"{}"
            assert await running.metric(USES) == 0
            assert await running.metric("cerebras_proxy_errors_total") == 0
            events = [line for line in running.lines.all() if "route" not in line]
            assert [line["message"] for line in events] == [
                "APE_API_KEY is not set: every client is served",
                "Listening",
                "Settings",
                "Upstream cannot be reached",
            ]
            failed = events[-1]
            assert failed["level"] == "warning"
            address = f"127.0.0.1:{port}"
            assert (failed["cause"], failed["upstream_address"]) == ("ECONNREFUSED", address)
            assert await running.metric(REACHABLE) == 0


@pytest.mark.anyio
async def test_it_is_logged_when_they_can_be_made_again() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with running_proxy(sock.getsockname()[1], WARM_CONNECTIONS="1") as running:
            await running.lines.event("Upstream cannot be reached")
            sock.listen()
            again = await running.lines.event("Upstream can be reached again")
            assert again["after_seconds"] > 0
            assert await running.metric(REACHABLE) == 1


# Exact times


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0))


@asynccontextmanager
async def a_proxy(connect: Connect) -> AsyncIterator[tuple[Proxy, MemoryStream]]:
    """One that keeps a connection warm, and a client of it."""
    config = Config.from_environment(
        {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": "http://upstream", "WARM_CONNECTIONS": "1"}
    )
    proxy = Proxy(config, lambda line: None, connect=connect)
    ours, theirs = memory_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(proxy.run_in_background)
        tasks.start_soon(proxy.handle, theirs)
        yield proxy, ours
        tasks.cancel_scope.cancel()


def test_a_warming_request_makes_missing_connections_at_once() -> None:
    """The pause after the fourth failure lasts till 15 s."""

    async def test() -> None:
        began_at = anyio.current_time()
        requested_at = []

        async def connect(host: str, port: int) -> TimestampedStream:
            requested_at.append(round(anyio.current_time() - began_at, 3))
            if anyio.current_time() - began_at < 8:
                raise ConnectionRefusedError
            return memory_pair()[0]

        async with a_proxy(connect) as (_, client):
            await anyio.sleep(9)  # shorter than a client may be silent
            await client.send(b"GET /v1/tcp_warming HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.receive()).endswith(b"\r\n\r\n{}")
            await anyio.sleep(10)
        assert requested_at == [0, 1, 3, 7, 9]

    on_mock_clock(test)


def test_a_drain_makes_no_more() -> None:
    """Neither for one that upstream closes, nor for one that grows old."""

    async def test() -> None:
        peers: list[MemoryStream] = []

        async def connect(host: str, port: int) -> TimestampedStream:
            ours, theirs = memory_pair()
            peers.append(theirs)
            return ours

        async with a_proxy(connect) as (proxy, _):
            await anyio.sleep(20)
            peers[0].close()
            await anyio.sleep(6)
            assert len(peers) == 2
            proxy.begin_drain()
            peers[1].close()
            await anyio.sleep(100)
        assert len(peers) == 2

    on_mock_clock(test)


def test_one_that_is_made_at_the_moment_of_the_end_is_closed() -> None:
    async def test() -> None:
        peers: list[MemoryStream] = []
        may_be_made = anyio.Event()

        async def connect(host: str, port: int) -> TimestampedStream:
            await may_be_made.wait()
            ours, theirs = memory_pair()
            peers.append(theirs)
            return ours

        async with a_proxy(connect) as (proxy, _):
            await wait_all_tasks_blocked()
            may_be_made.set()
            proxy.begin_drain()
            proxy.close()
            await wait_all_tasks_blocked()
            assert all(peer.peer_is_gone() for peer in peers)

    for _ in range(20):  # trio orders at random what is woken at one moment
        on_mock_clock(test)
