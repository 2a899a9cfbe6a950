"""Trace context by the W3C's rules, and ids that are safe to log and to send back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.telemetry.trace_context import intended_start_lag, request_id, trace_context

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00f067aa0ba902b7"
NEW_ID = re.compile(r"[0-9a-f]{32}")
VALID = b"00-%s-%s-01" % (TRACE, PARENT)


def parts(traceparent: bytes) -> tuple[str, str, str]:
    """Trace id, span id and flags of the header sent upstream, which must be valid."""
    match = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])", traceparent.decode())
    assert match is not None
    assert match[1].strip("0")
    assert match[2].strip("0")
    return match[1], match[2], match[3]


@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (VALID, "01"),
        (b"00-%s-%s-00" % (TRACE, PARENT), "00"),
        # Only "sampled" is known: the other bits are not handed on.
        (b"00-%s-%s-ff" % (TRACE, PARENT), "01"),
        (b"00-%s-%s-02" % (TRACE, PARENT), "00"),
        # The known fields of a future version are read.
        (b"01-%s-%s-01" % (TRACE, PARENT), "01"),
        (b"cc-%s-%s-01-what-the-future-holds" % (TRACE, PARENT), "01"),
        (b"cc-%s-%s-01-" % (TRACE, PARENT), "01"),
        (b"fe-%s-%s-fc" % (TRACE, PARENT), "00"),
    ],
)
def test_a_valid_traceparent_is_continued(traceparent: bytes, flags: str) -> None:
    context = trace_context(None, traceparent)
    trace_id, span_id, sent_flags = parts(context.traceparent)
    assert context.trace_id == trace_id == TRACE.decode()
    assert sent_flags == flags
    assert span_id != PARENT.decode()


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        b"",
        b"-",
        VALID[:-1],
        VALID + b"0",
        VALID + b"-",
        VALID + b"-more",
        VALID.upper(),
        b" " + VALID,
        VALID + b"\n",
        VALID.replace(b"-", b"_"),
        b"ff-%s-%s-01" % (TRACE, PARENT),
        b"FE-%s-%s-01" % (TRACE, PARENT),
        b"0-%s-%s-01" % (TRACE, PARENT),
        b"000-%s-%s-01" % (TRACE, PARENT),
        b"cc-%s-%s-01.more" % (TRACE, PARENT),
        b"00-%s-%s-01" % (b"0" * 32, PARENT),
        b"00-%s-%s-01" % (TRACE, b"0" * 16),
        b"00-%s-%s-01" % (TRACE[:-1], PARENT),
        b"00-%s-%s-01" % (TRACE + b"0", PARENT),
        b"00-%s-%s-01" % (TRACE[:-1] + b"g", PARENT),
        b"00-%s-%s-0g" % (TRACE, PARENT),
        b"00-%s-%s" % (TRACE, PARENT),
        b"%s,%s" % (VALID, VALID),
    ],
)
def test_an_invalid_traceparent_starts_a_new_trace(traceparent: bytes | None) -> None:
    context = trace_context(None, traceparent)
    trace_id, _, flags = parts(context.traceparent)
    assert context.trace_id == trace_id != TRACE.decode()
    assert flags == "00"


def test_every_span_and_every_new_trace_has_a_new_id() -> None:
    spans = {parts(trace_context(None, VALID).traceparent)[1] for _ in range(100)}
    traces = {trace_context(None, None).trace_id for _ in range(100)}
    assert len(spans) == len(traces) == 100


def test_x_trace_id_wins_in_the_logs_and_traceparent_upstream() -> None:
    context = trace_context(b"agent:7/call".replace(b"/", b"."), VALID)
    assert context.trace_id == "agent:7.call"
    assert parts(context.traceparent)[0] == TRACE.decode()
    assert parts(context.traceparent)[2] == "01"


def test_an_x_trace_id_in_w3c_form_is_sent_upstream_too() -> None:
    context = trace_context(TRACE, None)
    assert context.trace_id == parts(context.traceparent)[0] == TRACE.decode()


@pytest.mark.parametrize("x_trace_id", [b"abc", TRACE.upper(), b"0" * 32, TRACE + b"0"])
def test_an_x_trace_id_in_another_form_is_only_logged(x_trace_id: bytes) -> None:
    context = trace_context(x_trace_id, None)
    assert context.trace_id == x_trace_id.decode()
    assert parts(context.traceparent)[0] != x_trace_id.decode()


UNSAFE = [
    b"",
    b"a b",
    b"a\n",
    b"a\tb",
    b"a\xff",
    b"\xe2\x80\xa8",
    b'"',
    b"a" * 129,
    b"<script>",
    b"${jndi:ldap://x}",
    b"%0d%0aSet-Cookie: x",
    b"a/b",
]


@pytest.mark.parametrize("text", UNSAFE)
def test_an_unsafe_id_is_replaced(text: bytes) -> None:
    assert NEW_ID.fullmatch(request_id(text))
    assert NEW_ID.fullmatch(trace_context(text, None).trace_id)
    assert trace_context(text, VALID).trace_id == TRACE.decode()


@pytest.mark.parametrize("text", [b"abc-123", b"A.b_c-9", b"a" * 128, b"0"])
def test_a_well_formed_id_is_kept(text: bytes) -> None:
    assert request_id(text) == text.decode()
    assert trace_context(text, None).trace_id == text.decode()


def test_without_an_id_a_new_one_is_made() -> None:
    assert NEW_ID.fullmatch(request_id(None))
    assert request_id(None) != request_id(None)


@given(st.binary(max_size=200) | st.none(), st.binary(max_size=100) | st.none())
def test_no_input_makes_an_unsafe_id(one: bytes | None, other: bytes | None) -> None:
    context = trace_context(one, other)
    parts(context.traceparent)
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", context.trace_id)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", request_id(one))


NOW = 1_795_397_371.25


@pytest.mark.parametrize(
    ("header", "lag"),
    [
        (b"1795397371.25", 0.0),
        (b"1795397371", 0.25),
        (b"1795397370.1234567", 1.126543),
        (b"1795397371.26", None),  # ahead of us: the clocks disagree
        (b"1795310970", None),  # more than a day ago
        (b"1795397371250", None),  # milliseconds
        (b"0", None),
        (b"-1", None),
        (b"1.79e9", None),
        (b"nan", None),
        (b"inf", None),
        (b"2026-11-23T01:00:00Z", None),
        (b"", None),
        (None, None),
    ],
)
def test_the_intended_start_lag(header: bytes | None, lag: float | None) -> None:
    assert intended_start_lag(header, NOW) == lag


@given(st.binary(max_size=30))
def test_any_intended_start_gives_a_lag_within_bounds_or_none(header: bytes) -> None:
    lag = intended_start_lag(header, NOW)
    assert lag is None or 0 <= lag <= 86_400
