"""Times of a proxy that was kept from running: right, or told by how much they may be off.

Whatever keeps the process from its core is played by a loop that does nothing: the thread is awake,
and does not get to its sockets.
"""

import socket
import time
from typing import Any

import pytest
from anyio.abc import SocketAttribute
from end_to_end import TOKEN, Conversation, chat, events, running_proxy, running_upstream
from stolen_time import StolenTime

from ape_cerebras.net.event_loop import loop_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("kernel_timestamps")]

STREAMED = chat(b'{"model":"gpt-oss-120b","stream":true,"messages":[]}')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PREEMPTED = 0.02  # seconds


def preempt() -> None:
    until = time.monotonic() + PREEMPTED
    while time.monotonic() < until:
        pass


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_of_a_first_token_that_was_coalesced_the_line_tells_how_early_it_may_have_been() -> (
    None
):
    now, sent_between, stolen = loop_clock(), list[tuple[float, float]](), list[float]()

    async def coalescing(peer: Conversation) -> None:
        """Sends past the streams, whose every write looks for arrivals."""
        await peer.request()
        sock = peer.stream.extra(SocketAttribute.raw_socket)
        sent_between.append((now(), now()))
        stolen_time = StolenTime()
        for piece in (HEAD + chunk(events(TOKEN)), chunk(events(TOKEN))):
            began_at = now()
            sock.send(piece)
            sent_between.append((began_at, now()))
            preempt()
        stolen.append(stolen_time())
        await peer.chunk(events(b"[DONE]"))
        await peer.end()

    async with running_upstream(coalescing) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.request(STREAMED)
        line = await running.lines.exchange(1)
    (requested_at, _), (_, first_at), (second_at, _) = sent_between
    late = second_at - first_at  # at least: this task itself may be kept from running in between
    assert line["upstream_ttft_seconds"] > late  # the kernel has the time of the second alone
    uncertainty = line["uncertainty_seconds"] + stolen[0] + 0.001
    assert uncertainty > late
    assert line["upstream_ttft_seconds"] - uncertainty < first_at - requested_at
    parts = line["upstream_ttft_seconds"] + line["proxy_ttft_seconds"]
    assert line["ttft_seconds"] == pytest.approx(parts, abs=1e-9)


class PreemptedSocket:
    """A socket whose writer does not run for a while behind each write."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def send(self, data: bytes) -> int:
        sent = self._socket.send(data)
        preempt()
        return sent


async def responds(peer: Conversation) -> None:
    while True:
        await peer.request()
        await peer.send(HEAD + chunk(events(TOKEN, b"[DONE]")) + b"0\r\n\r\n")


@pytest.mark.parametrize("side", ["upstream", "client"])
async def test_of_a_write_in_which_it_was_preempted_the_line_tells_it(side: str) -> None:
    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.request(STREAMED)
        [downstream] = running.proxy._connections
        [idle] = running.proxy._upstream.pool._idle
        stream = idle.stream.raw if side == "upstream" else downstream.stream
        monkeyed = stream.__dict__
        monkeyed["_socket"] = PreemptedSocket(monkeyed["_socket"])
        requested_at = client.stream.now()
        await client.request(STREAMED)
        responded_at = client.stream.arrived_at
        line = await running.lines.exchange(2)
    assert line["uncertainty_seconds"] >= PREEMPTED
    if side == "client":  # which read its token while the proxy was still in the call
        assert line["ttft_seconds"] < responded_at - requested_at + 0.001
        assert line["ttft_seconds"] < line["total_time_seconds"] - PREEMPTED / 2
