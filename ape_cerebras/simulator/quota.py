"""The simulated account's quota: requests and tokens in buckets that refill continuously, and a
queue that can be full.

A request is charged when it is admitted: 1 to each bucket of requests, and to each bucket of tokens
its estimated prompt and ``max_completion_tokens``, which count as 16,384 at most, and if they are
not given. A request that does not fit is charged nothing and gets a 429 that names the bucket. When
the response has ended, tokens reserved and not used are refunded, or not: it is not known of the
real API, so there is an option for it. These are guesses too: the bucket that the 429 names if
several are short (here the one with the longest wait), ``Retry-After`` (here the wait, in whole
seconds), and ``x-ratelimit-reset-*`` (here the time until the bucket is full).

Every function takes the time; one number is kept of a bucket, the time at which it will be full.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..http1.messages import Headers
from .options import count, option
from .replies import ERRORS, Rejected, over_quota
from .request import CompletionRequest

__all__ = ("LIMIT_FLAGS", "Account", "QuotaBucket", "AccountLimits")

_MAX_COMPLETION = 16_384  # tokens; a request without a limit reserves them, none more
_WINDOWS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
# Requests and tokens per minute of the developer tier for gpt-oss-120b, reported where the account
# has no limit.
_REPORTED = {"requests": 1_000, "tokens": 1_000_000}
_RESETS = (("requests", "day"), ("tokens", "minute"))  # the two documented ones
_ROUNDING = 1e-6  # of a request or token


def reservations(text: str) -> str:
    """The treatment of unused reserved tokens."""
    if text not in ("settled", "kept"):
        raise ValueError("must be 'settled' or 'kept'")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """The limits of an account; 0 for none."""

    requests_per_minute: int = option(0, count, "requests a minute; 0: any number")
    requests_per_hour: int = option(0, count, "requests an hour; 0: any number")
    requests_per_day: int = option(0, count, "requests a day; 0: any number")
    tokens_per_minute: int = option(0, count, "tokens a minute; 0: any number")
    tokens_per_hour: int = option(0, count, "tokens an hour; 0: any number")
    tokens_per_day: int = option(0, count, "tokens a day; 0: any number")
    queue_length: int = option(
        0, count, "chat requests in flight, beyond which the queue is full; 0: any number"
    )
    reservations: str = option(
        "settled",
        reservations,
        "settled: unused reserved tokens are refunded when the response ends; kept: they are not",
    )


LIMIT_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = tuple(
    (each.name, each.metadata["kind"], each.metadata["help"]) for each in fields(AccountLimits)
)
"""Name, parser and help of every limit."""


class QuotaBucket:
    """``limit`` requests or tokens in ``seconds``, refilled continuously; full at first."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._seconds_per_unit = seconds / limit  # seconds for one
        self._full_at = -math.inf

    def seconds_until_full(self, now: float) -> float:
        """Seconds until it is full."""
        return max(0.0, self._full_at - now)

    def remaining(self, now: float) -> float:
        """The amount in it; negative if more was used than reserved."""
        return self.limit - self.seconds_until_full(now) / self._seconds_per_unit

    def has(self, amount: int, now: float) -> bool:
        return self.remaining(now) >= amount - _ROUNDING

    def seconds_until(self, amount: int, now: float) -> float:
        """Seconds until ``amount`` fits; of more than its limit, until it is full."""
        return max(0.0, min(amount, self.limit) - self.remaining(now)) * self._seconds_per_unit

    def subtract(self, amount: int, now: float) -> None:
        """Take ``amount`` out, whether it fits or not; a negative one is put back."""
        self._full_at = max(self._full_at, now) + amount * self._seconds_per_unit


class Account:
    """The one account that all clients of the simulator share."""

    def __init__(self, limits: AccountLimits) -> None:
        self._settles = limits.reservations == "settled"
        self._queue_length = limits.queue_length or math.inf
        self._in_flight = 0
        self._buckets = {
            (what, window): QuotaBucket(limit, seconds)
            for what in _REPORTED
            for window, seconds in _WINDOWS.items()
            if (limit := getattr(limits, f"{what}_per_{window}"))
        }

    def admit(self, request: CompletionRequest, now: float) -> int:
        """Charge a chat request, which is in flight until ``release``; return the tokens reserved
        for it. Raises Rejected."""
        limit = _MAX_COMPLETION if request.limit is None else request.limit
        reserved = request.prompt_tokens + min(limit, _MAX_COMPLETION)
        cost = {"requests": 1, "tokens": reserved}
        waits = [
            (bucket.seconds_until(cost[what], now), what, window)
            for (what, window), bucket in self._buckets.items()
            if not bucket.has(cost[what], now)
        ]
        if waits:
            wait, what, window = max(waits)
            raise Rejected(over_quota(what, window, max(1, math.ceil(wait))))
        if self._in_flight >= self._queue_length:
            raise Rejected(ERRORS["queue"])
        for (what, _), bucket in self._buckets.items():
            bucket.subtract(cost[what], now)
        self._in_flight += 1
        return reserved

    def release(self, reserved: int, used: int, now: float) -> None:
        """End a request; charge or refund the difference of used and reserved tokens."""
        self._in_flight -= 1
        if self._settles or used > reserved:
            for (what, _), bucket in self._buckets.items():
                if what == "tokens":
                    bucket.subtract(used - reserved, now)

    def headers(self, now: float, used: int = 0) -> Headers:
        """``x-ratelimit-{limit,remaining}-{requests,tokens}-{minute,hour,day}`` and the resets, for
        a response that used so many tokens."""
        headers: dict[str, bytes] = {}
        for what, amount in (("requests", 1), ("tokens", used)):
            for window, seconds in _WINDOWS.items():
                bucket = self._buckets.get((what, window))
                if bucket is None:  # no limit: report one that forgets earlier requests
                    bucket = QuotaBucket(_REPORTED[what] * int(seconds // 60), seconds)
                    bucket.subtract(min(amount, bucket.limit), now)
                remaining = math.floor(max(0.0, bucket.remaining(now)) + _ROUNDING)
                headers[f"limit-{what}-{window}"] = b"%d" % bucket.limit
                headers[f"remaining-{what}-{window}"] = b"%d" % remaining
                if (what, window) in _RESETS:
                    headers[f"reset-{what}-{window}"] = b"%r" % bucket.seconds_until_full(now)
        return tuple((f"x-ratelimit-{name}".encode(), value) for name, value in headers.items())
