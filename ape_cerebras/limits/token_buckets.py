"""Token buckets, and the US dollars spent per day, in the memory of one process.

A full bucket can be spent at once and refills continuously, as the API's own limits do. One number
is kept of it: the time at which it will be full. So nothing is counted up between requests, and
there is no window at whose end twice as much could pass.

Dollars are counted by the day's number, so that a clock that is set back does not begin a day anew.
"""

from collections.abc import Sequence
from decimal import Decimal
from math import inf
from typing import NamedTuple

__all__ = ("Charge", "Decision", "LimitStore", "TokenBucket", "day_of", "decide")

_DAY = 24 * 60 * 60  # seconds
_DAYS_KEPT = 8
_NOTHING = Decimal(0)
_TOLERANCE = 1e-6  # seconds; times are sums of fractions


class TokenBucket(NamedTuple):
    """``capacity`` tokens or requests, refilled in ``seconds``; a store knows it by ``name``."""

    name: str
    capacity: float
    seconds: float

    def seconds_for(self, amount: float) -> float:
        """Seconds in which ``amount`` is refilled."""
        return amount / self.capacity * self.seconds


class Charge(NamedTuple):
    """An amount to be charged to a bucket; a negative one is refunded."""

    bucket: TokenBucket
    amount: float


class Decision(NamedTuple):
    """``wait`` is 0 if the charges fit, else the seconds until they all will. Then ``lacking`` is
    the bucket with the longest wait, and ``left`` is the amount in it."""

    wait: float = 0.0
    lacking: TokenBucket | None = None
    left: float = 0.0


def day_of(wall_time: float) -> tuple[int, float]:
    """The number of the day in UTC, and the seconds left of it."""
    day, since_midnight = divmod(wall_time, _DAY)
    return int(day), _DAY - since_midnight


def decide(charges: Sequence[Charge], full_at: Sequence[float], now: float) -> Decision:
    """Decide whether charges fit into buckets that will be full at those times.

    A charge above a bucket's capacity fits once the bucket is full, and leaves a debt.
    """
    worst = Decision()
    for (bucket, amount), bucket_full_at in zip(charges, full_at, strict=True):
        until_full = max(0.0, bucket_full_at - now)
        wait = until_full - max(0.0, bucket.seconds - bucket.seconds_for(amount))
        if wait > max(worst.wait, _TOLERANCE):
            left = bucket.capacity * (1 - until_full / bucket.seconds)
            worst = Decision(wait, bucket, max(0.0, left))
    return worst


class LimitStore:
    """Buckets and daily spending of this process; ``RedisLimitStore`` shares them with others.

    ``now`` is a reading of the event loop's clock; a store with its own clock ignores it. An
    exchange calls ``adjust`` and ``record_dollars`` when it ends, also when it is cancelled: a
    store that waits there has to shield itself.
    """

    recheck_seconds = inf
    """Seconds after which another process may have refunded something unseen."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        self._dollars: dict[str, dict[int, Decimal]] = {}

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """Charge all of them, or none if one does not fit."""
        full_at = [self._full_at.get(bucket.name, now) for bucket, _ in charges]
        decision = decide(charges, full_at, now)
        if not decision.wait:
            for (bucket, amount), bucket_full_at in zip(charges, full_at, strict=True):
                full_again_at = max(bucket_full_at, now) + bucket.seconds_for(amount)
                self._full_at[bucket.name] = full_again_at
        return decision

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """Charge or refund the differences to an earlier charge, whether they fit or not."""
        for bucket, amount in charges:
            full_at = max(self._full_at.get(bucket.name, now), now)
            self._full_at[bucket.name] = full_at + bucket.seconds_for(amount)

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """Correct a bucket so that the amount left in it is from ``least`` to ``most``."""
        spent = (bucket.capacity - left for left in (most, least))
        earliest, latest = (now + bucket.seconds_for(amount) for amount in spent)
        full_at = self._full_at.get(bucket.name, now)
        self._full_at[bucket.name] = min(max(full_at, earliest), latest)

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """US dollars that a key of that name has spent on a day."""
        return self._dollars.get(name, {}).get(day, _NOTHING)

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """Add to the dollars of a day. Eight days are kept, because the clock may be set back."""
        days = self._dollars.setdefault(name, {})
        days[day] = days.get(day, _NOTHING) + dollars
        if len(days) > _DAYS_KEPT:
            del days[next(iter(days))]

    def close(self) -> None:
        """Close the store's connections; nothing in this one."""
