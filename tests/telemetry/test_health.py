"""Degradation: exact bounds, against the definition of a percentile."""

import math
from typing import Any

import pytest
from exchanges import chat_exchange, with_timings
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.errors import BadRequest, ClientGone, Overloaded, Truncated
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.health import Degradation
from ape_cerebras.telemetry.metric_table import DEGRADED_REASONS

TARGET = 0.2
OFFSETS = (0.0, -0.5, -1000.25, 0.75, 1e6, 123456.999)


def timed(ttft: float | None, at: float = 0.0, **fields: Any) -> Exchange:
    """An exchange that ended at that moment."""
    if ttft is not None:
        fields |= {"first_token_at": 100.0, "first_token_sent_at": 100.0 + ttft}
    return chat_exchange(finished_at=at, **fields)


def degradation(*exchanges: Exchange, target: float | None = TARGET) -> Degradation:
    watched = Degradation(target)
    for exchange in exchanges:
        watched.observe(*with_timings(exchange))
    return watched


def test_without_exchanges_nothing_is_degraded() -> None:
    assert degradation().reasons(0.0) == ()


@pytest.mark.parametrize(
    ("hits", "misses", "degraded"),
    [
        (0, 19, False),  # too few to decide
        (0, 20, True),
        (20, 0, False),
        (18, 1, False),
        (19, 1, False),  # rank 19 of 20
        (18, 2, True),
        (38, 2, False),
        (37, 2, True),
        (94, 6, True),
        (95, 5, False),
    ],
)
def test_the_95th_percentile(hits: int, misses: int, degraded: bool) -> None:
    exchanges = [timed(TARGET)] * hits + [timed(TARGET + 0.000001)] * misses
    assert degradation(*exchanges).reasons(0.0) == (("ttft",) if degraded else ())


@given(st.lists(st.none() | st.sampled_from((0.1, 0.2, 0.200001, 3.0)), max_size=120))
def test_the_percentile_is_the_nearest_rank(ttfts: list[float | None]) -> None:
    known = sorted(ttft for ttft in ttfts if ttft is not None)
    p95 = known[math.ceil(0.95 * len(known)) - 1] if known else 0.0
    reasons = degradation(*(timed(ttft) for ttft in ttfts)).reasons(0.0)
    assert ("ttft" in reasons) is (len(known) >= 20 and p95 > TARGET)


@pytest.mark.parametrize("reason", DEGRADED_REASONS)
def test_a_share_near_the_limit_does_not_change_it_back_and_forth(reason: str) -> None:
    """It recovers at half of the share at which it degrades."""
    bad = {"ttft": timed(1.0), "failures": timed(0.1, error=Truncated())}[reason]
    watched = degradation(*[timed(0.1)] * 37, bad, bad)
    assert watched.reasons(0.0) == (reason,)  # 2 of 39
    for _ in range(40):
        watched.observe(*with_timings(timed(0.1)))
        assert watched.reasons(0.0) == (reason,)  # down to 2 of 79
    watched.observe(*with_timings(timed(0.1)))
    assert watched.reasons(0.0) == ()  # 2 of 80
    for _ in range(2):
        watched.observe(*with_timings(bad))
        assert watched.reasons(0.0) == ()  # 4 of 82
    watched.observe(*with_timings(bad))
    assert watched.reasons(0.0) == (reason,)  # 5 of 83


def test_what_it_is_decided_by() -> None:
    failed = [timed(1.0, error=Truncated())] * 5 + [timed(1.0, error=Overloaded())] * 6
    watched = degradation(*[timed(0.1)] * 33, *failed)
    assert watched.reasons(0.0) == DEGRADED_REASONS
    shared = {"share": 0.25, "target": 0.05, "samples": 44}
    assert watched.figures("failures", 0.0) == {**shared, "main_outcome": "overloaded"}
    assert watched.figures("ttft", 0.0) == {
        **shared,
        "main_outcome": "completed",
        "ttft_target_seconds": TARGET,
    }
    assert watched.figures("failures", 90.0)["samples"] == 0


def test_without_a_target_no_ttft_degrades() -> None:
    assert degradation(*[timed(1000.0)] * 30, target=None).reasons(0.0) == ()


@pytest.mark.parametrize(
    ("successes", "failures", "degraded"),
    [
        (0, 19, False),  # too few to decide
        (0, 20, True),
        (19, 1, False),  # 5 % are not more than 5 %
        (18, 2, True),
        (18, 1, False),
        (37, 2, True),
        (38, 2, False),
        (95, 5, False),
        (94, 6, True),
    ],
)
def test_the_share_of_failures(successes: int, failures: int, degraded: bool) -> None:
    exchanges = [timed(None)] * successes + [timed(None, error=Truncated())] * failures
    assert degradation(*exchanges).reasons(0.0) == (("failures",) if degraded else ())


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"error": Overloaded()}, True),
        ({"status": 429, "upstream_status": 429}, True),
        ({"status": 500, "upstream_status": 500}, True),
        ({"stream_failed": True}, True),
        ({"error": ClientGone()}, False),
        ({"error": BadRequest("x")}, False),
        ({"status": 400, "upstream_status": 400}, False),
    ],
)
def test_failures_of_clients_do_not_count(fields: dict[str, Any], counts: bool) -> None:
    reasons = degradation(*(timed(None, **fields) for _ in range(20))).reasons(0.0)
    assert reasons == (("failures",) if counts else ())


def test_both_reasons_are_in_their_order() -> None:
    exchanges = (timed(1.0, error=Truncated()) for _ in range(20))
    assert degradation(*exchanges).reasons(0.0) == DEGRADED_REASONS == ("ttft", "failures")


@pytest.mark.parametrize("offset", OFFSETS)
def test_an_exchange_counts_for_60_whole_seconds(offset: float) -> None:
    watched = degradation(*[timed(1.0, offset)] * 20)
    last = math.floor(offset) + 60
    assert watched.reasons(offset) == ("ttft",)
    assert watched.reasons(math.nextafter(last, -math.inf)) == ("ttft",)
    assert watched.reasons(last) == ()
    assert watched.reasons(last + 1000) == ()


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_window_slides(offset: float) -> None:
    start = math.floor(offset)
    bad = [timed(None, start + 0.9, error=Truncated()) for _ in range(10)]
    good = [timed(None, start + 30.1) for _ in range(10)]
    late = [timed(None, start + 59.9, error=Truncated())]
    watched = degradation(*bad, *good, *late)
    assert watched.reasons(start + 59.999) == ("failures",)
    assert watched.reasons(start + 60.0) == ("failures",)  # 1 of 11 is left
    for _ in range(29):
        watched.observe(*with_timings(timed(None, start + 60.5)))
    assert watched.reasons(start + 61.0) == ()  # 1 of 40
    for _ in range(2):
        watched.observe(*with_timings(timed(None, start + 61.0, error=Truncated())))
    assert watched.reasons(start + 61.0) == ("failures",)  # 3 of 42


def test_an_exchange_observed_out_of_order_counts() -> None:
    """Its last byte was written before; it counts with the other."""
    watched = degradation(*[timed(0.1, 10.0)] * 19, timed(1.0, 9.9), timed(1.0, 9.9))
    assert watched.reasons(69.9) == ("ttft",)
    assert watched.reasons(70.0) == ()


@given(
    st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60),
    st.floats(-1e5, 1e5),
    st.floats(0, 200),
)
def test_the_window_agrees_with_a_full_count(
    steps: list[tuple[float, bool]], offset: float, later: float
) -> None:
    watched, ended, now = Degradation(None), [], offset
    for step, failed in steps:
        now += step
        ended.append((math.floor(now), failed))
        watched.observe(*with_timings(timed(None, now, error=Truncated() if failed else None)))
    now += later
    recent = [failed for second, failed in ended if second > math.floor(now) - 60]
    degraded = len(recent) >= 20 and sum(recent) > 0.05 * len(recent)
    assert watched.reasons(now) == (("failures",) if degraded else ())
