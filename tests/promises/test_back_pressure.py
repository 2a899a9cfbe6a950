"""Bytes that a client does not take are not kept: memory stays flat, however long a response or a
queue of requests is. The proxy is a process of its own; the system reports its memory."""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute
from end_to_end import KEY, TOKEN, Client, Conversation, Script, chat, events, running_upstream
from server_process import Served, serving
from waiting import wait_all_tasks_blocked

from ape_cerebras.net.event_loop import current_backend
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux reports a process's memory"),
]

MIB = 2**20
PAGE = 4096
SLOW = 20  # clients
QUEUED = 1_000  # requests
LONG = 160  # MiB of a body
TIMEOUT = 240  # seconds; a machine may be busy
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
PIECE = events(TOKEN) * 800  # 64 KiB, about


class Memory:
    """What a process has more than at first: the most that was seen."""

    def __init__(self, served: Served) -> None:
        self._statm = Path(f"/proc/{served.process.pid}/statm")
        self._first = self._now()
        self.most = 0

    def _now(self) -> int:
        return int(self._statm.read_text().split()[1]) * PAGE

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self._now() - self._first)
            await anyio.sleep(0.01)


@asynccontextmanager
async def watched(served: Served) -> AsyncIterator[Memory]:
    """The proxy's memory while the block runs, after a first request."""
    client = await entered(served)
    assert (await client.get("/health")).status == 200
    client.stream.close()
    memory = Memory(served)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(memory.watch)
        with anyio.fail_after(TIMEOUT):
            yield memory
        tasks.cancel_scope.cancel()


async def entered(served: Served, receive_buffer: int | None = None) -> Client:
    stream = await connect_tcp("127.0.0.1", served.port)
    assert isinstance(stream, SocketStream)
    if receive_buffer is not None:
        sock = stream.extra(SocketAttribute.raw_socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return Client(stream)


def proxied(port: int, **settings: str) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}"
    backend = current_backend()
    return {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": url, "BACKEND": backend, **settings}


async def test_clients_that_read_nothing_cost_little_and_are_cut_while_upstream_is_paused() -> None:
    sent: list[int] = []

    async def endless(peer: Conversation) -> None:
        if (await peer.request()).startswith(b"GET "):  # the service's own, when it starts
            return
        await peer.stream_head()
        number = len(sent)
        sent.append(0)
        while True:
            await peer.chunk(PIECE)
            sent[number] += len(PIECE)

    async with running_upstream(endless) as upstream:
        with serving("serve", **proxied(upstream.port, CLIENT_WRITE_TIMEOUT="1")) as served:
            async with watched(served) as memory:
                clients = [await entered(served, 1024) for _ in range(SLOW)]
                for client in clients:
                    await client.send(chat())
                for _ in range(SLOW):
                    line = await anyio.to_thread.run_sync(served.line, "error")
                    assert line["outcome"] == "client_stalled"
            assert memory.most < SLOW * MIB
            for client in clients:
                client.stream.close()
    assert len(sent) == SLOW
    assert max(sent) < 16 * MIB  # what the system's buffers hold on all the way


def whole(length: int) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % length


async def a_long_body(peer: Conversation) -> None:
    await peer.request()
    await peer.send(whole(LONG * MIB))
    for _ in range(LONG):
        await peer.send(b" " * MIB)


async def a_long_stream(peer: Conversation) -> None:
    await peer.request()
    await peer.stream_head()
    for _ in range(500):
        await peer.chunk(PIECE)
    await peer.chunk(events(b"[DONE]"))
    await peer.end()


@pytest.mark.parametrize(
    ("script", "least", "kept"),
    [
        (a_long_body, LONG * MIB, 32 * MIB),  # so much of a plain reply, for the usage in it
        (a_long_stream, 500 * len(PIECE), 0),
    ],
)
async def test_a_long_response_passes_and_leaves_nothing(
    script: Script, least: int, kept: int
) -> None:
    async with running_upstream(script) as upstream:
        with serving("serve", **proxied(upstream.port)) as served:
            async with watched(served) as memory:
                client = await entered(served)
                await client.send(chat(b'{"messages":[]}', b"Connection: close"))
                got = 0
                with suppress(anyio.EndOfStream):
                    while True:
                        got += len(await client.stream.receive(MIB))
                client.stream.close()
                line = await anyio.to_thread.run_sync(served.line, "outcome")
    assert got > least
    assert line["outcome"] == "completed"
    assert memory.most < kept + 16 * MIB


async def test_a_long_queue_of_requests_takes_no_memory() -> None:
    """12 MiB of pipelined requests."""
    request = HEALTH[:-2] + b"X-Long: " + b"x" * 12 * 1024 + b"\r\n\r\n"
    last = {"MAX_REQUESTS_PER_CONNECTION": str(QUEUED)}  # behind it the connection ends
    async with running_upstream(a_long_body) as upstream:
        with serving("serve", **proxied(upstream.port, **last)) as served:
            async with watched(served) as memory, anyio.create_task_group() as tasks:
                client = await entered(served)
                tasks.start_soon(client.send, request * QUEUED)
                await wait_all_tasks_blocked()  # the watch sleeps: nobody takes responses
                data = bytearray()
                with suppress(anyio.EndOfStream):
                    while True:
                        data += await client.stream.receive()
                client.stream.close()
    assert data.count(b"HTTP/1.1 200 ") == QUEUED
    assert memory.most < 3 * MIB
