"""How much of something there may be in a time: buckets, which refill all the time.

A full bucket can be spent at once, and fills again in so many seconds: the form that the API's own
limits have. What is known of a bucket is one number, the moment at which it will be full; nothing
has to be counted up meanwhile, and no clock's tick is a window's edge that lets twice as much pass.

What is spent in US dollars counts by the day. A clock that is set does not begin a day anew: what a
day has spent is known by its number.

Buckets and days are kept in a store behind ``LimitStore``. That of one process is a dictionary; one
that several processes share has the same few questions to answer, each at once for all who ask.
"""

from collections.abc import Sequence
from decimal import Decimal
from math import inf
from typing import NamedTuple, Protocol

__all__ = ("TokenBucket", "Charge", "LimitStore", "LocalLimitStore", "Decision", "day_of", "decide")

_DAY = 24 * 60 * 60  # seconds
_DAYS_KEPT = 8
_NOTHING = Decimal(0)
_TOLERANCE = 1e-6  # seconds; moments are sums of fractions


class TokenBucket(NamedTuple):
    """``name`` is what a store knows it by; ``capacity`` is refilled in ``seconds``."""

    name: str
    capacity: float
    seconds: float

    def time_of(self, amount: float) -> float:
        """Seconds in which so much is refilled."""
        return amount / self.capacity * self.seconds


class Charge(NamedTuple):
    """What is to be taken out of a bucket."""

    bucket: TokenBucket
    amount: float


class Decision(NamedTuple):
    """``wait``: seconds until everything could be taken; 0 where it has been. Else ``lacking`` is
    the bucket that has to be waited for, and ``left`` what is in that."""

    wait: float = 0.0
    lacking: TokenBucket | None = None
    left: float = 0.0


class LimitStore(Protocol):
    """A store of buckets, and of what was spent on a day. ``now`` is a reading of the loop's clock;
    a store with a clock of its own goes by that. What settles and spends comes at the end of an
    exchange, cancelled or not: a store that waits for it has to shield it."""

    recheck_seconds: float
    """Seconds after which others may have given something back, unseen from here."""

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """Take all of the charges, or none."""

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """Take what was used beyond what had been taken; give back where it is less than 0."""

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """Take somebody's word for how much is left in a bucket, at least and at most."""

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """US dollars that were spent on a day."""

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """Count what was."""

    def close(self) -> None:
        """Let go of what the store has open."""


def day_of(wall_time: float) -> tuple[int, float]:
    """The number of a moment's day, in UTC, and the seconds that are left of it."""
    day, since_midnight = divmod(wall_time, _DAY)
    return int(day), _DAY - since_midnight


def decide(charges: Sequence[Charge], full_at: Sequence[float], now: float) -> Decision:
    """Whether the charges can be taken out of buckets that will be full at those moments.

    More than a bucket holds can be taken once it is full, and is owed then.
    """
    worst = Decision()
    for (bucket, amount), moment in zip(charges, full_at, strict=True):
        empty_for = max(0.0, moment - now)
        wait = empty_for - max(0.0, bucket.seconds - bucket.time_of(amount))
        if wait > max(worst.wait, _TOLERANCE):
            left = bucket.capacity * (1 - empty_for / bucket.seconds)
            worst = Decision(wait, bucket, max(0.0, left))
    return worst


class LocalLimitStore:
    """The buckets of this process."""

    recheck_seconds = inf

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        self._spent: dict[str, dict[int, Decimal]] = {}

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """See ``LimitStore``."""
        full_at = [self._full_at.get(bucket.name, now) for bucket, _ in charges]
        decision = decide(charges, full_at, now)
        if not decision.wait:
            await self.adjust(charges, now)
        return decision

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """See ``LimitStore``."""
        for bucket, amount in charges:
            full_at = max(self._full_at.get(bucket.name, now), now)
            self._full_at[bucket.name] = full_at + bucket.time_of(amount)

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """See ``LimitStore``."""
        earliest, latest = (now + bucket.time_of(bucket.capacity - left) for left in (most, least))
        full_at = self._full_at.get(bucket.name, now)
        self._full_at[bucket.name] = min(max(full_at, earliest), latest)

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """See ``LimitStore``."""
        return self._spent.get(name, {}).get(day, _NOTHING)

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """See ``LimitStore``. Days stay known when others have begun: the clock may be set back."""
        days = self._spent.setdefault(name, {})
        days[day] = days.get(day, _NOTHING) + dollars
        if len(days) > _DAYS_KEPT:
            del days[next(iter(days))]

    def close(self) -> None:
        """See ``LimitStore``."""
