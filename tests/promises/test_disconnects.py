"""Client disconnects, in all their forms, and what only looks like one."""

import anyio
import pytest
from end_to_end import (
    TOKEN,
    Conversation,
    chat,
    events,
    hold_the_loop,
    running_proxy,
    running_upstream,
)
from upstream_scripts import one_token_and_no_more, responds_once, silent, streams
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

WHOLE = events(TOKEN, b"[DONE]")
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("after_first_token", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_disconnect_ends_the_upstream_request(after_first_token: bool, how: str) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        if after_first_token:
            await peer.stream_head()
            await peer.chunk(events(TOKEN))
        await peer.until_disconnected()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        if after_first_token:
            await client.until(TOKEN)
        else:
            await until(lambda: bool(upstream.requests))
        if how == "reset":
            client.stream.reset()
        else:
            client.stream.close()
        with anyio.fail_after(1):
            await upstream.disconnected.wait()
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_requests_in_flight") == 1  # the scrape's own
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
        assert await running.metric("cerebras_proxy_errors_total") == 0
    assert (line["outcome"], line["level"]) == ("client_disconnected", "info")


async def test_a_client_that_has_sent_far_ahead_is_watched_all_the_same() -> None:
    async with running_upstream(silent) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat() * 1000)  # more than is read ahead
        await until(lambda: bool(upstream.requests))
        client.stream.reset()
        with anyio.fail_after(1):
            await upstream.disconnected.wait()
        line = await running.lines.exchange()
        assert len(running.lines.exchanges()) == len(upstream.requests) == 1
    assert line["outcome"] == "client_disconnected"


@pytest.mark.parametrize("begun", [b"", events(TOKEN), WHOLE], ids=["not", "begun", "whole"])
async def test_a_client_that_has_only_ended_its_sending_gets_its_response(begun: bytes) -> None:
    may_respond = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        if not begun:
            await may_respond.wait()
            await peer.respond(WHOLE)
            return
        await peer.stream_head()
        await peer.chunk(begun)
        await may_respond.wait()
        if begun != WHOLE:
            await peer.chunk(WHOLE.removeprefix(begun))
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        await client.peek_until(begun)
        await client.stream.send_eof()
        # The proxy finds out whether the client is still there by the head's first byte, or by a
        # zero in front of a chunk; what follows a stream that is complete begins with one anyway.
        await client.peek_until(begun + b"\r\n0" if begun else b"H")
        may_respond.set()
        response = await client.response()
        line = await running.lines.exchange()
    assert (response.body, response.complete) == (WHOLE, True)
    assert line["outcome"] == "completed"


async def test_a_disconnect_after_the_end_marker_is_not_early() -> None:
    """The body's own end never comes."""
    async with (
        running_upstream(streams(WHOLE, then="stay")) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        response = await client.request(chat())
        line = await running.lines.exchange()
        await upstream.disconnected.wait()
    assert response.complete
    assert line["outcome"] == "completed"


async def test_a_client_that_resets_before_its_response_took_the_time_until_then() -> None:
    async with running_upstream(silent) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(MODELS)
        await until(lambda: bool(upstream.requests))
        requested_at, left_at = anyio.current_time(), hold_the_loop()
        client.stream.reset()
        line = await running.lines.exchange()
    assert line["outcome"] == "client_disconnected"
    assert line["total_time_seconds"] >= left_at - requested_at


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_disconnect_ends_the_request_for_the_models(how: str) -> None:
    async with running_upstream(silent) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(MODELS)
        await until(lambda: bool(upstream.requests))
        getattr(client.stream, how)()
        with anyio.fail_after(1):
            await upstream.disconnected.wait()
        line = await running.lines.exchange()
    assert line["outcome"] == "client_disconnected"


async def test_a_disconnect_takes_no_models_from_another_client() -> None:
    """A client that waits for another client's request disconnects, and then the one that sent
    it."""
    may_respond = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        if len(upstream.requests) == 1:
            await peer.until_disconnected()
        await may_respond.wait()
        await peer.respond(b'{"object":"list","data":[{"id":"one"}]}')

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:

        async def until_waiting(number: int) -> None:
            with anyio.fail_after(5):  # the one more is the scrape's own
                while await running.metric("cerebras_proxy_requests_in_flight") != number + 1:
                    pass

        clients = [await running.client() for _ in range(3)]
        for number, client in enumerate(clients, 1):
            await client.send(MODELS)
            await until_waiting(number)
        requesting, waiting, staying = clients
        waiting.stream.close()
        await until_waiting(2)
        assert not upstream.disconnected.is_set()
        requesting.stream.close()
        await upstream.disconnected.wait()
        may_respond.set()
        responses = [await staying.response(), await staying.request(MODELS)]
    assert [response.json()["data"] for response in responses] == [[{"id": "one"}]] * 2
    assert len(upstream.requests) == 2


async def test_a_cut_without_chunks_is_a_reset() -> None:
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, GRACEFUL_SHUTDOWN_TIMEOUT="0.05") as running,
    ):
        client = await running.client()
        await client.send(chat().replace(b"HTTP/1.1", b"HTTP/1.0"))
        await client.until(TOKEN)
        running.proxy.begin_drain()
        assert b"shut_down" in await client.stream.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await client.stream.receive()


async def test_the_probe_writes_nothing_between_two_responses() -> None:
    """The client has ended its sending after two requests; the first one's stream is at its end,
    but upstream has not ended it yet."""

    async with (
        running_upstream(streams(WHOLE, then="stay")) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.send(chat() + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.stream.send_eof()
        first, second = await client.response(), await client.response()
    assert first.body == events(TOKEN, b"[DONE]")
    assert second.json()["status"] == "healthy"


@pytest.mark.parametrize("reset_first", [True, False])
async def test_a_stream_that_ends_after_a_disconnect_was_not_completed(
    reset_first: bool,
) -> None:
    peers: list[Conversation] = []
    usage = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":4,"total_tokens":5}}'
    rest = events(TOKEN, usage, b"[DONE]")
    last = b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest)

    async def script(peer: Conversation) -> None:
        peers.append(peer)
        await one_token_and_no_more(peer)

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        await client.until(TOKEN)
        # Both in one iteration of the loop: the proxy finds out about both at once.
        if reset_first:
            client.stream.reset()
            peers[0].stream.send_nowait(last)
        else:
            peers[0].stream.send_nowait(last)
            client.stream.reset()
        line = await running.lines.exchange()
    assert line["outcome"] == "client_disconnected"


async def test_a_first_token_that_came_for_nobody_has_no_ttft() -> None:
    peers: list[Conversation] = []

    async def script(peer: Conversation) -> None:
        peers.append(peer)
        await peer.request()
        await peer.stream_head()
        await peer.until_disconnected()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        await client.until(b"\r\n\r\n")
        # Both in one iteration of the loop: the token is here when the proxy finds that nobody is.
        token = events(TOKEN)
        peers[0].stream.send_nowait(b"%x\r\n%s\r\n" % (len(token), token))
        client.stream.reset()
        line = await running.lines.exchange()
    assert line["outcome"] == "client_disconnected"
    assert line["ttft_source"] is None
    assert not [name for name in line if "ttft_seconds" in name]


async def test_a_status_that_nobody_received_was_not_sent() -> None:
    async with running_proxy(1) as running:
        client = await running.client()
        await client.get("/health")
        await client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        client.stream.reset()
        line = await running.lines.exchange(2)
    assert line["outcome"] == "client_disconnected"
    assert "status_code" not in line


async def test_requests_sent_before_a_disconnect_are_not_carried_out() -> None:
    async with running_upstream(responds_once) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.get("/health")
        await client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" + chat())
        client.stream.reset()
        await running.lines.exchange(2)
        running.proxy.begin_drain()
        await running.ended.wait()
    assert [line["route"] for line in running.lines.exchanges()] == ["/health"] * 2
    assert upstream.requests == []
