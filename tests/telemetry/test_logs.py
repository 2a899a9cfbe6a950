"""Log lines: keys and their order, levels and messages, and text from outside."""

import json
import re
import select
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from characters import CHARACTERS
from exchanges import chat_exchange, ended_exchanges, plain_exchange, stream_exchange, with_timings
from failure_examples import FAILURES, example
from hypothesis import given, settings
from hypothesis import strategies as st
from scraped_metrics import config_with

from ape_cerebras.errors import BadRequest, ClientGone, NotFound, ProxyError, Truncated
from ape_cerebras.http1.messages import Request
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo, Usage
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.outcomes import OUTCOMES
from ape_cerebras.telemetry.trace_context import CallerReader

FIRST = ["timestamp", "level", "message", "trace_id"]
PARTS = ("accepted_prediction_tokens", "rejected_prediction_tokens", "image_tokens")
KEYS = [
    *FIRST,
    *("request_id", "span_id", "parent_span_id"),
    *("route", "method", "status_code", "outcome", "client", "model"),
    *("requested_model", "stream", "request_bytes", "response_bytes"),
    *("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds"),
    *("ttfb_seconds", "ttfo_seconds", "uncertainty_seconds", "total_time_seconds"),
    *("generation_seconds",),
    *("max_chunk_gap_seconds", "tpot_seconds"),
    *("queue_seconds", "prompt_seconds", "completion_seconds", "network_seconds", "wait_seconds"),
    *("connect_seconds", "tls_seconds", "proxy_own_seconds", "overhead_seconds"),
    *("intended_start_lag_seconds", "client_blocked_seconds", "ttft_source", "stamp"),
    *("connection", "total_tokens", "prompt_tokens"),
    *("completion_tokens", "cached_tokens", "reasoning_tokens", *PARTS),
    *("tokens_per_second", "speed_source", "reserved_tokens", "cost_usd", "usage_source"),
    *("finish_reason", "service_tier"),
    *("error", "cause", "upstream_status"),
    *("token_events", "token_reads", "tokens_per_event", "events_per_read"),
]
PLAIN_ONLY_MISSES = {
    *("client", "parent_span_id", "requested_model", "ttfo_seconds"),
    *("uncertainty_seconds",),
    *("generation_seconds", "max_chunk_gap_seconds"),
    *("request_bytes", "response_bytes", "reserved_tokens"),
    *("client_blocked_seconds", "error", "cause", "upstream_status"),
    *("intended_start_lag_seconds", "wait_seconds", "connect_seconds", "tls_seconds"),
    *("token_events", "token_reads", "tokens_per_event", "events_per_read"),
    *(*PARTS, "finish_reason", "service_tier"),
}


def text_of(exchange: Exchange, level: str = "debug") -> str:
    lines: list[bytes] = []
    Logs(level, lines.append).exchange(*with_timings(exchange))
    return b"".join(lines).decode()


def line_of(exchange: Exchange) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(text_of(exchange))
    return line


def test_all_keys_are_in_their_order() -> None:
    line = line_of(
        stream_exchange(
            client="agent",
            parent_span_id="53995c3f42cd8ad8",
            requested_model="small",
            error=Truncated(),
            client_blocked_seconds=0.25,
            upstream_wait_seconds=1.5,
            arrival_seconds=0.0625,
            intended_start_lag_seconds=1.25,
            pool_wait_seconds=0.0002,
            connect_seconds=0.0003,
            tls_seconds=0.0004,
            connection="new",
            request_timestamped=True,
            response_timestamped=True,
            usage=Usage(10, 5, 15, 4, 1, 3, 2, 8),
            body=b"{}",
            response_bytes=1234,
            reserved_tokens=16_400,
            longest_gap=0.25,
            finish_reason="stop",
            service_tier="flex",
        )
    )
    assert list(line) == KEYS
    del line["timestamp"]
    assert line == {
        **dict(zip(PARTS, (3, 2, 8), strict=True)),
        "finish_reason": "stop",
        "service_tier": "flex",
        "level": "error",
        "message": "Exchange failed",
        "trace_id": "trace-1",
        "request_id": "request-1",
        "span_id": "00f067aa0ba902b7",
        "parent_span_id": "53995c3f42cd8ad8",
        "route": "/v1/chat/completions",
        "method": "POST",
        "status_code": 200,
        "outcome": "upstream_truncated",
        "client": "agent",
        "model": "gpt-oss-120b",
        "requested_model": "small",
        "stream": True,
        "request_bytes": 2,
        "response_bytes": 1234,
        "ttft_seconds": 0.203,
        "upstream_ttft_seconds": 0.199,
        "proxy_ttft_seconds": 0.004,
        "ttfb_seconds": 0.099,
        "ttfo_seconds": 0.303,
        "uncertainty_seconds": 0.0625,
        "total_time_seconds": 2.0,
        "generation_seconds": 0.4,
        "max_chunk_gap_seconds": 0.25,
        "tpot_seconds": 0.1,
        "queue_seconds": 0.05,
        "prompt_seconds": 0.06,
        "completion_seconds": 0.4,
        "network_seconds": 0.089,
        "wait_seconds": 0.0002,
        "connect_seconds": 0.0003,
        "tls_seconds": 0.0004,
        "proxy_own_seconds": 0.0031,
        "overhead_seconds": 0.25,
        "intended_start_lag_seconds": 1.25,
        "client_blocked_seconds": 0.25,
        "ttft_source": "measured",
        "stamp": "kernel",
        "connection": "new",
        "total_tokens": 15,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 4,
        "reasoning_tokens": 1,
        "tokens_per_second": 12.5,
        "speed_source": "measured",
        "reserved_tokens": 16_400,
        "cost_usd": 0.00000725,
        "usage_source": "upstream",
        "error": "stream_truncated",
        "cause": "closed",
        "upstream_status": 200,
        "token_events": 4,
        "token_reads": 2,
        "tokens_per_event": 1.25,
        "events_per_read": 2.0,
    }


def test_the_grouping_of_tokens_is_logged_at_level_debug_only() -> None:
    line = json.loads(text_of(stream_exchange(), "info"))
    assert list(line) == [key for key in KEYS if key in line]
    assert not line.keys() & {"token_events", "token_reads", "tokens_per_event", "events_per_read"}


def test_the_keys_of_a_plain_response() -> None:
    line = line_of(plain_exchange())
    assert list(line) == [key for key in KEYS if key not in PLAIN_ONLY_MISSES]
    assert line["message"] == "Chat completion successful"
    assert line["ttft_source"] == line["speed_source"] == "derived"
    assert line["stream"] is False


def test_the_keys_of_an_exchange_without_a_request() -> None:
    error = BadRequest("The request head is malformed.", keeps=False)
    exchange = Exchange(started_at=1.0, finished_at=2.0, trace_id="t", request_id="r", error=error)
    assert list(line_of(exchange)) == [
        *FIRST,
        *("request_id", "span_id", "route", "outcome", "total_time_seconds", "error"),
    ]


def test_the_keys_of_an_exchange_without_a_response() -> None:
    without_response = line_of(
        chat_exchange(head_at=None, upstream_status=None, error=ClientGone())
    )
    assert without_response["ttft_source"] is None
    assert not {"ttfb_seconds", "usage_source", "upstream_status"} & without_response.keys()
    without_usage = line_of(stream_exchange(usage=None, cost=None))
    absent = {"usage_source", "total_tokens", "tokens_per_second", "cost_usd"}
    assert not absent & without_usage.keys()
    estimated = line_of(stream_exchange(usage=None, estimated_usage=Usage(10, 9, 19)))
    assert (estimated["usage_source"], estimated["total_tokens"]) == ("estimated", 19)
    assert not {"tpot_seconds", "tokens_per_second"} & estimated.keys()
    assert "ttft_source" not in line_of(chat_exchange(route="/health"))


@pytest.mark.parametrize("failure", FAILURES)
def test_level_and_message_of_every_error(failure: type[ProxyError]) -> None:
    error = example(failure)
    line = line_of(chat_exchange(error=error))
    assert line["level"] == OUTCOMES[error.outcome].level
    assert line["error"] == error.code
    messages = {
        "client_disconnected": "Client disconnected",
        "refused": "Request refused",
        "unauthorized": "Request refused",
    }
    assert line["message"] == messages.get(error.outcome, "Exchange failed")


@pytest.mark.parametrize(
    ("exchange", "level", "message"),
    [
        (chat_exchange(), "info", "Chat completion successful"),
        (chat_exchange(route="/v1/models"), "info", "Request served"),
        (chat_exchange(route="/health"), "debug", "Request served"),
        (chat_exchange(route="/metrics"), "debug", "Request served"),
        (chat_exchange(route="/health", error=BadRequest("x")), "warning", "Request refused"),
        (chat_exchange(error=ClientGone()), "info", "Client disconnected"),
        (chat_exchange(error=BadRequest("x")), "warning", "Request refused"),
        (chat_exchange(upstream_status=429, status=429), "error", "Exchange failed"),
        (stream_exchange(stream_failed=True), "error", "Exchange failed"),
    ],
)
def test_levels_and_messages(exchange: Exchange, level: str, message: str) -> None:
    line = line_of(exchange)
    assert (line["level"], line["message"]) == (level, message)


LEVELS = ("debug", "info", "warning", "error")


@pytest.mark.parametrize("least", LEVELS)
def test_the_log_level_is_the_least_that_is_written(least: str) -> None:
    written = {
        outcome for outcome in ("info", "warning", "error") if text_of(of_level(outcome), least)
    }
    assert written == set(LEVELS[LEVELS.index(least) :]) - {"debug"}
    lines: list[bytes] = []
    for level in LEVELS:
        Logs(least, lines.append).event(level, "Event")
    assert len(lines) == len(LEVELS) - LEVELS.index(least)


def of_level(level: str) -> Exchange:
    error = {"info": None, "warning": BadRequest("x"), "error": Truncated()}[level]
    return chat_exchange(error=error)


def test_an_event() -> None:
    lines: list[bytes] = []
    Logs("info", lines.append).event("warning", "Listening", address="http://[::1]:80", port=80)
    line = json.loads(lines[0])
    assert list(line) == [*FIRST, "address", "port"]
    assert line["trace_id"] is None
    assert (line["level"], line["message"]) == ("warning", "Listening")


def test_the_timestamp() -> None:
    before = datetime.now(UTC)
    timestamp = line_of(chat_exchange())["timestamp"]
    after = datetime.now(UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)
    milliseconds = before.replace(microsecond=before.microsecond // 1000 * 1000)
    assert milliseconds <= datetime.fromisoformat(timestamp) <= after


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("gpt-oss-120b", "gpt-oss-120b"),
        ("a\u2028b\u2029c\x85", r"a\u2028b\u2029c\x85"),
        ("\x7f", r"\x7f"),
        ("\x1b[31m\r\n\x00", "\x1b[31m\r\n\x00"),
        ('"}\n{"level":"info"', '"}\n{"level":"info"'),
        ("\ud83d", r"\ud83d"),
        ("x" * 10_240, "x" * 256),
        ("\U0001f600" * 10_240, r"\U0001f600" * 25 + r"\U0001"),
    ],
)
def test_text_from_outside_is_escaped_and_cut(text: str, logged: str) -> None:
    exchange = chat_exchange(
        model=text,
        requested_model=text + ".",
        request=Request(text, b"/", b"1.1", ()),
    )
    written = text_of(exchange)
    line = json.loads(written)
    assert line["model"] == line["method"] == logged
    assert line["requested_model"] == (logged + ".")[:256].replace("\\U0001.", "\\U0001f")
    assert written.isascii()
    assert written[:-1].isprintable()
    assert written.endswith("\n")


def test_each_line_has_the_number_of_its_worker() -> None:
    lines: list[bytes] = []
    logs = Logs("debug", lines.append, worker=2)
    logs.exchange(*with_timings(stream_exchange(error=Truncated())))
    logs.event("info", "Worker serves", process=1)
    exchange, event = map(json.loads, lines)
    assert list(exchange) == [*(key for key in KEYS if key in exchange), "worker"]
    assert list(event) == [*FIRST, "process", "worker"]
    assert exchange["worker"] == event["worker"] == 2


def test_no_header_body_or_query_is_logged() -> None:
    secret = "csk-secret"
    exchange = chat_exchange(
        request=Request(
            "POST",
            f"/v1/chat/completions?key={secret}".encode(),
            b"1.1",
            ((b"authorization", f"Bearer {secret}".encode()),),
        ),
        body=secret.encode(),
        traceparent=secret.encode(),
        tracestate=secret.encode(),
    )
    assert secret not in text_of(exchange)


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        ("0.00000725", "0.00000725"),
        ("7.25E-9", "0.00000000725"),
        ("0E-6", "0.000000"),
        ("1E+3", "1000"),
        ("0.1234567890123456789012345678", "0.1234567890123456789012345678"),
    ],
)
def test_cost_is_an_exact_decimal(cost: str, text: str) -> None:
    written = text_of(stream_exchange(cost=Decimal(cost)))
    assert f'"cost_usd":{text},' in written
    assert json.loads(written, parse_float=Decimal)["cost_usd"] == Decimal(cost)


LONGEST_HEADERS = (
    (b"user-agent", b'"' * 999),
    (b"x-session-id", b"s" * 128),
    (b"x-agent", b"a" * 128),
    (b"x-stainless-retry-count", b"9999"),
)


@pytest.mark.parametrize("model", ["\x01" * 300, '"' * 300, "\u2028" * 300])
def test_the_longest_line_fits_one_atomic_pipe_write(model: str) -> None:
    """Several workers write to one pipe, which keeps lines of at most PIPE_BUF bytes apart."""
    count = 2**63 - 1
    longest = stream_exchange(
        model=model,
        requested_model=None,
        address="f" * 40,
        request=Request("P" * 99, b'/"' * 999, b"1.1", LONGEST_HEADERS),
        response_bytes=count,
        reserved_tokens=count,
        longest_gap=123456.123456,
        upstream_headers=((b"inference-id", b"i" * 128), (b"cf-ray", b"c" * 128)),
        finish_reason="other",
        service_tier="other",
        client="c" * 64,
        trace_id="t" * 128,
        request_id="r" * 128,
        usage=Usage(count, count, count, count, count),
        time_info=TimeInfo(1.7e-308, 123456789.123456, 1.7e308),
        cost=Decimal("123456789012345678.1234567890123456789012345678"),
        error=NotFound(),
        client_blocked_seconds=123456.123456,
        send_seconds=123456.123456,
        intended_start_lag_seconds=86399.123456,
        pool_wait_seconds=123456.123456,
        connect_seconds=123456.123456,
        tls_seconds=123456.123456,
    )
    lines: list[bytes] = []
    callers = CallerReader(config_with(AGENT_ID_HEADERS="x-agent"))
    Logs("debug", lines.append, 1000, "r" * 64, callers).exchange(*with_timings(longest))
    assert len(lines[0]) < select.PIPE_BUF


@settings(max_examples=200)
@given(ended_exchanges(), st.text(CHARACTERS))
def test_any_exchange_makes_one_valid_line(exchange: Exchange, model: str) -> None:
    exchange.model = model
    written = text_of(exchange)
    assert written.count("\n") == 1
    line = json.loads(written)
    assert list(line) == [key for key in KEYS if key in line]
    assert set(FIRST) <= line.keys()
    optional = line.keys() - {"trace_id", "ttft_source"}
    assert all(line[key] is not None for key in optional)
