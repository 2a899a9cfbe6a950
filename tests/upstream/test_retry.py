"""The decisions on retries: plain functions over values."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.errors import (
    ClientGone,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    InvalidResponse,
    KeyRefused,
    Overloaded,
    ProxyError,
    ResponseWithheld,
    TlsFailed,
    Truncated,
)
from ape_cerebras.upstream.retry import (
    RetryBudget,
    objection,
    pause_before,
    read_retry_after,
    reason_to_retry,
)

FINAL = (
    *(TlsFailed, InvalidResponse, ResponseWithheld, KeyRefused, Truncated, FirstByteTimeout),
    *(IdleTimeout, Overloaded, ClientGone),
)


@pytest.mark.parametrize("error", [ConnectFailed, ConnectTimeout])
def test_without_a_connection_nothing_was_sent(error: type[ProxyError]) -> None:
    assert reason_to_retry(error(), None, None) == "connect"


@pytest.mark.parametrize("error", FINAL)
@pytest.mark.parametrize("status", [None, 200, 503])
def test_other_failures_are_final(error: type[ProxyError], status: int | None) -> None:
    assert reason_to_retry(error(), status, None) is None


@pytest.mark.parametrize("status", range(200, 600))
def test_responses(status: int) -> None:
    again = status in (500, 502, 503, 504, 521, 522, 523, 530)
    for code in (None, "request_quota_exceeded", "token_quota_exceeded", "x"):
        assert reason_to_retry(None, status, code) == (str(status) if again else None)
    if status == 429:
        assert reason_to_retry(None, status, "queue_exceeded") == "queue_exceeded"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"1", 1.0),
        (b"1.5", 1.5),
        (b"120", 120.0),
        (b".5", 0.5),
        (b"1.", 1.0),
        (b"11.382867097854614123456789", 11.382867097854614),
        (b"9" * 10, 1e9),
        (b"9" * 5000, 1e9),
        (b"Thursday, 01-Jan-70 00:16:50 GMT", 10.0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777 - 1000.0),
        (b"Sun Nov  6 08:49:37 1994", 784111777 - 1000.0),
        (b"Thu Jan  1 00:16:50 1970", 10.0),
        (b"Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),  # that is over
    ],
)
def test_retry_after(value: bytes, seconds: float) -> None:
    assert read_retry_after(value, 1000.0) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(
            b"-1",
            b"+1",
            b"1s",
            b"1,2",
            b".",
            b"1..5",
            b"nan",
            b"inf",
            b"1e3",
            b"0x1",
            b"soon",
            b"1 2",
        ),
        *("٥".encode(), b"Thu, 01-Jan-70 00:16:50 GMT", b"Thu Jan 32 00:16:50 1970"),
        *(b"Thu, 31 Feb 2026 00:00:00 GMT", b"Thu, 01 Jan 1970 00:00:60 GMT"),
        *(b"Thu, 01 Jan 1970 ::::0000 GMT", b"Thu, 01 Xyz 1970 00:00:00 GMT"),
        b"Thu, 01 Jan 1970 00:00:00 +0100",
    ],
)
def test_a_malformed_retry_after(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whose text nobody reads
        read_retry_after(value, 1000.0)


@given(st.from_regex(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT|.*|[0-9]+"))
def test_any_retry_after_is_a_duration_or_malformed(value: bytes) -> None:
    try:
        seconds = read_retry_after(value, 0.0)
    except ValueError:
        return
    assert math.isfinite(seconds)
    assert seconds >= 0


@pytest.mark.parametrize(
    ("retry", "retry_after", "chance", "pause"),
    [
        (1, 0.0, 0.0, 0.0),
        (1, 0.0, 1.0, 1.5),
        (2, 0.0, 1.0, 3.0),
        (3, 0.0, 1.0, 6.0),
        (4, 0.0, 1.0, 8.0),
        (10, 0.0, 0.5, 4.0),
        (1, 10.0, 0.0, 10.0),
        (1, 10.0, 1.0, 12.5),
        (4, 1.0, 1.0, 8.0),
    ],
)
def test_pauses(retry: int, retry_after: float, chance: float, pause: float) -> None:
    assert pause_before(retry, 1.5, retry_after, chance) == pause


@given(
    st.integers(1, 10), st.floats(1e-3, 1e9), st.floats(0, 60), st.floats(0, 1, exclude_max=True)
)
def test_no_pause_is_shorter_than_retry_after_or_longer_than_allowed(
    retry: int, backoff: float, retry_after: float, chance: float
) -> None:
    pause = pause_before(retry, backoff, retry_after, chance)
    assert retry_after <= pause <= max(8.0, retry_after * 1.25)


NOTHING: dict[str, Any] = {
    "refused": False,
    "circuit_open": False,
    "last": False,
    "retry_after": 60.0,
    "pause": 70.0,
    "time_left": math.inf,
    "within_budget": True,
}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"refused": True}, "refused"),
        ({"circuit_open": True}, "circuit"),
        ({"last": True}, "attempts"),
        ({"retry_after": 60.1}, "retry_after"),
        ({"time_left": 70.0}, "deadline"),
        ({"within_budget": False}, "budget"),
        ({"refused": True, "last": True, "within_budget": False}, "refused"),
    ],
)
def test_objections(change: dict[str, Any], why: str | None) -> None:
    assert objection(**{**NOTHING, **change}) == why


# The budget


def spent(budget: RetryBudget, now: float) -> int:
    """The retries that are allowed at once, all made."""
    count = 0
    while budget.allows_one(now):
        budget.add(now, "retry")
        count += 1
    return count


@pytest.mark.parametrize(
    ("requests", "retries"), [(0, 10), (1, 10), (54, 10), (55, 11), (500, 100)]
)
def test_a_fifth_of_the_requests_of_the_last_minute(requests: int, retries: int) -> None:
    budget = RetryBudget()
    for number in range(requests):
        budget.add(100.0 + number * 59 / 500, "request")
    assert spent(budget, 159.5) == retries


def test_what_is_older_than_a_minute_counts_no_more() -> None:
    budget = RetryBudget()
    for _ in range(100):
        budget.add(100.0, "request")
    assert spent(budget, 130.0) == 20
    assert spent(budget, 159.9) == 0
    assert spent(budget, 160.0) == 0  # the requests are gone, the twenty retries are not
    assert spent(budget, 190.0) == 10


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=300))
def test_never_more_than_its_share(steps: list[tuple[bool, float]]) -> None:
    budget, now = RetryBudget(), 0.0
    requests: list[float] = []
    retries: list[float] = []
    for is_request, later in steps:
        now += later
        if is_request:
            budget.add(now, "request")
            requests.append(now)
        elif budget.allows_one(now):
            budget.add(now, "retry")
            retries.append(now)
            minute = [at for at in retries if int(at) > int(now) - 60]
            recent = [at for at in requests if int(at) > int(now) - 60]
            assert len(minute) <= max(10, len(recent) / 5)
