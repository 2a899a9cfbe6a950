"""Tokens are relayed where they arrive, without a resumption of the task that serves the client;
what is not so simple that task does, and nobody sees the difference."""

import re
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trustme
from anyio.streams.tls import TLSAttribute
from end_to_end import (
    FINISH,
    KEY,
    TOKEN,
    Conversation,
    chat,
    events,
)
from tls_upstream import proxy_before

from ape_cerebras.downstream.connection import Downstream
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.client import UpstreamResponse

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

STREAMED = chat(b'{"model":"gpt-oss-120b","messages":[],"stream":true}')
REASONING = TOKEN.replace(b"content", b"reasoning")


@pytest.fixture(params=["plain", "tls"])
def leaf(request: pytest.FixtureRequest, authority: trustme.CA) -> trustme.LeafCert | None:
    return authority.issue_cert("localhost") if request.param == "tls" else None


class StepByStep:
    """A stream whose next chunk is sent when the client has the one before."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.go = anyio.Semaphore(0)

    async def __call__(self, peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        for chunk in self.chunks:
            await self.go.acquire()
            await peer.chunk(chunk)
        await peer.end()


async def relayed(
    script: StepByStep, leaf: trustme.LeafCert | None, bundle: str
) -> tuple[bytes, dict[str, Any]]:
    """What the client got of the body, and the line of the exchange."""
    async with proxy_before(script, leaf, bundle) as running:
        client = await running.client()
        await client.send(STREAMED)
        got = b""
        for chunk in script.chunks[:-1]:
            script.go.release()
            got += await client.until(chunk[-20:])
        script.go.release()
        got += await client.until(b"0\r\n\r\n")
        return got, await running.lines.exchange()


def content_of(response: bytes) -> bytes:
    """The body's content, without the framing of its chunks."""
    _, _, body = response.partition(b"\r\n\r\n")
    return b"".join(re.findall(rb"(?s)(data: .*?\n\n)", body))


def numbered(count: int) -> list[bytes]:
    return [events(TOKEN.replace(b'"a"', b'"%d"' % number)) for number in range(count)]


async def test_tokens_resume_no_task(
    leaf: trustme.LeafCert | None, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = 0
    next_chunk = UpstreamResponse.next_chunk

    async def counted(response: UpstreamResponse) -> bytes | None:
        nonlocal resumed
        resumed += 1
        return await next_chunk(response)

    monkeypatch.setattr(UpstreamResponse, "next_chunk", counted)
    counts = []
    for tokens in (4, 40):
        resumed = 0
        script = StepByStep(*numbered(tokens), events(FINISH, b"[DONE]"))
        got, line = await relayed(script, leaf, bundle)
        assert content_of(got) == b"".join(script.chunks)
        assert line["outcome"] == "completed"
        counts.append(resumed)
    assert counts[1] <= counts[0] + 3  # arrivals that were coalesced


def taking(most: int) -> Callable[[SocketStream, bytes], int]:
    return lambda stream, item: stream.send_nowait(item[:most])


@pytest.mark.parametrize("most", [0, 1, 50])
async def test_a_client_that_takes_a_part_at_once_gets_the_rest(
    most: int, leaf: trustme.LeafCert | None, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SocketStream, "send_now", taking(most))
    chunks = [events(b'{"choices":[{"delta":{"role":"assistant"}}]}'), events(REASONING)]
    script = StepByStep(*chunks, *numbered(5), events(FINISH, b"[DONE]"))
    got, line = await relayed(script, leaf, bundle)
    assert content_of(got) == b"".join(script.chunks)
    assert line["outcome"] == "completed"
    assert line["ttft_source"] == "measured"
    assert 0 < line["upstream_ttft_seconds"] <= line["ttft_seconds"] <= line["ttfo_seconds"]
    assert line["generation_seconds"] > 0


async def test_a_first_token_that_waits_for_its_client_is_timed_when_it_was_sent(
    leaf: trustme.LeafCert | None, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket takes nothing of it at once, and the task sends it later."""
    flush = Downstream.flush

    async def flush_late(downstream: Downstream) -> None:
        await anyio.sleep(0.01)  # the time that is measured
        await flush(downstream)

    monkeypatch.setattr(SocketStream, "send_now", taking(0))
    monkeypatch.setattr(Downstream, "flush", flush_late)
    script = StepByStep(*numbered(2), events(FINISH, b"[DONE]"))
    _, line = await relayed(script, leaf, bundle)
    assert line["proxy_ttft_seconds"] >= 0.009


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("at", [9, 12, 13])
async def test_an_end_marker_cut_in_two_ends_the_stream_at_once(
    at: int, leaf: trustme.LeafCert | None, bundle: str
) -> None:
    """Although upstream does not end the body."""
    marker = events(b"[DONE]")
    script = StepByStep(*numbered(2), events(FINISH), marker[:at], marker[at:])
    end, ended = script.chunks[-1], anyio.Event()

    async def endless(peer: Conversation) -> None:
        peer.end = ended.wait  # type: ignore[method-assign]
        await script(peer)

    async with proxy_before(endless, leaf, bundle) as running:
        client = await running.client()
        await client.send(STREAMED)
        for chunk in script.chunks[:-1]:
            script.go.release()
            await client.until(chunk[-9:])
        script.go.release()
        assert end in await client.until(b"0\r\n\r\n")
        assert (await running.lines.exchange())["outcome"] == "completed"
        ended.set()


async def test_a_key_in_a_token_is_withheld_where_it_arrives(
    leaf: trustme.LeafCert | None, bundle: str
) -> None:
    leak = events(TOKEN.replace(b'"a"', b'"%s"' % KEY.encode()))
    script = StepByStep(*numbered(3), leak)
    cut = b""
    async with proxy_before(script, leaf, bundle) as running:
        client = await running.client()
        await client.send(STREAMED)
        for chunk in script.chunks[:3]:
            script.go.release()
            cut += await client.until(chunk[-20:])
        script.go.release()
        cut += await client.until_closed()
        line = await running.lines.exchange()
    assert KEY[:8].encode() not in cut
    assert line["outcome"] == "upstream_invalid"


# Records of TLS that arrive together


class RecordsTogether(StepByStep):
    """Groups of chunks: each chunk is a record of TLS, each group leaves in one segment."""

    def __init__(self, *groups: list[bytes]) -> None:
        super().__init__(*map(b"".join, groups))
        self.groups = groups

    async def __call__(self, peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        tls = peer.stream.extra(TLSAttribute.ssl_object)
        for group in self.groups:
            await self.go.acquire()
            for chunk in group[:-1]:
                tls.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await peer.chunk(group[-1])
        await peer.end()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The events in each write to the client."""
    found: list[bytes] = []

    def noted(item: bytes) -> bytes:
        if b"data: " in item:
            found.append(content_of(b"\r\n\r\n" + item))
        return item

    send, send_now = SocketStream.send, SocketStream.send_now

    async def noted_send(stream: SocketStream, item: bytes) -> None:
        await send(stream, noted(item))

    monkeypatch.setattr(SocketStream, "send", noted_send)
    monkeypatch.setattr(SocketStream, "send_now", lambda *args: send_now(args[0], noted(args[1])))
    return found


ROLE = events(b'{"choices":[{"delta":{"role":"assistant"}}]}')
LAST = [events(FINISH), events(b"[DONE]")]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("first", [TOKEN, REASONING])
@pytest.mark.parametrize("number", [2, 3, 20, 32])  # those of more than 2 KiB the task sends
async def test_records_that_arrive_together_are_written_together(
    number: int, first: bytes, authority: trustme.CA, bundle: str, written: list[bytes]
) -> None:
    groups = [[events(first)], numbered(number), numbered(1), numbered(number), LAST]
    script = RecordsTogether(*groups)
    got, line = await relayed(script, authority.issue_cert("localhost"), bundle)
    assert written == list(script.chunks)
    assert content_of(got) == b"".join(script.chunks)
    assert line["outcome"] == "completed"
    assert line["events_per_read"] == (2 * number + 2) / 4


@pytest.mark.parametrize("first", [TOKEN, REASONING])
async def test_records_up_to_the_first_token_are_written_one_by_one(
    first: bytes, authority: trustme.CA, bundle: str, written: list[bytes]
) -> None:
    """So that it is timed by itself. Those behind it are one write."""
    rest = numbered(3)
    script = RecordsTogether([ROLE, events(first), *rest], LAST)
    _, line = await relayed(script, authority.issue_cert("localhost"), bundle)
    assert written == [ROLE, events(first), b"".join(rest), b"".join(LAST)]
    assert 0 < line["upstream_ttft_seconds"] <= line["ttft_seconds"]
    assert line["generation_seconds"] == 0  # they have arrived at one moment


async def test_records_behind_the_end_marker_are_relayed_with_it(
    authority: trustme.CA, bundle: str, written: list[bytes]
) -> None:
    end = [*numbered(2), *LAST, events(b'{"more":1}')]
    script = RecordsTogether([events(TOKEN)], end)
    got, line = await relayed(script, authority.issue_cert("localhost"), bundle)
    assert written == list(script.chunks)
    assert content_of(got) == b"".join(script.chunks)
    assert (line["outcome"], line["token_events"]) == ("completed", 3)


@pytest.mark.parametrize("most", [0, 1, 50])
async def test_a_client_that_takes_a_part_of_several_records_gets_the_rest(
    most: int, authority: trustme.CA, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SocketStream, "send_now", taking(most))
    script = RecordsTogether([ROLE, events(REASONING)], numbered(3), numbered(3), LAST)
    got, line = await relayed(script, authority.issue_cert("localhost"), bundle)
    assert content_of(got) == b"".join(script.chunks)
    assert line["outcome"] == "completed"


async def test_a_key_in_two_records_that_arrive_together_is_withheld(
    authority: trustme.CA, bundle: str
) -> None:
    leak = events(TOKEN.replace(b'"a"', b'"%s"' % KEY.encode()))
    at = leak.index(KEY.encode()) + 4
    script = RecordsTogether([events(TOKEN)], [*numbered(2), leak[:at], leak[at:]])
    async with proxy_before(script, authority.issue_cert("localhost"), bundle) as running:
        client = await running.client()
        await client.send(STREAMED)
        script.go.release()
        await client.until(script.chunks[0][-20:])
        script.go.release()
        cut = await client.until_closed()
        line = await running.lines.exchange()
    assert KEY[:8].encode() not in cut
    assert line["outcome"] == "upstream_invalid"
