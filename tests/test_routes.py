"""Which route a request has, and how a proxy serves it."""

import json
from typing import Any

import anyio
import pytest
from end_to_end import Lines
from memory_stream import memory_pair

from ape_cerebras import Config, Proxy
from ape_cerebras.downstream.connection import Downstream
from ape_cerebras.errors import (
    BodyTooLarge,
    DoubledPrefix,
    MethodNotAllowed,
    MethodUnknown,
    ModelNotFound,
    NotFound,
    ProxyError,
    Unauthorized,
)
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.exchange import Exchange

CHAT = "/v1/chat/completions"


class Call:
    """One request, served by a proxy that drains and whose upstream cannot be reached."""

    def __init__(self, **settings: str) -> None:
        self.config = Config.from_environment(
            {"CEREBRAS_API_KEY": "k", "CEREBRAS_BASE_URL": "http://upstream", **settings}
        )
        self.warmed = False
        self.exchange = Exchange(started_at=0.0)
        self.response = b""

    async def unreachable(self, host: str, port: int) -> TimestampedStream:
        raise ConnectionRefusedError

    async def respond_to_chat(self, exchange: Exchange, downstream: Downstream) -> None:
        await downstream.respond(exchange, 200, (), b"chat:" + exchange.body)

    async def send(self, method: str, target: str, *lines: str, body: bytes = b"") -> None:
        """Raises the ProxyError that refuses it."""
        proxy = Proxy(self.config, Lines().write, connect=self.unreachable)
        proxy.begin_drain()
        table = proxy.for_clients.table
        chat = table[CHAT.encode()]._replace(handler=self.respond_to_chat)
        head = [f"{method} {target} HTTP/1.1", "Host: a", *lines]
        head += [f"Content-Length: {len(body)}"] if body else []
        client, stream = memory_pair()
        downstream = Downstream(stream, self.config)
        await client.send("\r\n".join([*head, "", ""]).encode() + body)
        self.exchange.started_at = await downstream.wait_for_request() or 0.0
        try:
            with downstream.exchange_scope():
                await proxy._respond(self.exchange, downstream, {**table, CHAT.encode(): chat})
        finally:
            self.response = b"".join(stream.sent)
            self.warmed = proxy._warmup._changed.is_set()

    @property
    def body(self) -> bytes:
        return self.response.partition(b"\r\n\r\n")[2]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target", "route", "status", "body"),
    [
        ("POST", CHAT, CHAT, 200, b"chat:"),
        ("POST", CHAT + "?api_key=x", CHAT, 200, b"chat:"),
        ("GET", "/v1/tcp_warming", "/v1/tcp_warming", 200, b"{}"),
        ("HEAD", "/v1/tcp_warming", "/v1/tcp_warming", 200, b""),
        ("GET", "/health", "/health", 503, b'{"status":"draining",'),
        ("HEAD", "/health", "/health", 503, b""),
        ("HEAD", "/v1/models", "/v1/models", 200, b""),
        ("HEAD", "/metrics", "/metrics", 200, b""),
    ],
)
async def test_the_table(method: str, target: str, route: str, status: int, body: bytes) -> None:
    call = Call()
    await call.send(method, target)
    assert (call.exchange.route, call.exchange.status) == (route, status)
    assert call.body.startswith(body)
    assert bool(call.body) == bool(body)
    assert call.exchange.received_at is not None
    assert call.warmed == ("tcp_warming" in route)


@pytest.mark.anyio
async def test_the_body_is_read_before_a_handler_responds() -> None:
    call = Call()
    await call.send("POST", CHAT, body=b"{}")
    assert call.exchange.body == b"{}"
    assert call.body == b"chat:{}"


@pytest.mark.anyio
async def test_models_and_metrics() -> None:
    call = Call()
    await call.send("GET", "/v1/models")
    ids = [entry["id"] for entry in json.loads(call.body)["data"]]
    assert ids == list(call.config.model_prices.prices)
    await call.send("GET", "/v1/models/gpt-oss-120b")
    assert call.exchange.route == "/v1/models/{id}"
    assert json.loads(call.body)["id"] == "gpt-oss-120b"
    await call.send("GET", "/metrics", "Accept: application/openmetrics-text")
    assert b"content-type: application/openmetrics-text" in call.response.lower()
    assert call.body.endswith(b"# EOF\n")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target", "refusal", "route"),
    [
        ("GET", CHAT, MethodNotAllowed, CHAT),
        ("OPTIONS", CHAT, MethodNotAllowed, CHAT),
        ("POST", "/v1/models", MethodNotAllowed, "/v1/models"),
        ("DELETE", "/v1/models/gpt-oss-120b", MethodNotAllowed, "/v1/models/{id}"),
        ("POST", "/health", MethodNotAllowed, "/health"),
        ("FOO", CHAT, MethodUnknown, CHAT),
        ("post", CHAT, MethodUnknown, CHAT),
        ("FOO", "/nowhere", MethodUnknown, "none"),
        ("GET", "/", NotFound, "none"),
        ("GET", "/v1", NotFound, "none"),
        ("GET", "/v1/models/", NotFound, "none"),
        ("POST", CHAT + "/", NotFound, "none"),
        ("POST", "/V1/chat/completions", NotFound, "none"),
        ("POST", "/v1/chat/completions;x", NotFound, "none"),
        ("POST", "//v1/chat/completions", NotFound, "none"),
        ("GET", "/v1/../metrics", NotFound, "none"),
        ("GET", "/v1/%2e%2e/metrics", NotFound, "none"),
        ("GET", "/health%00", NotFound, "none"),
        ("GET", "/v1/models/no-such-model", ModelNotFound, "/v1/models/{id}"),
        ("GET", "/v1/models/../../metrics", ModelNotFound, "/v1/models/{id}"),
        ("GET", "/v1/v1/models", DoubledPrefix, "none"),
        ("POST", "/v1/v1/chat/completions", DoubledPrefix, "none"),
    ],
)
async def test_refusals(method: str, target: str, refusal: type[ProxyError], route: str) -> None:
    call = Call()
    with pytest.raises(ProxyError) as refused:
        await call.send(method, target)
    assert type(refused.value) is refusal
    assert call.exchange.route == route
    assert call.response == b""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target", "advice"),
    [
        ("POST", "/chat/completions", "must end in /v1"),
        ("POST", "/chat/completions?api-version=1", "must end in /v1"),
        ("GET", "/models", "must end in /v1"),
        *(
            ("POST", prefix + path, advice)
            for prefix in ("", "/v1")
            for path, advice in (
                ("/completions", "send messages as a chat completion"),
                ("/responses", "set the client to chat completions"),
                ("/embeddings", "another service"),
                ("/messages", "an OpenAI-compatible provider"),
            )
        ),
        ("GET", "/nowhere", ""),
        ("GET", "/v1/nowhere", ""),
        ("GET", "/", ""),
    ],
)
async def test_a_404_says_what_is_served_and_what_to_do_instead(
    method: str, target: str, advice: str
) -> None:
    with pytest.raises(NotFound) as refused:
        await Call().send(method, target)
    served, _, found = refused.value.message.partition("{id}. ")
    assert "POST /v1/chat/completions, GET /v1/models and" in served
    assert advice in found
    assert bool(advice) == bool(found)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("target", "needs_key"),
    [
        (CHAT, True),
        ("/v1/models", True),
        ("/v1/models/x", True),
        ("/v1/nowhere", True),  # strangers do not learn which paths there are
        ("/v1/tcp_warming", False),
        ("/health", False),
        ("/metrics", False),
        ("/nowhere", False),
    ],
)
async def test_which_paths_need_a_key(target: str, needs_key: bool) -> None:
    call = Call(APE_API_KEY="agent:ape-key")
    failure: Any = None
    try:
        await call.send("PATCH", target)
    except ProxyError as error:
        failure = type(error)
    assert (failure is Unauthorized) is needs_key
    assert failure in (Unauthorized, MethodNotAllowed, NotFound)
    assert call.exchange.client is None


@pytest.mark.anyio
async def test_the_name_of_the_key_is_recorded() -> None:
    call = Call(APE_API_KEY="agent:ape-key")
    await call.send("POST", CHAT, "Authorization: bearer ape-key")
    assert call.exchange.client == "agent"


@pytest.mark.anyio
async def test_a_request_is_complete_when_its_last_byte_has_come() -> None:
    call = Call(MAX_BODY_BYTES="64")
    before = anyio.current_time()
    with pytest.raises(BodyTooLarge):
        await call.send("POST", CHAT, body=b"x" * 65)
    assert call.exchange.received_at is None
    await call.send("POST", CHAT, body=b"x" * 64)
    assert call.exchange.received_at is not None
    assert before <= call.exchange.started_at <= call.exchange.received_at
