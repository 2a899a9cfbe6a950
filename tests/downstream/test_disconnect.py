"""Watching for a client's disconnect: over a socket by a hook, over memory by a task."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from end_to_end import KEY
from memory_stream import memory_pair
from waiting import TIMEOUT, until, wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.downstream.connection import Downstream
from ape_cerebras.errors import ClientGone, ExchangeTimeout, RequestTimeout
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.exchange import Exchange

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.every_loop,
    pytest.mark.parametrize("over", ["socket", "memory"]),
]

GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def pair(over: str) -> tuple[TimestampedStream, TimestampedStream]:
    if over == "memory":
        return memory_pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
    return SocketStream(ours), SocketStream(theirs)


@asynccontextmanager
async def requested(over: str) -> AsyncIterator[tuple[TimestampedStream, Downstream]]:
    """A client, and the connection that has read its request."""
    client, server = pair(over)
    downstream = Downstream(server, Config.from_environment({"CEREBRAS_API_KEY": KEY}))
    await client.send(GET)
    assert await downstream.wait_for_request() is not None
    await downstream.read_head()
    try:
        with anyio.fail_after(TIMEOUT):
            yield client, downstream
    finally:
        client.close()
        await downstream.close_at_once()


@asynccontextmanager
async def watched(downstream: Downstream, seconds: float | None = None) -> AsyncIterator[None]:
    with downstream.exchange_scope(seconds):
        async with downstream.watch_disconnect():
            yield


async def respond(downstream: Downstream) -> None:
    await downstream.respond(Exchange(started_at=0.0), 200, (), b"ok")


@pytest.mark.parametrize("before", [True, False])
async def test_a_disconnect_ends_the_block(over: str, before: bool) -> None:
    async with requested(over) as (client, downstream):

        async def wait() -> None:
            async with watched(downstream):
                if not before:
                    client.close()
                await anyio.sleep_forever()

        if before:
            client.close()
        with pytest.raises(ClientGone):
            await wait()


async def test_a_disconnect_before_the_end_of_the_block_is_not_overlooked(over: str) -> None:
    async with requested(over) as (client, downstream):

        async def work() -> None:
            async with watched(downstream):
                client.close()
                with anyio.CancelScope(shield=True):
                    await until(lambda: downstream.reader.ended)

        with pytest.raises(ClientGone):
            await work()


async def test_requests_that_come_meanwhile_are_kept(over: str) -> None:
    async with requested(over) as (client, downstream):
        async with watched(downstream):
            await client.send(GET.replace(b"health", b"later"))
            await wait_all_tasks_blocked()
        await respond(downstream)
        assert await downstream.wait_for_request() is not None
        assert (await downstream.read_head()).path == b"/later"


async def test_a_disconnect_after_a_complete_response_is_no_error(over: str) -> None:
    async with requested(over) as (client, downstream):
        async with watched(downstream):
            await respond(downstream)
            client.close()
            await anyio.sleep_forever()
        assert downstream.completed_at is not None


async def test_a_timeout_is_no_disconnect(over: str) -> None:
    async with requested(over) as (_, downstream):
        with anyio.move_on_after(0.05) as scope:
            async with watched(downstream):
                await anyio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.parametrize("completed", [True, False])
async def test_an_exchange_ends_at_its_deadline(over: str, completed: bool) -> None:
    async with requested(over) as (_, downstream):

        async def work() -> None:
            async with watched(downstream, 0.05):
                if completed:
                    await respond(downstream)
                await anyio.sleep_forever()

        if completed:
            await work()
        else:
            with pytest.raises(ExchangeTimeout):
                await work()


async def test_cancellation_from_outside_is_neither_while_a_client_disconnects(over: str) -> None:
    async with requested(over) as (client, downstream):
        with anyio.CancelScope() as scope:
            async with watched(downstream, 60):
                client.close()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught


async def test_errors_of_the_block_pass_through_as_they_are(over: str) -> None:
    async with requested(over) as (_, downstream):
        for error in (RequestTimeout(), ZeroDivisionError()):
            with pytest.raises(type(error)) as caught:
                async with watched(downstream):
                    raise error
            assert caught.value is error


async def test_one_connection_is_watched_again_and_again(over: str) -> None:
    async with requested(over) as (client, downstream):
        for _ in range(3):
            async with watched(downstream):
                await anyio.lowlevel.checkpoint()
            await respond(downstream)
            await client.send(GET)
            assert await downstream.wait_for_request() is not None
            await downstream.read_head()
