"""The simulated account's buckets and queue, at times that the test sets."""

import math

import orjson
import pytest

from ape_cerebras.simulator.quota import LIMIT_FLAGS, Account, AccountLimits, QuotaBucket
from ape_cerebras.simulator.replies import ERRORS, Rejected
from ape_cerebras.simulator.request import CompletionRequest


def chat_request(limit: int | None = 100, prompt: int = 20) -> CompletionRequest:
    return CompletionRequest("gpt-oss-120b", prompt_tokens=prompt, limit=limit)


def refusal(account: Account, request: CompletionRequest, now: float) -> tuple[str, int]:
    """The code of the 429, and the seconds of its Retry-After."""
    with pytest.raises(Rejected) as caught:
        account.admit(request, now)
    reply = caught.value.reply
    assert reply.status == 429
    return orjson.loads(reply.body)["code"], int(dict(reply.headers)[b"retry-after"])


def reported(account: Account, now: float, used: int = 0) -> dict[str, str]:
    headers = account.headers(now, used)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in headers}


# A bucket


def test_a_bucket_starts_full_and_refills_continuously() -> None:
    bucket = QuotaBucket(600, 60.0)
    assert bucket.remaining(7.0) == 600
    bucket.subtract(600, 7.0)
    assert bucket.remaining(7.0) == 0
    assert bucket.remaining(7.5) == pytest.approx(5)
    assert bucket.seconds_until_full(7.5) == pytest.approx(59.5)
    assert bucket.remaining(66.9) == pytest.approx(599)
    assert bucket.remaining(1000.0) == 600


def test_a_bucket_has_an_amount_from_its_exact_instant() -> None:
    bucket = QuotaBucket(30_000, 60.0)
    bucket.subtract(30_000, 0.0)
    assert bucket.seconds_until(700, 0.0) == pytest.approx(1.4)
    assert not bucket.has(700, 1.399)
    assert bucket.has(700, 1.4)
    assert bucket.seconds_until(700, 1.5) == 0.0


def test_the_wait_for_more_than_the_capacity_is_until_full() -> None:
    bucket = QuotaBucket(60, 60.0)
    bucket.subtract(30, 0.0)
    assert bucket.seconds_until(1000, 0.0) == 30.0
    assert not bucket.has(1000, 10_000.0)


def test_a_refund_never_exceeds_the_capacity() -> None:
    bucket = QuotaBucket(60, 60.0)
    bucket.subtract(50, 0.0)
    bucket.subtract(-40, 30.0)
    assert bucket.remaining(30.0) == 60


# Admission


def test_a_request_reserves_its_prompt_and_its_limit() -> None:
    account = Account(AccountLimits(tokens_per_minute=300))
    assert account.admit(chat_request(), 0.0) == 120
    assert account.admit(chat_request(), 0.0) == 120
    assert refusal(account, chat_request(), 0.0) == ("token_quota_exceeded", 12)
    assert account.admit(chat_request(), 12.0) == 120


@pytest.mark.parametrize("limit", [None, 16_384, 40_000])
def test_without_a_limit_or_with_a_high_one_the_reservation_is_the_same(limit: int | None) -> None:
    account = Account(AccountLimits(tokens_per_minute=30_000))
    assert account.admit(chat_request(limit), 0.0) == 16_404
    assert refusal(account, chat_request(limit), 0.0) == ("token_quota_exceeded", 6)


def test_requests_have_a_quota_too() -> None:
    account = Account(AccountLimits(requests_per_minute=5, tokens_per_minute=30_000))
    for _ in range(5):
        account.admit(chat_request(), 0.0)
    assert refusal(account, chat_request(), 0.0) == ("request_quota_exceeded", 12)
    account.admit(chat_request(), 12.0)
    assert refusal(account, chat_request(), 12.0) == ("request_quota_exceeded", 12)


@pytest.mark.parametrize(
    ("limits", "code", "retry_after"),
    [
        (AccountLimits(requests_per_hour=1), "request_quota_exceeded", 3600),
        (AccountLimits(requests_per_day=1), "request_quota_exceeded", 86400),
        (AccountLimits(tokens_per_hour=120), "token_quota_exceeded", 3600),
        (AccountLimits(tokens_per_day=120), "token_quota_exceeded", 86400),
        (AccountLimits(requests_per_minute=1, tokens_per_day=120), "token_quota_exceeded", 86400),
        (AccountLimits(requests_per_minute=1, queue_length=1), "request_quota_exceeded", 60),
        (AccountLimits(queue_length=1), "queue_exceeded", 1),
    ],
)
def test_each_limit_has_its_own_error_code(
    limits: AccountLimits, code: str, retry_after: int
) -> None:
    account = Account(limits)
    account.admit(chat_request(), 0.0)
    assert refusal(account, chat_request(), 0.0) == (code, retry_after)


def test_a_refused_request_is_not_charged() -> None:
    account = Account(AccountLimits(requests_per_minute=3, tokens_per_minute=200, queue_length=2))
    account.admit(chat_request(), 0.0)
    for _ in range(5):
        refusal(account, chat_request(), 0.0)
    assert reported(account, 0.0)["remaining-requests-minute"] == "2"
    assert reported(account, 0.0)["remaining-tokens-minute"] == "80"
    account.admit(chat_request(limit=10), 0.0)
    assert refusal(account, chat_request(limit=10), 0.0)[0] == "queue_exceeded"
    assert reported(account, 0.0)["remaining-tokens-minute"] == "50"


def test_without_limits_nothing_is_refused() -> None:
    account = Account(AccountLimits())
    for _ in range(10_000):
        account.admit(chat_request(None), 0.0)


# The end of a response


def test_unused_tokens_are_refunded() -> None:
    account = Account(
        AccountLimits(tokens_per_minute=600, tokens_per_day=1000, requests_per_minute=9)
    )
    reserved = account.admit(chat_request(limit=500), 0.0)
    account.release(reserved, 30, 1.0)
    assert reported(account, 1.0)["remaining-tokens-minute"] == "580"  # 10 were refilled
    assert reported(account, 1.0)["remaining-tokens-day"] == "970"
    assert reported(account, 1.0)["remaining-requests-minute"] == "8"


def test_a_kept_reservation_is_not_refunded() -> None:
    account = Account(AccountLimits(tokens_per_minute=600, reservations="kept"))
    reserved = account.admit(chat_request(limit=500), 0.0)
    account.release(reserved, 30, 1.0)
    assert reported(account, 1.0)["remaining-tokens-minute"] == "90"


@pytest.mark.parametrize("reservations", ["settled", "kept"])
def test_tokens_beyond_the_reservation_are_owed(reservations: str) -> None:
    account = Account(AccountLimits(tokens_per_minute=600, reservations=reservations))
    reserved = account.admit(chat_request(limit=500), 0.0)
    account.release(reserved, 720, 0.0)
    assert reported(account, 0.0)["remaining-tokens-minute"] == "0"
    assert refusal(account, chat_request(limit=0, prompt=10), 0.0) == ("token_quota_exceeded", 13)


def test_a_request_leaves_the_queue_with_its_response() -> None:
    account = Account(AccountLimits(queue_length=1))
    reserved = account.admit(chat_request(), 0.0)
    assert refusal(account, chat_request(), 0.0)[0] == "queue_exceeded"
    account.release(reserved, 0, 0.0)
    account.admit(chat_request(), 0.0)


# Headers


def test_the_grid_of_rate_limits() -> None:
    headers = reported(Account(AccountLimits()), 0.0, used=300)
    grid = {
        f"{kind}-{what}-{window}"
        for kind in ("limit", "remaining")
        for what in ("requests", "tokens")
        for window in ("minute", "hour", "day")
    }
    assert headers.keys() == grid | {"reset-requests-day", "reset-tokens-minute"}
    limit = int(headers["limit-tokens-minute"])
    assert int(headers["remaining-tokens-minute"]) == limit - 300


def test_the_headers_report_the_remaining_quota() -> None:
    account = Account(AccountLimits(requests_per_day=2400, tokens_per_minute=30_000))
    account.admit(chat_request(limit=1480), 0.0)
    headers = reported(account, 1.0, used=99)
    assert (headers["limit-tokens-minute"], headers["remaining-tokens-minute"]) == (
        "30000",
        "29000",
    )
    assert float(headers["reset-tokens-minute"]) == pytest.approx(2.0)
    assert (headers["limit-requests-day"], headers["remaining-requests-day"]) == ("2400", "2399")
    assert float(headers["reset-requests-day"]) == pytest.approx(35.0)
    assert headers["remaining-tokens-hour"] == str(60_000_000 - 99)


# Options


@pytest.mark.parametrize("flag", LIMIT_FLAGS, ids=lambda flag: str(flag[0]))
def test_a_flag_reads_its_own_default(flag: tuple[str, object, str]) -> None:
    name, kind, text = flag
    assert callable(kind)
    assert kind(str(getattr(AccountLimits(), name))) == getattr(AccountLimits(), name)
    assert text
    assert "%" not in text  # argparse would take it for a format
    with pytest.raises(ValueError, match="must be"):
        kind("-1")


def test_a_full_queue_sends_the_recorded_error() -> None:
    account = Account(AccountLimits(queue_length=1))
    account.admit(chat_request(), 0.0)
    with pytest.raises(Rejected) as caught:
        account.admit(chat_request(), math.inf)
    assert caught.value.reply is ERRORS["queue"]
