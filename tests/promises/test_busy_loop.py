"""Times that do not depend on when a busy event loop gets round to a socket, plain and over TLS.

The loop is held, on purpose, while something is on its way; what is asserted is the order of things
and not how long they took.
"""

import fcntl
import socket
import sys
import termios
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
import trustme
from anyio.abc import SocketAttribute
from end_to_end import TOKEN, Client, Conversation, chat, events, hold_the_loop, running_proxy
from tls_upstream import proxy_before
from waiting import until, wait_all_tasks_blocked

from ape_cerebras.net.socket_stream import SocketStream

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("kernel_timestamps")]

STREAMED = chat(b'{"model":"gpt-oss-120b","stream":true,"messages":[]}')
HOLD = 0.02  # seconds, of hold_the_loop
LAST_TOKEN = TOKEN.replace(b'"a"', b'"z"')
FINISH = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":3,"total_tokens":4}}'


@pytest.fixture(params=["plain", "tls"])
def leaf(request: pytest.FixtureRequest, authority: trustme.CA) -> trustme.LeafCert | None:
    return authority.issue_cert("localhost") if request.param == "tls" else None


def request_arrived_at(peer: Conversation) -> float:
    """At upstream's socket, by the kernel's timestamp."""
    socket_stream = getattr(peer.stream, "transport_stream", peer.stream)
    assert isinstance(socket_stream, SocketStream)
    return socket_stream.arrived_at


@dataclass
class HoldingUpstream:
    """Streams three tokens; after the first and after the last the loop is held before anybody can
    read them. What comes after each hold waits for ``go``."""

    go: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(0))
    requested_at: float = 0.0
    held_until: list[float] = field(default_factory=list)

    async def __call__(self, peer: Conversation) -> None:
        while True:
            await peer.request()
            self.requested_at = request_arrived_at(peer)
            await peer.stream_head()
            await peer.chunk(events(TOKEN))
            self.held_until = [hold_the_loop()]
            await self.go.acquire()
            await peer.chunk(events(TOKEN, LAST_TOKEN))
            self.held_until.append(hold_the_loop())
            await self.go.acquire()
            await peer.chunk(events(FINISH, b"[DONE]"))
            await peer.end()


async def test_a_response_read_late_did_not_come_late(
    leaf: trustme.LeafCert | None, bundle: str
) -> None:
    upstream = HoldingUpstream()
    async with proxy_before(upstream, leaf, bundle) as running:
        client = await running.client()
        for number, connection in enumerate(("new", "reused", "reused"), 1):
            await client.send(STREAMED)
            for awaited in (TOKEN, LAST_TOKEN):
                await client.until(awaited)
                upstream.go.release()
            await client.until(b"0\r\n\r\n")
            line = await running.lines.exchange(number)
            first, last = (moment - upstream.requested_at for moment in upstream.held_until)
            # The request was written before upstream had it, so that by the moments of the reads
            # these would be longer.
            assert line["upstream_ttft_seconds"] < first
            assert line["upstream_ttft_seconds"] + line["generation_seconds"] < last
            assert line["ttft_seconds"] > first  # but this is what the agent felt
            assert line["overhead_seconds"] > 2 * HOLD  # which was ours, and not upstream's
            assert (line["stamp"], line["connection"]) == ("kernel", connection)


async def test_a_request_read_late_did_not_come_late(
    leaf: trustme.LeafCert | None, bundle: str
) -> None:
    """What a request waits for the loop is part of what its agent felt."""
    upstream = HoldingUpstream(anyio.Semaphore(4))
    async with proxy_before(upstream, leaf, bundle) as running:
        client = await running.client()  # which still waits to be accepted
        for number in (1, 2):
            await client.send(STREAMED)
            sent_at, held_until = client.stream.written_at, hold_the_loop()
            await client.response()
            line = await running.lines.exchange(number)
            assert line["proxy_ttft_seconds"] > held_until - sent_at


async def test_where_one_read_had_no_timestamp_the_line_has_it(bundle: str) -> None:
    upstream = HoldingUpstream(anyio.Semaphore(4))
    async with proxy_before(upstream, None, bundle) as running:
        client = await running.client()
        await client.request(STREAMED)
        [downstream] = running.proxy._connections
        assert isinstance(downstream.stream, SocketStream)
        downstream.stream.kernel_timestamps = False
        await client.request(STREAMED)
        timestamps = [(await running.lines.exchange(number))["stamp"] for number in (1, 2)]
    assert timestamps == ["kernel", "read"]


@pytest.mark.parametrize(("timestamps", "timestamp"), [("on", "kernel"), ("off", "read")])
async def test_a_request_without_a_read_of_its_own_came_with_the_one_before(
    timestamps: str, timestamp: str
) -> None:
    async with running_proxy(1, KERNEL_STAMPS=timestamps) as running:
        client = await running.client()
        await client.send(2 * b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        lines = [await running.lines.exchange(number) for number in (1, 2)]
    assert [line["stamp"] for line in lines] == [timestamp, timestamp]


def bytes_under_way(peer: Conversation) -> int:
    """Bytes whose receipt the kernel of the proxy has not acknowledged."""
    sock = peer.stream.extra(SocketAttribute.raw_socket)
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0" * 4), sys.byteorder)


async def test_a_client_that_reads_nothing_for_a_while_makes_no_cerebras_look_slow(
    leaf: trustme.LeafCert | None, bundle: str
) -> None:
    """More than the kernel holds for the client, so that the proxy must wait; less than it holds
    besides for the proxy, so that upstream need not."""
    long_token = TOKEN.replace(b'"a"', b'"%s"' % (b"a" * 10_000))
    requested_at = 0.0
    all_sent = anyio.Event()

    async def script(peer: Conversation) -> None:
        nonlocal requested_at
        await peer.request()
        requested_at = request_arrived_at(peer)
        await peer.stream_head()
        await peer.chunk(events(TOKEN))
        for _ in range(56):
            await peer.chunk(events(long_token))
            for _ in range(10):  # iterations, so that the proxy keeps up while it can
                await anyio.lowlevel.checkpoint()
        await peer.chunk(events(long_token, FINISH, b"[DONE]"))
        await peer.end()
        await until(lambda: not bytes_under_way(peer))
        all_sent.set()

    async with proxy_before(script, leaf, bundle) as running:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", running.port))
            sock.setblocking(False)
            client = Client(SocketStream(sock))
            await client.send(STREAMED)
            with anyio.fail_after(5):
                await all_sent.wait()
            await wait_all_tasks_blocked()
            began_to_read_at = hold_the_loop()
            await client.until(b"0\r\n\r\n")
            line = await running.lines.exchange()
    assert line["client_blocked_seconds"] > 0
    assert (
        line["upstream_ttft_seconds"] + line["generation_seconds"] < began_to_read_at - requested_at
    )
    assert line["total_time_seconds"] > began_to_read_at - requested_at
