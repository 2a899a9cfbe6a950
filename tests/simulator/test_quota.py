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


def test_a_bucket_is_full_at_first_and_refills_all_the_time() -> None:
    bucket = QuotaBucket(600, 60.0)
    assert bucket.remaining(7.0) == 600
    bucket.subtract(600, 7.0)
    assert bucket.remaining(7.0) == 0
    assert bucket.remaining(7.5) == pytest.approx(5)
    assert bucket.seconds_until_full(7.5) == pytest.approx(59.5)
    assert bucket.remaining(66.9) == pytest.approx(599)
    assert bucket.remaining(1000.0) == 600


def test_a_bucket_has_what_is_there_to_the_instant() -> None:
    bucket = QuotaBucket(30_000, 60.0)
    bucket.subtract(30_000, 0.0)
    assert bucket.seconds_until(700, 0.0) == pytest.approx(1.4)
    assert not bucket.has(700, 1.399)
    assert bucket.has(700, 1.4)
    assert bucket.seconds_until(700, 1.5) == 0.0


def test_for_what_a_bucket_cannot_hold_the_wait_is_until_it_is_full() -> None:
    bucket = QuotaBucket(60, 60.0)
    bucket.subtract(30, 0.0)
    assert bucket.seconds_until(1000, 0.0) == 30.0
    assert not bucket.has(1000, 10_000.0)


def test_what_is_given_back_never_makes_it_more_than_full() -> None:
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
def test_without_a_limit_or_with_a_high_one_it_is_the_same_amount(limit: int | None) -> None:
    account = Account(AccountLimits(tokens_per_minute=30_000))
    assert account.admit(chat_request(limit), 0.0) == 16_404
    assert refusal(account, chat_request(limit), 0.0) == ("token_quota_exceeded", 6)


def test_requests_are_counted_as_well() -> None:
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
def test_each_limit_refuses_in_its_own_words(
    limits: AccountLimits, code: str, retry_after: int
) -> None:
    account = Account(limits)
    account.admit(chat_request(), 0.0)
    assert refusal(account, chat_request(), 0.0) == (code, retry_after)


def test_a_request_that_is_refused_takes_nothing() -> None:
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


def test_what_was_not_used_comes_back() -> None:
    account = Account(
        AccountLimits(tokens_per_minute=600, tokens_per_day=1000, requests_per_minute=9)
    )
    reserved = account.admit(chat_request(limit=500), 0.0)
    account.release(reserved, 30, 1.0)
    assert reported(account, 1.0)["remaining-tokens-minute"] == "580"  # 10 were refilled
    assert reported(account, 1.0)["remaining-tokens-day"] == "970"
    assert reported(account, 1.0)["remaining-requests-minute"] == "8"


def test_or_it_does_not() -> None:
    account = Account(AccountLimits(tokens_per_minute=600, reservations="kept"))
    reserved = account.admit(chat_request(limit=500), 0.0)
    account.release(reserved, 30, 1.0)
    assert reported(account, 1.0)["remaining-tokens-minute"] == "90"


@pytest.mark.parametrize("reservations", ["settled", "kept"])
def test_what_was_used_beyond_the_reservation_is_owed(reservations: str) -> None:
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


def test_the_grid_tells_what_is_there() -> None:
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


def test_the_error_of_the_queue_is_the_one_there_is() -> None:
    account = Account(AccountLimits(queue_length=1))
    account.admit(chat_request(), 0.0)
    with pytest.raises(Rejected) as caught:
        account.admit(chat_request(), math.inf)
    assert caught.value.reply is ERRORS["queue"]
