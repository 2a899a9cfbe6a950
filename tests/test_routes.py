"""Who answers which path, and who may ask: the table and the key check."""

import json
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import memory_pair

from ape_cerebras import Config
from ape_cerebras.chat.models import ModelList
from ape_cerebras.config.values import read_client_keys
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
from ape_cerebras.http1.messages import Request
from ape_cerebras.limits.api_keys import ApiKeys
from ape_cerebras.net.socket_stream import TimestampedStream
from ape_cerebras.routes import Routes, check_key
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.upstream.client import UpstreamClient

CHAT = "/v1/chat/completions"
KEYS = read_client_keys("first-key,agent:second-key,other:third-key")


def with_authorization(*values: bytes) -> Request:
    headers = tuple((b"authorization", value) for value in values)
    return Request("GET", b"/v1/models", b"1.1", headers)


def refused(*values: bytes) -> bool:
    try:
        check_key(with_authorization(*values), KEYS)
    except Unauthorized:
        return True
    return False


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(1, 4))
def test_the_scheme_is_taken_in_any_case(upper: list[bool], spaces: int) -> None:
    scheme = "".join(c.upper() if up else c for c, up in zip("bearer", upper, strict=True))
    value = scheme + " " * spaces + "second-key"
    assert check_key(with_authorization(value.encode()), KEYS) == "agent"


@pytest.mark.parametrize(
    ("key", "name"), [(b"first-key", None), (b"second-key", "agent"), (b"third-key", "other")]
)
def test_each_key_has_its_name(key: bytes, name: str | None) -> None:
    assert check_key(with_authorization(b"Bearer " + key), KEYS) == name
    assert check_key(with_authorization(b"Bearer " + key + b" \t"), KEYS) == name


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"second-key",
        b"Basic second-key",
        b"Bearersecond-key",
        b"Bearer\tsecond-key",
        b"Bearer second-ke",
        b"Bearer second-keyy",
        b"Bearer SECOND-KEY",
        b"Bearer agent:second-key",
        b"Bearer second-key second-key",
        b"Bearer first-key,second-key",
        b"Bearer second\xe2\x80\x90key",
        b"Bearer \xff\x00\xfe",
        b"Bearer " + b"x" * 10_000,
    ],
)
def test_what_is_no_key(value: bytes) -> None:
    assert refused(value)


def test_no_header_is_no_key() -> None:
    assert refused()


@pytest.mark.parametrize("value", [b"", b"Basic x", b"Bearer x", b"Bearer \xff"])
def test_however_a_key_is_wrong_the_answer_is_the_same(value: bytes) -> None:
    with pytest.raises(Unauthorized) as refusal:
        check_key(with_authorization(value), KEYS)
    assert not vars(refusal.value)
    assert refusal.value.args == ()


def test_of_two_headers_the_last_one_counts() -> None:
    assert refused(b"Bearer second-key", b"Bearer wrong")
    assert not refused(b"Bearer wrong", b"Bearer second-key")


@given(st.binary(max_size=40))
def test_nothing_but_a_key_is_let_in(token: bytes) -> None:
    known = {b"first-key", b"second-key", b"third-key"}
    assert refused(b"Bearer " + token) is (token.strip() not in known)


@given(st.binary(max_size=40))
def test_where_no_key_is_asked_for_none_is_looked_at(value: bytes) -> None:
    assert check_key(with_authorization(value), ()) is None


class Asked:
    """One request sent through the routes of a proxy whose upstream cannot be reached."""

    def __init__(self, **settings: str) -> None:
        self.config = Config.from_environment(
            {"CEREBRAS_API_KEY": "k", "CEREBRAS_BASE_URL": "http://upstream", **settings}
        )
        self.warmed = 0
        self.exchange = Exchange(started_at=0.0)
        self.response = b""

    async def unreachable(self, host: str, port: int) -> TimestampedStream:
        raise ConnectionRefusedError

    async def answer_chat(self, exchange: Exchange, downstream: Downstream) -> None:
        await downstream.respond(exchange, 200, (), b"chat:" + bytes(exchange.body))

    def warm_up(self) -> None:
        self.warmed += 1

    async def send(self, method: str, target: str, *lines: str, body: bytes = b"") -> None:
        """Raises the ProxyError that refuses it."""
        routes = Routes(
            self.config,
            ApiKeys(self.config),
            self.answer_chat,
            ModelList(self.config, UpstreamClient(self.config, self.unreachable)),
            Metrics(self.config, "trio"),
            lambda: (503, {"status": "draining"}),
            self.warm_up,
        )
        head = [f"{method} {target} HTTP/1.1", "Host: a", *lines]
        head += [f"Content-Length: {len(body)}"] if body else []
        client, stream = memory_pair()
        downstream = Downstream(stream, self.config)
        await client.send("\r\n".join([*head, "", ""]).encode() + body)
        self.exchange.started_at = await downstream.wait_for_request() or 0.0
        request = self.exchange.request = await downstream.read_head()
        try:
            await routes.dispatch(routes.main, request, self.exchange, downstream)
        finally:
            self.response = b"".join(stream.sent)

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
        ("GET", "/health", "/health", 503, b'{"status":"draining"}'),
        ("HEAD", "/health", "/health", 503, b""),
        ("HEAD", "/v1/models", "/v1/models", 200, b""),
        ("HEAD", "/metrics", "/metrics", 200, b""),
    ],
)
async def test_the_table(method: str, target: str, route: str, status: int, body: bytes) -> None:
    asked = Asked()
    await asked.send(method, target)
    assert (asked.exchange.route, asked.exchange.status, asked.body) == (route, status, body)
    assert asked.exchange.received_at is not None
    assert asked.warmed == ("tcp_warming" in route)


@pytest.mark.anyio
async def test_the_body_is_read_before_anybody_answers() -> None:
    asked = Asked()
    await asked.send("POST", CHAT, body=b"{}")
    assert bytes(asked.exchange.body) == b"{}"
    assert asked.body == b"chat:{}"


@pytest.mark.anyio
async def test_models_and_metrics() -> None:
    asked = Asked()
    await asked.send("GET", "/v1/models")
    ids = [entry["id"] for entry in json.loads(asked.body)["data"]]
    assert ids == list(asked.config.model_prices.prices)
    await asked.send("GET", "/v1/models/gpt-oss-120b")
    assert asked.exchange.route == "/v1/models/{id}"
    assert json.loads(asked.body)["id"] == "gpt-oss-120b"
    await asked.send("GET", "/metrics", "Accept: application/openmetrics-text")
    assert b"content-type: application/openmetrics-text" in asked.response.lower()
    assert asked.body.endswith(b"# EOF\n")


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
    asked = Asked()
    with pytest.raises(ProxyError) as refused:
        await asked.send(method, target)
    assert type(refused.value) is refusal
    assert asked.exchange.route == route
    assert asked.response == b""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("target", "needs_key"),
    [
        (CHAT, True),
        ("/v1/models", True),
        ("/v1/models/x", True),
        ("/v1/nowhere", True),  # which paths there are is not told to everybody
        ("/v1/tcp_warming", False),
        ("/health", False),
        ("/metrics", False),
        ("/nowhere", False),
    ],
)
async def test_which_paths_ask_for_a_key(target: str, needs_key: bool) -> None:
    asked = Asked(APE_API_KEY="agent:ape-key")
    failure: Any = None
    try:
        await asked.send("PATCH", target)
    except ProxyError as error:
        failure = type(error)
    assert (failure is Unauthorized) is needs_key
    assert failure in (Unauthorized, MethodNotAllowed, NotFound)
    assert asked.exchange.client is None


@pytest.mark.anyio
async def test_the_name_of_the_key_is_noted() -> None:
    asked = Asked(APE_API_KEY="agent:ape-key")
    await asked.send("POST", CHAT, "Authorization: bearer ape-key")
    assert asked.exchange.client == "agent"


@pytest.mark.anyio
async def test_a_request_is_complete_when_its_last_byte_has_come() -> None:
    asked = Asked(MAX_BODY_BYTES="64")
    before = anyio.current_time()
    with pytest.raises(BodyTooLarge):
        await asked.send("POST", CHAT, body=b"x" * 65)
    assert asked.exchange.received_at is None
    await asked.send("POST", CHAT, body=b"x" * 64)
    assert asked.exchange.received_at is not None
    assert before <= asked.exchange.started_at <= asked.exchange.received_at
