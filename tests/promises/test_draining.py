"""The end of a proxy: what is under way ends well, what is idle ends at once, nothing is lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from end_to_end import (
    TOKEN,
    Client,
    Conversation,
    Running,
    Script,
    chat,
    events,
    running_proxy,
    running_upstream,
)
from upstream_scripts import one_token_and_no_more, silent, streams
from waiting import until, wait_all_tasks_blocked

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_an_idle_proxy_ends_at_once() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(b"{}")
        await peer.until_disconnected()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.request(chat())
        silent = await running.client()
        running.proxy.begin_drain()
        with anyio.fail_after(1):
            assert await client.until_closed() == b""
            assert await silent.until_closed() == b""
            await running.ended.wait()
            await upstream.disconnected.wait()
        with pytest.raises(OSError):  # noqa: PT011 - refused, by whatever name
            await running.client()
        assert running.lines.all()[-1]["message"] == "Stopped"


async def test_exchanges_under_way_are_finished() -> None:
    may_end = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN))
        await may_end.wait()
        await peer.chunk(events(TOKEN, b"[DONE]"))
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        begun = await client.until(TOKEN + b"\n\n\r\n")
        running.proxy.begin_drain()
        await wait_all_tasks_blocked()
        assert not running.ended.is_set()
        may_end.set()
        rest = await client.until_closed()
        with anyio.fail_after(1):
            await running.ended.wait()
    assert begun.count(TOKEN) == rest.count(TOKEN) == 1
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert (await running.lines.exchange())["outcome"] == "completed"


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
async def test_a_client_without_a_connection_close_gets_a_response_to_its_next_request(
    when: str,
) -> None:
    """It comes before the drain, or while the response is under way, or after that."""
    may_end = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN))
        await may_end.wait()
        await peer.chunk(events(b"[DONE]"))
        await peer.end()
        await peer.request()
        await peer.respond(b"{}")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat() + chat() if when == "before" else chat())
        first = await client.until(TOKEN)
        running.proxy.begin_drain()
        if when == "meanwhile":
            await client.send(chat())
        may_end.set()
        first += await client.until(b"\r\n0\r\n\r\n")
        if when == "after":
            await client.send(chat())
        second = await client.response()
        assert await client.until_closed() == b""
        await running.ended.wait()
    assert b"connection: close" not in first.lower()
    assert (second.body, second.headers["connection"]) == (b"{}", "close")
    assert [line["outcome"] for line in running.lines.exchanges()] == ["completed"] * 2


@asynccontextmanager
async def ended_in_the_middle(
    script: Script, got: bytes, within: float = 1.0
) -> AsyncIterator[tuple[Running, Client]]:
    """A proxy that began its shutdown, with a short timeout, when upstream had the request of a
    client that had ``got`` so much. ``within`` so many seconds it has ended, and closed its
    upstream connection."""
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, GRACEFUL_SHUTDOWN_TIMEOUT="0.05") as running,
    ):
        client = await running.client()
        await client.send(chat())
        await until(lambda: bool(upstream.requests))
        await client.until(got)
        running.proxy.begin_drain()
        with anyio.fail_after(within):
            yield running, client
            await running.ended.wait()
            await upstream.disconnected.wait()


async def test_what_takes_longer_than_the_grace_is_cut() -> None:
    async with ended_in_the_middle(one_token_and_no_more, TOKEN) as (running, client):
        rest = await client.until_closed()
    assert rest.count(b"data: {") == 1
    assert b'"code":"shut_down"' in rest
    assert rest.endswith(b"}\n\n\r\n")  # an event's end, and a chunk's; the body's is missing
    line = await running.lines.exchange()
    assert (line["outcome"], line["status_code"]) == ("shut_down", 200)


async def test_what_is_cut_inside_an_event_is_only_cut() -> None:
    script = streams(events(TOKEN) + b"data: {", then="stay")
    async with ended_in_the_middle(script, b"data: {\r\n") as (_, client):
        assert await client.until_closed() == b""


async def test_a_client_without_a_byte_gets_an_error_at_the_end_of_the_grace() -> None:
    async with ended_in_the_middle(silent, b"") as (_, client):
        response = await client.response()
        assert await client.until_closed() == b""
    assert (response.status, response.json()["code"]) == (503, "shut_down")
    assert response.headers["x-should-retry"] == "false"


async def test_a_client_that_reads_nothing_delays_no_end() -> None:
    """What it was being sent when the end came is torn, and nothing is put behind it."""

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        with suppress(anyio.BrokenResourceError):
            while True:
                await peer.chunk(events(TOKEN) * 1000)
        peer.upstream.disconnected.set()

    async with ended_in_the_middle(script, TOKEN, within=2) as (running, client):
        await running.ended.wait()
        assert b"shut_down" not in await client.until_closed()
    assert (await running.lines.exchange())["outcome"] == "shut_down"


async def test_connections_that_stand_but_are_not_accepted_yet_are_served() -> None:
    async with running_proxy(1) as running:
        clients = [await running.client() for _ in range(20)]
        running.proxy.begin_drain()  # nothing has been awaited since the last one connected
        for client in clients:
            await client.send(HEALTH)
        responses = [await client.response() for client in clients]
    assert {response.status for response in responses} == {503}
    assert {response.json()["status"] for response in responses} == {"draining"}
    assert {response.headers["connection"] for response in responses} == {"close"}


async def test_a_proxy_that_has_ended_reports_it() -> None:
    async with running_proxy(1) as running:
        running.proxy.close()
        response = await (await running.client()).get("/v1/models")
    assert (response.status, response.json()["code"]) == (503, "draining")
