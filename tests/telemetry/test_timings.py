"""Every derived value, with exact numbers; see ``exchanges`` for the moments they come from."""

from decimal import Decimal
from typing import Any

import pytest
from exchanges import chat_exchange, ended_exchanges, plain_exchange, stream_exchange
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ape_cerebras.errors import (
    ClientGone,
    ClientStalled,
    IdleTimeout,
    InternalError,
    ProxyError,
    Truncated,
    Unauthorized,
)
from ape_cerebras.http1.messages import Request
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo, Usage
from ape_cerebras.telemetry.outcomes import OUTCOMES
from ape_cerebras.telemetry.timings import Timings

DURATIONS = (
    "ttft_seconds",
    "upstream_ttft_seconds",
    "proxy_ttft_seconds",
    "ttfb_seconds",
    "ttfo_seconds",
    "total_time_seconds",
    "overhead_seconds",
    "generation_seconds",
    "tpot_seconds",
    "queue_seconds",
    "prompt_seconds",
    "completion_seconds",
    "network_seconds",
)


def times(timings: Timings) -> dict[str, float | None]:
    return {name: getattr(timings, name) for name in (*DURATIONS, "tokens_per_second")}


def test_the_times_of_a_stream() -> None:
    timings = Timings.of(stream_exchange(upstream_wait_seconds=1.7, client_blocked_seconds=0.2))
    assert timings.ttft_source == "measured"
    assert times(timings) == {
        "ttft_seconds": 0.203,
        "upstream_ttft_seconds": 0.199,
        "proxy_ttft_seconds": 0.004,
        "ttfb_seconds": 0.099,
        "ttfo_seconds": 0.303,
        "total_time_seconds": 2.0,
        "overhead_seconds": 0.1,
        "generation_seconds": 0.4,
        "tpot_seconds": 0.1,
        "queue_seconds": 0.05,
        "prompt_seconds": 0.06,
        "completion_seconds": 0.4,
        "network_seconds": 0.089,
        "tokens_per_second": 12.5,
    }


def test_the_times_of_a_plain_response() -> None:
    timings = Timings.of(plain_exchange(upstream_wait_seconds=0.998))
    assert timings.ttft_source == timings.speed_source == "derived"
    assert times(timings) == {
        "ttft_seconds": 0.602,  # 101.0 - 0.4 - 100.0, and 2 ms to pass the reply on
        "upstream_ttft_seconds": 0.599,
        "proxy_ttft_seconds": 0.003,
        "ttfb_seconds": 0.099,
        "ttfo_seconds": None,
        "total_time_seconds": 1.002,
        "overhead_seconds": 0.004,
        "generation_seconds": None,
        "tpot_seconds": 0.1,  # of the completion_time
        "queue_seconds": 0.05,
        "prompt_seconds": 0.06,
        "completion_seconds": 0.4,
        "network_seconds": 0.489,
        "tokens_per_second": 12.5,
    }


@pytest.mark.parametrize(
    ("fields", "uncertainty"),
    [
        ({}, None),
        ({"send_seconds": 0.0001, "arrival_seconds": 0.00005, "token_send_seconds": 0.0}, None),
        ({"send_seconds": 0.0002}, 0.0002),
        ({"arrival_seconds": 0.05, "token_send_seconds": 0.00009}, 0.05),
        ({"send_seconds": 0.004, "arrival_seconds": 0.03, "token_send_seconds": 0.002}, 0.036),
    ],
)
def test_times_tell_by_how_much_they_may_be_off(
    fields: dict[str, float], uncertainty: float | None
) -> None:
    timings = Timings.of(stream_exchange(**fields))
    assert timings.uncertainty_seconds == uncertainty
    assert times(timings) == times(Timings.of(stream_exchange()))


@pytest.mark.parametrize(
    "fields",
    [
        {"time_info": None},
        {"time_info": TimeInfo(0.05, 0.06, None)},
        {"time_info": TimeInfo(0.05, 0.06, 1.0)},  # longer than the whole exchange: not plausible
        {"last_body_at": None},
        {"sent_at": None},
        {"error": ClientGone()},
        {"error": Truncated()},
        {"stream_failed": True},  # converted to a stream that had no token
        {"usage": Usage(10, 0, 10, 0, 0)},  # there was no token
        {"stream": True},  # a stream without a token
    ],
)
def test_no_ttft_is_derived_without_its_inputs(fields: dict[str, Any]) -> None:
    timings = Timings.of(plain_exchange(**fields))
    assert timings.ttft_source is timings.speed_source is None
    assert timings.tpot_seconds is timings.tokens_per_second is None
    for name in ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "network_seconds"):
        assert getattr(timings, name) is None, name


def test_a_derived_ttft_is_not_before_the_request_was_sent() -> None:
    timings = Timings.of(plain_exchange(sent_at=100.5, time_info=TimeInfo(None, None, 0.5)))
    assert timings.ttft_source == "derived"
    assert timings.upstream_ttft_seconds == 0.0


def test_a_first_token_after_the_disconnect_has_no_ttft() -> None:
    timings = Timings.of(
        stream_exchange(first_token_sent_at=None, first_output_sent_at=None, error=ClientGone())
    )
    assert timings.ttft_source is None
    names = ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "ttfo_seconds")
    for name in (*names, "network_seconds"):
        assert getattr(timings, name) is None, name
    assert timings.generation_seconds == 0.4


def test_a_ttft_is_derived_without_usage() -> None:
    assert Timings.of(plain_exchange(usage=None)).ttft_seconds == 0.602


@settings(max_examples=400)
@given(ended_exchanges())
def test_the_times_of_any_exchange(exchange: Exchange) -> None:
    """One property of three parts: making an exchange costs most of it."""
    timings = Timings.of(exchange)
    assert_two_parts_of_ttft_add_up_exactly_in_decimal(timings)
    assert_all_parts_of_ttft_add_up_where_all_are_known(exchange, timings)
    assert_times_are_never_negative_and_rounded_to_microseconds(timings)


def assert_two_parts_of_ttft_add_up_exactly_in_decimal(timings: Timings) -> None:
    parts = (timings.upstream_ttft_seconds, timings.proxy_ttft_seconds)
    if timings.ttft_seconds is None:
        assert parts == (None, None)
        assert timings.ttft_source is None
    else:
        assert Decimal(repr(timings.ttft_seconds)) == sum(Decimal(repr(part)) for part in parts)
        assert timings.ttft_source in ("measured", "derived")


def assert_all_parts_of_ttft_add_up_where_all_are_known(
    exchange: Exchange, timings: Timings
) -> None:
    making = (timings.wait_seconds, exchange.connect_seconds, exchange.tls_seconds)
    waits = (exchange.retry_seconds, *making)
    ours = [timings.proxy_own_seconds, *(each for each in waits if each is not None)]
    theirs = [timings.queue_seconds, timings.prompt_seconds, timings.network_seconds]
    parts = [Decimal(repr(part)) for part in (*ours, *theirs) if part is not None]
    if len(parts) == len(ours) + len(theirs):
        assert sum(parts) == Decimal(repr(timings.ttft_seconds))


@pytest.mark.parametrize(
    ("request_timestamped", "response_timestamped", "source"),
    [
        (True, True, "kernel"),
        (True, None, "kernel"),  # no request was sent upstream
        (True, False, "read"),
        (False, True, "read"),
    ],
)
def test_the_source_of_timestamps(
    request_timestamped: bool, response_timestamped: bool | None, source: str
) -> None:
    how = {"request_timestamped": request_timestamped, "response_timestamped": response_timestamped}
    assert Timings.of(stream_exchange(**how)).timestamp_source == source
    assert Timings.of(stream_exchange(**how, received_at=None)).timestamp_source is None


@pytest.mark.parametrize(("blocked", "backlogged"), [(0.0, True), (9.0, False), (9.0, True)])
def test_generation_is_not_measured_behind_a_slow_client(blocked: float, backlogged: bool) -> None:
    fields = {"client_blocked_seconds": blocked, "response_backlogged": backlogged}
    timings = Timings.of(stream_exchange(**fields))
    measured = (timings.generation_seconds, timings.tpot_seconds, timings.tokens_per_second)
    assert measured == ((None, None, None) if blocked and backlogged else (0.4, 0.1, 12.5))
    assert timings.upstream_ttft_seconds == 0.199


def test_tokens_per_event_and_events_per_read() -> None:
    timings = Timings.of(stream_exchange())
    assert (timings.tokens_per_event, timings.events_per_read) == (1.25, 2.0)
    timings = Timings.of(chat_exchange())
    assert (timings.tokens_per_event, timings.events_per_read) == (None, None)


def assert_times_are_never_negative_and_rounded_to_microseconds(timings: Timings) -> None:
    for name in DURATIONS:
        value = getattr(timings, name)
        assert value is None or (value >= 0 and round(value, 6) == value), name
    assert timings.outcome in OUTCOMES


@pytest.mark.parametrize(
    ("tokens", "last_token_at", "tpot", "per_second"),
    [
        (0, 100.6, None, None),
        (1, 100.2, None, None),
        (1, 100.6, None, 2.5),
        (2, 100.6, 0.4, 5.0),
        (3, 100.6, 0.2, 7.5),
        (3, 100.2, None, None),  # all in one segment: no time for each is known
        (801, 100.6, 0.0005, 2002.5),
    ],
)
def test_time_per_token(
    tokens: int, last_token_at: float, tpot: float | None, per_second: float | None
) -> None:
    usage = Usage(10, tokens, 10 + tokens, 0, 0)
    timings = Timings.of(stream_exchange(usage=usage, last_token_at=last_token_at))
    assert (timings.tpot_seconds, timings.tokens_per_second) == (tpot, per_second)


def test_no_rates_without_usage() -> None:
    timings = Timings.of(stream_exchange(usage=None))
    assert (timings.tpot_seconds, timings.tokens_per_second) == (None, None)


def test_ttfo_is_measured_for_reasoning_only() -> None:
    assert Timings.of(stream_exchange(has_reasoning=False)).ttfo_seconds is None
    assert Timings.of(stream_exchange(first_output_sent_at=None)).ttfo_seconds is None


@pytest.mark.parametrize(
    ("time_info", "network"),
    [
        (None, None),
        (TimeInfo(None, 0.06, 0.4), None),
        (TimeInfo(0.05, None, 0.4), None),
        (TimeInfo(0.0, 0.0, None), 0.199),
        (TimeInfo(0.1, 0.099, None), 0.0),
        (TimeInfo(0.1, 0.1, None), None),  # more than the upstream TTFT
    ],
)
def test_network_time(time_info: TimeInfo | None, network: float | None) -> None:
    assert Timings.of(stream_exchange(time_info=time_info)).network_seconds == network


@pytest.mark.parametrize(
    ("upstream", "client", "overhead"), [(1.0, 0.5, 0.5), (2.0, 0.0, 0.0), (2.0, 1.0, 0.0)]
)
def test_overhead(upstream: float, client: float, overhead: float) -> None:
    waits = {"upstream_wait_seconds": upstream, "client_blocked_seconds": client}
    timings = Timings.of(chat_exchange(**waits))
    assert timings.overhead_seconds == overhead


def test_an_incomplete_request_has_a_total_time_only() -> None:
    """Its time is counted from its first byte, and was spent waiting for the client."""
    timings = Timings.of(chat_exchange(received_at=None, error=Unauthorized()))
    assert timings.total_time_seconds == 2.5
    assert timings.overhead_seconds is None
    assert timings.ttft_seconds is None


@pytest.mark.parametrize(
    ("status", "upstream_status", "stream_failed", "error", "outcome", "code"),
    [
        (200, 200, False, None, "completed", None),
        (200, None, False, None, "completed", None),  # a response of the proxy itself
        (503, None, False, None, "completed", None),
        (429, 429, False, None, "upstream_rate_limited", "upstream_rate_limited"),
        (400, 400, False, None, "upstream_rejected", "upstream_rejected"),
        (500, 500, False, None, "upstream_failed", "upstream_failed"),
        (200, 200, True, None, "upstream_stream_error", "upstream_stream_error"),
        (200, 200, False, IdleTimeout(), "upstream_stalled", "stream_timeout"),
        (200, 200, False, ClientGone(), "client_disconnected", "client_disconnected"),
        (200, 200, False, ClientStalled(), "client_stalled", "client_stalled"),
        (500, None, False, InternalError(), "internal_error", "internal_error"),
        # An SDK that reads an error event raises, and disconnects.
        (200, 200, True, ClientGone(), "upstream_stream_error", "upstream_stream_error"),
        (200, 200, True, Truncated(), "upstream_stream_error", "upstream_stream_error"),
    ],
)
def test_outcomes(
    status: int,
    upstream_status: int | None,
    stream_failed: bool,
    error: ProxyError | None,
    outcome: str,
    code: str | None,
) -> None:
    timings = Timings.of(
        chat_exchange(
            status=status, upstream_status=upstream_status, stream_failed=stream_failed, error=error
        )
    )
    assert (timings.outcome, timings.error_code) == (outcome, code)
    assert timings.traits is OUTCOMES[outcome]


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        ({"usage": Usage(1, 1, 2, 0, 0)}, "upstream"),
        ({"estimated_usage": Usage(1, 1, 2)}, "estimated"),
        ({"usage": Usage(1, 1, 2), "estimated_usage": Usage(1, 3, 4)}, "estimated"),
        ({}, None),
    ],
)
def test_the_source_of_usage(fields: dict[str, Any], source: str | None) -> None:
    assert Timings.of(chat_exchange(**fields)).usage_source == source


def test_an_aliased_model() -> None:
    assert chat_exchange().aliased_model is None
    assert chat_exchange(requested_model="llama").aliased_model == "llama"


def test_an_exchange_without_a_request_has_no_method() -> None:
    assert Exchange(started_at=0.0).method is None
    assert chat_exchange().method == "POST"


def test_path_and_headers_of_a_request() -> None:
    headers = ((b"x", b"1"), (b"y", b""), (b"x", b"2"))
    request = Request("GET", b"/health?a=/b?c", b"1.1", headers)
    assert request.path == b"/health"
    assert [request.header(name) for name in (b"x", b"y", b"z")] == [b"2", b"", None]


@example(1e306)
@given(st.floats(0, 1e6))
def test_times_are_rounded_to_the_nearest_microsecond(seconds: float) -> None:
    total = Timings.of(chat_exchange(received_at=0.0, finished_at=seconds)).total_time_seconds
    assert total == round(total, 6)
    assert total == pytest.approx(seconds, rel=1e-15, abs=0.501e-6)
