"""An exchange with the API that is cancelled at every await there is, one after the other: what is
left is whole or closed."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from end_to_end import KEY
from exchanges import chat_exchange
from memory_stream import MemoryStream, memory_pair
from waiting import wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.upstream.client import UpstreamClient, UpstreamRequest

pytestmark = pytest.mark.anyio

SMALL, LARGE = (
    2,
    300_000,
)  # bytes of a request; a large one is written while its response is awaited


class Upstream:
    """In memory. Responds to each request with its target, in pieces; ``peers`` are its ends."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self.peers: list[MemoryStream] = []

    async def connect(self, host: str, port: int) -> TimestampedStream:
        await anyio.lowlevel.checkpoint()
        ours, theirs = memory_pair(capacity=64 * 1024)
        self.peers.append(theirs)
        self._tasks.start_soon(self._respond, theirs)
        return ours

    async def _respond(self, peer: MemoryStream) -> None:
        try:
            while True:
                target = await self._request(peer)
                for part in (
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-",
                    b"Encoding: chunked\r\n\r\n%x\r\n" % len(target),
                    target + b"\r\n",
                    b"0\r\n\r\n",
                ):
                    await peer.send(part)
                    await anyio.lowlevel.checkpoint()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            peer.close()

    async def _request(self, peer: MemoryStream) -> bytes:
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            head += await peer.receive()
        head, _, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        while len(body) < int(length[1]):
            body += await peer.receive()
        return head.split(b" ")[1]

    @property
    def open(self) -> int:
        return sum(not peer.peer_is_gone() for peer in self.peers)


@asynccontextmanager
async def client_of_upstream() -> AsyncIterator[tuple[UpstreamClient, Upstream]]:
    config = Config.from_environment(
        {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": "http://upstream", "WARM_CONNECTIONS": "0"}
    )
    async with anyio.create_task_group() as tasks:
        upstream = Upstream(tasks)
        client = UpstreamClient(config, upstream.connect)
        yield client, upstream
        client.pool.close()
        tasks.cancel_scope.cancel()


async def use(client: UpstreamClient, number: int, size: int) -> None:
    """One exchange, whose response is to this request and to no other."""
    request = UpstreamRequest("POST", f"/{number}", body=b"x" * size)
    body = b""
    with await client.send(chat_exchange(), request) as response:
        while (chunk := await response.next_chunk()) is not None:
            body += chunk
    assert body == b"/%d" % number


async def cancel_after(steps: int, client: UpstreamClient, size: int) -> bool:
    """Use the client, and cancel that after so many event-loop iterations. Return whether it had
    ended by then."""
    ended = False

    async def run() -> None:
        nonlocal ended
        await use(client, steps, size)
        ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return ended


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("reused", [False, True])
async def test_no_slot_no_connection_and_no_half_read_response_is_left(
    size: int, reused: bool
) -> None:
    async with client_of_upstream() as (client, upstream):
        steps, ended_in_a_row = 0, 0
        while ended_in_a_row < 3:
            if reused:
                await use(client, 10_000 + steps, SMALL)
            else:
                client.pool.close()
            ended = await cancel_after(steps, client, size)
            await wait_all_tasks_blocked()
            assert client.pool.active == 0
            assert client.pool.idle == upstream.open == (ended or 0)
            ended_in_a_row = ended_in_a_row + 1 if ended else 0
            steps += 1
        assert steps > 10
