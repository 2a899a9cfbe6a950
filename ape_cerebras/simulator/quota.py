"""What the stand-in API lets an account have: requests and tokens in buckets that refill all the
time, and a queue that can be full.

A request is charged when it is admitted: 1 of each bucket of requests, and of each bucket of tokens
its prompt's estimate and ``max_completion_tokens``, which count as 16,384 at most, and where they
are not given. One that a bucket has not enough for takes nothing and is told which (429). When its
answer has ended, what it reserved and did not use comes back, or does not: of the real API it is
not known, so there is an option for it. As of nothing else that is a guess here, nobody should
rely on these: whom of several short buckets the answer names (here the one that is short for
longest), what ``Retry-After`` says (here when there will be enough, in whole seconds), and what
``x-ratelimit-reset-*`` counts to (here to the moment at which the bucket is full).

Every function is told the time; a bucket is one number, the moment at which it will be full.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from ..http1.messages import Headers
from .options import count, option
from .replies import ERRORS, Rejected, over_quota
from .request import CompletionRequest

__all__ = ("LIMIT_FLAGS", "Account", "QuotaBucket", "AccountLimits")

_UNNAMED = 16_384  # tokens; what a request without a limit reserves, and any at most
_WINDOWS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
# Requests and tokens per minute of the developer tier for gpt-oss-120b: what is told, and always
# there, of a bucket that is not limited.
_TOLD = {"requests": 1_000, "tokens": 1_000_000}
_RESETS = (("requests", "day"), ("tokens", "minute"))  # the two that are documented
_ROUNDING = 1e-6  # of a request or token: nobody's


def reservations(text: str) -> str:
    """What becomes of a reservation."""
    if text not in ("settled", "kept"):
        raise ValueError("must be 'settled' or 'kept'")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """What an account may have; 0 for no limit."""

    requests_per_minute: int = option(0, count, "requests a minute; 0: any number")
    requests_per_hour: int = option(0, count, "requests an hour; 0: any number")
    requests_per_day: int = option(0, count, "requests a day; 0: any number")
    tokens_per_minute: int = option(0, count, "tokens a minute; 0: any number")
    tokens_per_hour: int = option(0, count, "tokens an hour; 0: any number")
    tokens_per_day: int = option(0, count, "tokens a day; 0: any number")
    queue_length: int = option(
        0, count, "chat requests under way, beyond which the queue is full; 0: any number"
    )
    reservations: str = option(
        "settled",
        reservations,
        "settled: tokens reserved and not used come back when the answer ends; kept: they do not",
    )


LIMIT_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = tuple(
    (each.name, each.metadata["kind"], each.metadata["help"]) for each in fields(AccountLimits)
)
"""Name, parser and help of every limit."""


class QuotaBucket:
    """``limit`` requests or tokens in ``seconds``, refilled continuously; full at first."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self._pace = seconds / limit  # seconds for one
        self._full_at = -math.inf

    def reset(self, now: float) -> float:
        """Seconds until it is full."""
        return max(0.0, self._full_at - now)

    def remaining(self, now: float) -> float:
        """What is there; below nothing where more was used than reserved."""
        return self.limit - self.reset(now) / self._pace

    def has(self, amount: int, now: float) -> bool:
        return self.remaining(now) >= amount - _ROUNDING

    def wait(self, amount: int, now: float) -> float:
        """Seconds until ``amount`` is there; of more than it holds, until it is full."""
        return max(0.0, min(amount, self.limit) - self.remaining(now)) * self._pace

    def charge(self, amount: int, now: float) -> None:
        """Take it, whether it is there or not; an amount below nothing is given back."""
        self._full_at = max(self._full_at, now) + amount * self._pace


class Account:
    """Everybody who asks the stand-in API is one account."""

    def __init__(self, limits: AccountLimits) -> None:
        self._settles = limits.reservations == "settled"
        self._queue_length = limits.queue_length or math.inf
        self._under_way = 0
        self._buckets = {
            (what, window): QuotaBucket(limit, seconds)
            for what in _TOLD
            for window, seconds in _WINDOWS.items()
            if (limit := getattr(limits, f"{what}_per_{window}"))
        }

    def admit(self, asked: CompletionRequest, now: float) -> int:
        """Charge a chat request, which is under way then until it is settled; the tokens reserved
        for it. Raises Rejected."""
        completion = _UNNAMED if asked.limit is None else min(asked.limit, _UNNAMED)
        reserved = asked.prompt_tokens + completion
        cost = {"requests": 1, "tokens": reserved}
        self._refuse_if_short(cost, now)
        if self._under_way >= self._queue_length:
            raise Rejected(ERRORS["queue"])
        for (what, _), bucket in self._buckets.items():
            bucket.charge(cost[what], now)
        self._under_way += 1
        return reserved

    def _refuse_if_short(self, cost: dict[str, int], now: float) -> None:
        waits = [
            (bucket.wait(cost[what], now), what, window)
            for (what, window), bucket in self._buckets.items()
            if not bucket.has(cost[what], now)
        ]
        if waits:
            wait, what, window = max(waits)
            raise Rejected(over_quota(what, window, max(1, math.ceil(wait))))

    def release(self, reserved: int, used: int, now: float) -> None:
        """The answer to the request has ended, one way or another."""
        self._under_way -= 1
        if self._settles or used > reserved:
            for (what, _), bucket in self._buckets.items():
                if what == "tokens":
                    bucket.charge(used - reserved, now)

    def headers(self, now: float, used: int = 0) -> Headers:
        """``x-ratelimit-{limit,remaining}-{requests,tokens}-{minute,hour,day}``, and the resets, on
        an answer that used so many tokens."""
        return tuple(self._grid(now, {"requests": 1, "tokens": used}))

    def _grid(self, now: float, used: dict[str, int]) -> Iterator[tuple[bytes, bytes]]:
        for what in _TOLD:
            for window in _WINDOWS:
                bucket = self._buckets.get((what, window)) or _else_full(what, window, used, now)
                remaining = math.floor(max(0.0, bucket.remaining(now)) + _ROUNDING)
                yield _name("limit", what, window), b"%d" % bucket.limit
                yield _name("remaining", what, window), b"%d" % remaining
                if (what, window) in _RESETS:
                    yield _name("reset", what, window), b"%r" % bucket.reset(now)


def _else_full(what: str, window: str, used: dict[str, int], now: float) -> QuotaBucket:
    """What is told where there is no limit, as nothing is remembered from request to request."""
    seconds = _WINDOWS[window]
    bucket = QuotaBucket(_TOLD[what] * int(seconds // 60), seconds)
    bucket.charge(min(used[what], bucket.limit), now)
    return bucket


def _name(kind: str, what: str, window: str) -> bytes:
    return f"x-ratelimit-{kind}-{what}-{window}".encode()
