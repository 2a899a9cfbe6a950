"""Responses of upstream that do not add up, and the accounting of vain waits for it."""

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
from upstream_scripts import pieces_of, streams

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

FRAMING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize("ended", [False, True])
async def test_a_stream_that_announced_more_than_it_sent(ended: bool) -> None:
    body = events(TOKEN, b"[DONE]") if ended else events(TOKEN)

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(FRAMING % 10_000 + body)

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.body.startswith(body)
    assert response.complete is ended
    assert (b"stream_truncated" in response.body) is not ended
    assert line["outcome"] == ("completed" if ended else "upstream_truncated")


async def test_a_response_framed_twice_is_none() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
    assert (response.status, response.json()["code"]) == (502, "invalid_response")


UNAUTHORIZED = b'{"message":"Incorrect API key provided: csk-up***89"}'


@pytest.mark.parametrize("body", [UNAUTHORIZED, b"", b"no JSON"])
async def test_a_401_is_about_the_accounts_key_and_not_the_clients(body: bytes) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(body, status="401 Unauthorized", headers=b"WWW-Authenticate: Bearer\r\n")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.json()["code"]) == (502, "upstream_key_refused")
    assert b"csk-" not in response.body
    assert "www-authenticate" not in response.headers
    assert (line["outcome"], line["upstream_status"]) == ("upstream_key_refused", 401)


@pytest.mark.parametrize("cut", [None, 1, 5, 20, 24])
async def test_an_error_that_quotes_the_accounts_key_is_not_passed_on(cut: int | None) -> None:
    body = b'{"message":"No quota for csk-up***89 left"}'

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (body,) if cut is None else (body[:cut], body[cut:28], body[28:]):
            await peer.chunk(part)
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.json()["code"]) == (502, "answer_withheld")
    assert b"csk-up" not in response.body
    assert line["outcome"] == "upstream_invalid"


async def test_a_header_that_quotes_the_accounts_key_is_not_passed_on() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(b"{}", headers=b"X-Debug: Bearer csk-upstream-key-0123456789\r\n")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
    assert (response.status, response.json()["code"]) == (502, "answer_withheld")


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_a_stream_that_quotes_the_accounts_key_is_cut(size: int) -> None:
    body = events(b'{"choices":[{"delta":{"content":"csk-upstream-key-0123456789"}}]}')

    async with (
        running_upstream(streams(*pieces_of(body, size), events(b"[DONE]"))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.metric("cerebras_proxy_upstream_connections") == 0
    assert not response.complete
    assert b"csk-upst" not in response.body
    assert line["error"] == "answer_withheld"


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
@pytest.mark.parametrize(
    ("key", "body", "passes"),
    [
        ("key-of-15-bytes", b'{"message":"key-of-15-bytes"}', False),
        ("key-of-15-bytes", b'{"message":"key-of-15***"}', True),
        ("8-a-byte", b'{"message":"8-a-byte"}', False),
        ("letters", b'{"message":"Four letters"}', True),
    ],
)
async def test_a_short_key_is_looked_for_as_a_whole_if_at_all(
    status: str, key: str, body: bytes, passes: bool
) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(body, status=status)

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, CEREBRAS_API_KEY=key) as running,
    ):
        response = await (await running.client()).request(chat())
    assert (response.complete and response.body == body) == passes
    assert passes or key.encode() not in response.body


async def test_a_long_error_passes_whole() -> None:
    body = b'{"message":"%s"}' % (b"x" * 200_000)

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(body, status="422 Long")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
    assert (response.status, response.body) == (422, body)


async def test_nonsense_for_usage_spoils_nothing() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        huge = b"9" * 400
        await peer.respond(
            b'{"usage":{"prompt_tokens":%s,"completion_tokens":5},"time_info":{"queue_time":%s}}'
            % (huge, huge)
        )

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        assert (await (await running.client()).request(chat())).status == 200
        line = await running.lines.exchange()
    assert (line["outcome"], line["usage_source"]) == ("completed", "estimated")
    # By the 38 bytes of the request; and the half of usage that can be read.
    assert (line["prompt_tokens"], line["completion_tokens"]) == (10, 5)
    assert "queue_seconds" not in line


@pytest.mark.parametrize("setting", ["UPSTREAM_FIRST_BYTE_TIMEOUT", "UPSTREAM_IDLE_TIMEOUT"])
async def test_waiting_in_vain_is_not_our_overhead(setting: str) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        if setting == "UPSTREAM_IDLE_TIMEOUT":
            await peer.stream_head()
        await peer.until_disconnected()

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **{setting: "0.3"}) as running,
    ):
        await (await running.client()).request(chat())
        total = (await running.lines.exchange())["total_time_seconds"]
        name = 'cerebras_proxy_overhead_seconds_sum{route="/v1/chat/completions"}'
        overhead = await running.sample(name)
    assert total >= 0.3
    assert overhead <= total - 0.29


async def test_a_list_of_models_that_takes_its_time_is_not_our_overhead() -> None:
    taken = 0.0

    async def script(peer: Conversation) -> None:
        nonlocal taken
        await peer.request()
        requested_at = anyio.current_time()
        taken = hold_the_loop() - requested_at
        await peer.respond(b'{"object":"list","data":[]}', status="500 Oh")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        assert (await (await running.client()).get("/v1/models")).status == 200
        line = await running.lines.exchange()
        name = 'cerebras_proxy_overhead_seconds_sum{route="/v1/models"}'
        assert await running.sample(name) <= line["total_time_seconds"] - taken
    assert line["outcome"] == "completed"  # the list of the price table was given


async def test_a_list_of_models_that_nests_too_deep_is_none() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(b'{"data":[{"id":"x","deep":%s}]}' % (b"[" * 254 + b"]" * 254))

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        listed = await client.get("/v1/models")
        entry = await client.get("/v1/models/gpt-oss-120b")
    assert (listed.status, entry.status) == (200, 200)
    assert b"deep" not in listed.body  # it is that of the price table


async def test_a_model_is_found_however_its_name_is_encoded() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond('{"data":[{"id":"acme/x"},{"id":"größe"}]}'.encode())

    found = {
        *("/v1/models/acme/x", "/v1/models/acme%2Fx", "/v1/models/acme%2fx", "/v1/models/%61cme/x"),
        *("/v1/models/gr%C3%B6%C3%9Fe", "/v1/models/big", "/v1/models/%62ig"),
    }
    missing = {"/v1/models/acme%252Fx", "/v1/models/acme%FF", "/v1/models/acme%2", "/v1/models/%"}
    aliases = {"MODEL_ALIASES": "big=acme/x"}
    async with running_upstream(script) as upstream, running_proxy(upstream.port, **aliases) as it:
        client = await it.client()
        statuses = {path: (await client.get(path)).status for path in found | missing}
    assert statuses == dict.fromkeys(found, 200) | dict.fromkeys(missing, 404)
