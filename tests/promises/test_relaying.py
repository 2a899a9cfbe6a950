"""What passes between client and API: bytes, status, headers, in both directions."""

import gzip

import anyio
import pytest
from end_to_end import FINISH, KEY, Conversation, chat, events, running_proxy, running_upstream
from upstream_scripts import pieces_of, streams

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

ROLE = b'{"choices":[{"delta":{"role":"assistant"},"index":0}],"model":"gpt-oss-120b"}'
TOKEN = '{"choices":[{"delta":{"content":"hé"},"index":0}],"model":"gpt-oss-120b"}'.encode()
STREAM = events(ROLE, TOKEN, TOKEN, FINISH, b"[DONE]")


async def respond_plainly(peer: Conversation) -> None:
    while True:
        await peer.request()
        await peer.respond(b'{"id": "x",\n "choices":[ ] }')


async def test_a_plain_exchange_passes_byte_for_byte() -> None:
    body = b'{ "model" : "gpt-oss-120b",\t"messages":[{"role":"user","content":"h\\u00e9"}] }'
    async with (
        running_upstream(respond_plainly) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat(body))
    assert response.status == 200
    assert response.body == b'{"id": "x",\n "choices":[ ] }'
    assert response.headers["content-length"] == str(len(response.body))
    assert upstream.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("size", [1, 7, 40, 1000])
async def test_a_stream_passes_byte_for_byte_however_it_is_cut(size: int) -> None:
    async with (
        running_upstream(streams(*pieces_of(STREAM, size))) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert response.body == STREAM
    assert response.complete
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert line["outcome"] == "completed"
    assert line["total_tokens"] == 14
    assert line["cost_usd"] == 0.0000065


async def test_each_event_is_sent_as_soon_as_it_has_arrived() -> None:
    may_go_on = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(ROLE, TOKEN))
        await peer.chunk(events(TOKEN))
        await may_go_on.wait()  # the client has seen the second token by then, or never will
        await peer.chunk(events(FINISH, b"[DONE]"))
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        await client.send(chat())
        await client.until(events(TOKEN) + b"\r\n")
        may_go_on.set()
        await client.until(b"[DONE]\n\n\r\n0\r\n\r\n")


async def test_the_head_is_not_kept_waiting_for_the_first_chunk() -> None:
    async with (
        running_upstream(streams(then="stay")) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.send(chat())
        assert b"200 OK" in await client.until(b"\r\n\r\n")


async def test_the_key_is_swapped_and_only_known_headers_go_up() -> None:
    request = chat(
        b'{"model":"gpt-oss-120b"}',
        b"Authorization: Bearer the-agents-own",
        b"Connection: keep-alive, X-Cerebras-Private, Authorization, Host",
        b"X-Cerebras-Private: 1",
        b"X-Cerebras-Version-Patch: 2",
        b"queue_threshold: 50",
        b"Cookie: a=b",
        b"X-Forwarded-For: 6.6.6.6",
        b"Forwarded: for=6.6.6.6",
        b"Via: 1.1 x",
        b"TE: trailers",
        b"Expect: 100-continue",
        b"Accept-Encoding: gzip, br",
        b"x-stainless-retry-count: 1",
    )
    async with (
        running_upstream(respond_plainly) as upstream,
        running_proxy(upstream.port) as running,
    ):
        await (await running.client()).request(request)
        line = await running.lines.exchange()
    head, _, _ = upstream.requests[0].partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    sent = dict(field.split(": ", 1) for field in rest)
    assert first == "POST /v1/chat/completions HTTP/1.1"
    assert len(sent) == len(rest)
    assert sent.pop("traceparent").split("-")[1] == sent["x-trace-id"] == line["trace_id"]
    assert sent == {
        "host": f"127.0.0.1:{upstream.port}",
        "authorization": f"Bearer {KEY}",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-cerebras-version-patch": "2",
        "queue_threshold": "50",
        "x-stainless-retry-count": "1",
        "x-trace-id": line["trace_id"],
        "content-length": "24",
    }


async def test_headers_of_the_response_come_back_less_those_of_the_connection() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(
            b"{}",
            headers=b"x-ratelimit-remaining-requests-day: 7\r\nInference-Id: chatcmpl-1\r\n"
            b"cf-ray: abc\r\nretry-after: 7\r\nConnection: keep-alive, X-Up\r\nX-Up: 1\r\n"
            b"Keep-Alive: timeout=5\r\nSet-Cookie: a=b\r\nServer: cloudflare\r\n"
            b"Alt-Svc: h3\r\nStrict-Transport-Security: max-age=1\r\nDate: then\r\n",
        )

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
    assert len(response.headers.pop("x-trace-id")) == 32
    assert len(response.headers.pop("x-request-id")) == 32
    assert response.headers == {
        "content-type": "application/json",
        "content-length": "2",
        "x-ratelimit-remaining-requests-day": "7",
        "inference-id": "chatcmpl-1",
        "cf-ray": "abc",
        "retry-after": "7",
        "date": "then",
    }


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("400 Bad Request", "upstream_rejected"),
        ("402 Payment Required", "upstream_payment_required"),
        ("403 Forbidden", "upstream_key_refused"),
        ("404 Not Found", "upstream_rejected"),
    ],
)
async def test_upstreams_own_errors_pass_as_they_are(status: str, outcome: str) -> None:
    body = b'{"message":"Wrong","type":"invalid_request_error","param":"x","code":"y"}'

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(body, status=status)

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
    assert (response.status, response.body) == (int(status[:3]), body)
    assert line["outcome"] == outcome
    assert line["upstream_status"] == int(status[:3])


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("content_type", "coding", "body"),
    [
        (b"application/json", b"gzip", gzip.compress(b'{"model":"x"}', mtime=0)),
        (b"application/vnd.msgpack", b"gzip", gzip.compress(b"\x81\xa5model\xa1x", mtime=0)),
        (b"application/msgpack", b"identity", b"\x81\xa5model\xa1x"),
    ],
)
async def test_binary_bodies_pass_untouched(
    content_type: bytes, coding: bytes, body: bytes
) -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        usage = b'{"prompt_tokens":1000000,"completion_tokens":0}'
        await peer.respond(b'{"model":"gpt-oss-120b","usage":%s}' % usage)

    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\n"
        b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (content_type, coding, len(body), body)
    )
    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        await (await running.client()).request(request)
        line = await running.lines.exchange()
    head, _, sent = upstream.requests[0].partition(b"\r\n\r\n")
    assert sent == body
    assert b"content-type: " + content_type in head
    assert b"content-encoding: " + coding in head
    assert (line["model"], line["cost_usd"]) == ("gpt-oss-120b", 0.35)


async def test_a_missing_model_and_an_aliased_one_are_put_in_place() -> None:
    settings = {"DEFAULT_MODEL": "gpt-oss-120b", "MODEL_ALIASES": "old=gpt-oss-120b"}
    async with (
        running_upstream(respond_plainly) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        client = await running.client()
        await client.request(chat(b'{ "n": 1.0 }'))
        await client.request(chat(b'{"n":1.0, "model" : "old" }'))
        line = await running.lines.exchange(2)
    bodies = [request.partition(b"\r\n\r\n")[2] for request in upstream.requests]
    assert bodies == [
        b'{"model":"gpt-oss-120b", "n": 1.0 }',
        b'{"n":1.0, "model" : "gpt-oss-120b" }',
    ]
    assert (line["model"], line["requested_model"]) == ("gpt-oss-120b", "old")


async def test_what_was_chunked_goes_up_with_a_length() -> None:
    body = b'{"model":"gpt-oss-120b"}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\n%s\r\n13\r\n%s\r\n0\r\nX-A: 1\r\n\r\n"
        % (body[:5], body[5:])
    )
    async with (
        running_upstream(respond_plainly) as upstream,
        running_proxy(upstream.port) as running,
    ):
        response = await (await running.client()).request(request)
    assert response.status == 200
    head, _, sent = upstream.requests[0].partition(b"\r\n\r\n")
    assert sent == body
    assert b"content-length: 24" in head
    assert b"x-a" not in head.lower()
    assert b"transfer-encoding" not in head


async def test_one_connection_serves_many_requests_in_order_on_one_upstream_connection() -> None:
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.send(chat() * 3)  # in one packet
        bodies = [(await client.response()).body for _ in range(3)]
    assert bodies == [STREAM] * 3
    assert upstream.connections == 1


async def test_http_10_gets_neither_chunks_nor_keep_alive() -> None:
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        await client.send(chat().replace(b"HTTP/1.1", b"HTTP/1.0"))
        response = await client.until_closed()
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body == STREAM


async def test_sums_of_lines_and_counters_agree() -> None:
    async with (
        running_upstream(streams(STREAM)) as upstream,
        running_proxy(upstream.port) as running,
    ):
        client = await running.client()
        for _ in range(5):
            await client.request(chat())
        await running.lines.exchange(5)
        lines = running.lines.exchanges()
        tokens = await running.metric("cerebras_proxy_tokens_total")
        cost = await running.metric("cerebras_proxy_cost_usd_total")
        ttft = await running.metric("cerebras_proxy_ttft_seconds_sum")
    assert tokens == sum(line["total_tokens"] for line in lines) == 70
    assert cost == pytest.approx(sum(line["cost_usd"] for line in lines))
    assert ttft == pytest.approx(sum(line["ttft_seconds"] for line in lines))


CONTINUED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATES = (b"tracestate: rojo=1,congo=2", b"Tracestate: a@b=3")


@pytest.mark.loops_in_turn
@pytest.mark.parametrize(
    ("lines", "sent"),
    [
        ((b"traceparent: " + CONTINUED, *STATES), b"rojo=1,congo=2,a@b=3"),
        ((b"x-trace-id: mine", b"traceparent: " + CONTINUED, STATES[0]), b"rojo=1,congo=2"),
        (STATES, None),
        ((b"x-trace-id: " + CONTINUED[3:35], *STATES), None),
        ((b"traceparent: " + CONTINUED.replace(b"00-4", b"ff-4"), *STATES), None),
        ((b"traceparent: " + CONTINUED[:-1], *STATES), None),
        ((b"traceparent:", *STATES), None),
        ((b"traceparent: " + CONTINUED, b"traceparent: " + CONTINUED, *STATES), None),
    ],
)
async def test_tracestate_goes_up_only_with_the_traceparent_that_it_belongs_to(
    lines: tuple[bytes, ...], sent: bytes | None
) -> None:
    async with (
        running_upstream(respond_plainly) as upstream,
        running_proxy(upstream.port) as running,
    ):
        assert (await (await running.client()).request(chat(b"{}", *lines))).status == 200
    head = upstream.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    fields = [line.partition(b": ")[::2] for line in head[1:]]
    assert [value for name, value in fields if name.lower() == b"tracestate"] == (
        [] if sent is None else [sent]
    )
