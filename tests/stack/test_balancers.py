"""Several proxies behind HAProxy and nginx, the real ones, with the configurations of ``contrib``:
what goes in comes out at once, the least busy proxy gets it, and a proxy can end under load."""

from pathlib import Path

import anyio
import pytest
from balancers import BALANCERS, HOSTS, Fleet, balanced
from end_to_end import TOKEN, Client, Conversation, Response, Script, body_of, chat, events
from waiting import TIMEOUT, until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("kind", list(BALANCERS))]

KEY = b"Authorization: Bearer a-key"
REQUEST = chat(b'{"model":"gpt-oss-120b","messages":[]}', KEY)
STREAM = chat(b'{"model":"gpt-oss-120b","messages":[],"stream":true}', KEY)
FIRST, LAST = events(TOKEN), events(TOKEN, b"[DONE]")


def streams_until(may_end: anyio.Event) -> Script:
    """Responds, and holds streams after their first event."""

    async def script(peer: Conversation) -> None:
        while True:
            if b'"stream":true' not in await peer.request():
                await peer.respond(b"{}")
                continue
            await peer.stream_head()
            await peer.chunk(FIRST)
            await may_end.wait()
            await peer.chunk(LAST)
            await peer.end()

    return script


async def stream_of(fleet: Fleet) -> Client:
    """A client that has got the first event of a stream, which upstream goes no further with."""
    client = await fleet.client()
    await client.send(STREAM)
    await client.peek_until(FIRST)
    return client


def assert_whole(response: Response) -> None:
    assert (response.status, response.complete) == (200, True)
    assert response.body == FIRST + LAST


async def test_streams_come_event_by_event_from_the_least_busy(kind: str, tmp_path: Path) -> None:
    may_end = anyio.Event()
    async with balanced(kind, streams_until(may_end), tmp_path) as fleet:
        clients = [await stream_of(fleet) for _ in HOSTS]
        assert await fleet.in_flight() == [1, 1, 1]
        clients.pop(1).stream.close()
        with anyio.fail_after(TIMEOUT):
            while sum(await fleet.in_flight()) > 2:
                pass  # until its proxy has noticed the disconnect
        clients.append(await stream_of(fleet))
        assert await fleet.in_flight() == [1, 1, 1]
        may_end.set()
        for client in clients:
            assert_whole(await client.response())


async def test_a_proxy_ends_under_load_and_no_request_is_lost(kind: str, tmp_path: Path) -> None:
    """No request is sent twice. The proxy that ends finishes its stream, and the others accept the
    rest."""
    may_end, enough = anyio.Event(), anyio.Event()
    responses: list[Response] = []

    async def request_on(fleet: Fleet) -> None:
        client = await fleet.client()
        while not enough.is_set():
            responses.append(await client.request(REQUEST))

    async def until_responded(more: int) -> None:
        wanted = len(responses) + more
        await until(lambda: len(responses) >= wanted, 30)

    async with balanced(kind, streams_until(may_end), tmp_path) as fleet:
        streaming = await stream_of(fleet)
        ending = fleet.proxies[(await fleet.in_flight()).index(1)]
        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(request_on, fleet)
            await until_responded(100)
            ending.proxy.begin_drain()
            await until_responded(100)
            assert not ending.ended.is_set()
            may_end.set()
            assert_whole(await streaming.response())
            with anyio.fail_after(5):
                await ending.ended.wait()
            await until_responded(100)
            enough.set()
    assert {(response.status, response.complete) for response in responses} == {(200, True)}
    assert len(fleet.upstream.requests) == len(responses) + 1
    counts = [len(proxy.lines.exchanges()) for proxy in fleet.proxies]
    assert min(counts) > 10
    assert {line["outcome"] for line in ending.lines.exchanges()} == {"completed"}


@pytest.mark.loops_in_turn
async def test_what_a_client_sends_and_gets_is_the_same(kind: str, tmp_path: Path) -> None:
    """Large prompts, trace ids, keys, errors; the metrics are not for clients."""
    prompt = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"%s"}]}' % (
        b"a" * 2_000_000
    )

    async with balanced(kind, streams_until(anyio.Event()), tmp_path) as fleet:
        client = await fleet.client()
        response = await client.request(chat(prompt, KEY, b"X-Trace-ID: trace-1"))
        refused = await client.request(chat())
        metrics = await client.get("/metrics")
        models = await client.get("/v1/models", KEY.decode())
    assert (response.status, response.headers["x-trace-id"]) == (200, "trace-1")
    assert body_of(fleet.upstream.requests[0]) == prompt
    assert (refused.status, refused.json()["code"]) == (401, "invalid_api_key")
    assert (metrics.status, models.status) == (404, 200)


@pytest.mark.loops_in_turn
async def test_fields_with_underscores_and_large_ones_get_through(
    kind: str, tmp_path: Path
) -> None:
    large = b"X-Trace-ID: trace-1\r\nX-Filler: " + b"a" * 12_000
    async with balanced(kind, streams_until(anyio.Event()), tmp_path) as fleet:
        client = await fleet.client()
        response = await client.request(chat(b'{"messages":[]}', KEY, b"queue_threshold: 100"))
        filled = await client.request(chat(b'{"messages":[]}', KEY, large))
    assert (response.status, filled.status) == (200, 200)
    assert b"\r\nqueue_threshold: 100\r\n" in fleet.upstream.requests[0]


@pytest.mark.loops_in_turn
async def test_whoever_refuses_a_request_says_so_in_json(kind: str, tmp_path: Path) -> None:
    """HAProxy's own page for a malformed request is HTML, and cannot have a type of content."""
    async with balanced(kind, streams_until(anyio.Event()), tmp_path) as fleet:
        too_large = await (await fleet.client()).request(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        malformed = await (await fleet.client()).request(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
    assert (too_large.status, too_large.json()["code"]) == (413, "body_too_large")
    assert malformed.status == 400
    if kind == "nginx":
        assert malformed.json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize("with_response", [False, True])
async def test_a_disconnect_ends_the_request(
    kind: str, tmp_path: Path, with_response: bool
) -> None:
    requested = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        if with_response:
            await peer.stream_head()
            await peer.chunk(FIRST)
        requested.set()
        await peer.until_disconnected()

    async with balanced(kind, script, tmp_path) as fleet:
        client = await fleet.client()
        await client.send(STREAM)
        await (client.peek_until(FIRST) if with_response else requested.wait())
        client.stream.close()
        with anyio.fail_after(TIMEOUT):
            await fleet.upstream.disconnected.wait()


@pytest.mark.loops_in_turn
async def test_where_no_proxy_is_left_clients_get_an_error(kind: str, tmp_path: Path) -> None:
    async with balanced(kind, streams_until(anyio.Event()), tmp_path) as fleet:
        for proxy in fleet.proxies:
            proxy.proxy.begin_drain()
        for proxy in fleet.proxies:
            await proxy.ended.wait()
        response = await (await fleet.client()).request(REQUEST)
    assert response.status in (502, 503)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "overloaded"
