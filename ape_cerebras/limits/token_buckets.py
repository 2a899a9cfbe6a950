"""Token buckets, and the US dollars of a day, in the memory of one process.

A full bucket can be spent at once and refills continuously, as the API's own limits do. One number
is kept of it: the time at which it will be full. So nothing is counted up between requests, and
there is no window at whose end twice as much could pass. An empty bucket owes nothing: what was
used beyond its capacity is forgotten when it is full again.

What an exchange takes before its use is known it takes with a ``Hold``, and settles it at its end.
A request that ended without a response leaves the buckets of its hold uncertain. Of those, one
request may be sent that does not fit, a probe, while no other hold is there: its response reports
how much is left.

Dollars are counted by the day's number, so that a clock that is set back does not begin a day anew.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import inf
from secrets import token_hex
from typing import NamedTuple

__all__ = (
    "Balance",
    "Budget",
    "Charge",
    "Decision",
    "Hold",
    "LimitStore",
    "Spending",
    "TokenBucket",
    "day_of",
    "decide",
    "fits_budget",
)

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


@dataclass(slots=True, eq=False)
class Hold:
    """What one exchange holds until it settles: of the buckets whose names begin with ``group``, or
    of a budget."""

    group: str = ""
    id: str = field(default_factory=lambda: token_hex(8))
    entry: str | None = None
    """The hold as a shared store knows it. None: that was not asked. Empty: nothing is held."""

    def label_of(self, bucket: TokenBucket) -> str:
        """The name of a bucket within the group."""
        return bucket.name.removeprefix(f"{self.group}:")

    def entry_for(self, charges: Sequence[Charge]) -> str:
        """An entry that says what the hold takes of each bucket, in microseconds of its refill."""
        taken = (
            f"{self.label_of(bucket)}={round(bucket.seconds_for(amount) * 1e6)}"
            for bucket, amount in charges
        )
        return " ".join((self.id, *taken))


class Decision(NamedTuple):
    """``wait`` is 0 if the charges fit, else the seconds until they all will. Then ``lacking`` is
    the bucket with the longest wait, and ``left`` is the amount in it."""

    wait: float = 0.0
    lacking: TokenBucket | None = None
    left: float = 0.0


class Budget(NamedTuple):
    """US dollars that the key of that name may spend on a day."""

    name: str
    day: int
    dollars: Decimal


class Balance(NamedTuple):
    """Dollars of a budget that are spent, and that exchanges in flight have reserved. ``granted``:
    whether a reservation was added to the latter."""

    granted: bool
    spent: Decimal
    reserved: Decimal


@dataclass(slots=True)
class Spending:
    """Dollars of a key on one day: those that this process has spent, those that others are known
    to have spent, and the reservations of this process."""

    own: Decimal = _NOTHING
    others: Decimal = _NOTHING
    held: dict[str, Decimal] = field(default_factory=dict)


def day_of(wall_time: float) -> tuple[int, float]:
    """The number of the day in UTC, and the seconds left of it."""
    day, since_midnight = divmod(wall_time, _DAY)
    return int(day), _DAY - since_midnight


def decide(
    charges: Sequence[Charge],
    full_at: Sequence[float],
    now: float,
    uncertain: Collection[str] = (),
) -> Decision:
    """Decide whether charges fit into buckets that will be full at those times.

    A charge above a bucket's capacity fits once the bucket is full. Charges that only ``uncertain``
    buckets, by name, have no room for are let through.
    """
    worst, only_uncertain = Decision(), True
    for (bucket, amount), bucket_full_at in zip(charges, full_at, strict=True):
        until_full = max(0.0, bucket_full_at - now)
        wait = until_full - max(0.0, bucket.seconds - bucket.seconds_for(amount))
        if wait > _TOLERANCE:
            only_uncertain = only_uncertain and bucket.name in uncertain
        if wait > max(worst.wait, _TOLERANCE):
            left = bucket.capacity * (1 - until_full / bucket.seconds)
            worst = Decision(wait, bucket, max(0.0, left))
    return Decision() if only_uncertain else worst


def fits_budget(dollars: Decimal, spent: Decimal, reserved: Decimal, amount: Decimal) -> bool:
    """Decide whether a reservation fits: never once the budget is spent, also one of 0 dollars."""
    return spent < dollars and spent + reserved + amount <= dollars


class LimitStore:
    """Buckets and daily spending of this process; ``RedisLimitStore`` shares them with others.

    ``now`` is a reading of the event loop's clock; a store with its own clock ignores it. An
    exchange calls ``adjust`` and ``settle_dollars`` when it ends, also when it is cancelled: a
    store that waits there has to shield itself. A charge or reservation that is cancelled takes
    nothing.
    """

    recheck_seconds = inf
    """Seconds after which another process may have refunded something unseen."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        self._uncertain: set[str] = set()
        self._holds: dict[str, set[Hold]] = {}  # by group
        self._spending: dict[str, dict[int, Spending]] = {}

    async def charge(
        self, charges: Sequence[Charge], now: float, hold: Hold | None = None
    ) -> Decision:
        """Charge all of them, or none if one does not fit. ``hold`` has them until it settles."""
        full_at = [self._full_at.get(bucket.name, now) for bucket, _ in charges]
        alone = hold is not None and not self._holds.get(hold.group)
        decision = decide(charges, full_at, now, self._uncertain if alone else ())
        if not decision.wait:
            for bucket, amount in charges:
                self._add(bucket, amount, now)
            if hold is not None:
                self._holds.setdefault(hold.group, set()).add(hold)
        return decision

    async def adjust(
        self,
        charges: Sequence[Charge],
        now: float,
        hold: Hold | None = None,
        *,
        answered: bool = True,
    ) -> None:
        """Charge or refund the differences to an earlier charge, whether they fit or not, and
        settle its hold. ``answered``: whether the API has responded, or was not asked."""
        for bucket, amount in charges:
            self._add(bucket, amount, now)
            if not answered:
                self._uncertain.add(bucket.name)
        if hold is not None:
            self._holds.get(hold.group, set()).discard(hold)

    def _add(self, bucket: TokenBucket, amount: float, now: float) -> None:
        full_at = max(self._full_at.get(bucket.name, now), now) + bucket.seconds_for(amount)
        self._full_at[bucket.name] = min(full_at, now + bucket.seconds)

    async def reconcile(
        self, bucket: TokenBucket, least: float, most: float, now: float, hold: Hold | None = None
    ) -> None:
        """Correct a bucket so that the amount left in it is from ``least`` to ``most``. ``hold``:
        that of the request whose response reported it."""
        spent = (bucket.capacity - max(0.0, left) for left in (most, least))
        earliest, latest = (now + bucket.seconds_for(amount) for amount in spent)
        full_at = self._full_at.get(bucket.name, now)
        self._full_at[bucket.name] = min(max(full_at, earliest), latest)
        self._uncertain.discard(bucket.name)

    async def reserve_dollars(
        self, budget: Budget, amount: Decimal, hold: Hold, watched: Collection[str] = ()
    ) -> Balance:
        """Reserve dollars until ``settle_dollars``, if they fit. ``watched``: the names of all
        budgets, for a store that has to learn what others spend."""
        spending = self._spending_of(budget.name, budget.day)
        spent = spending.own + spending.others
        reserved = sum(spending.held.values(), _NOTHING)
        granted = fits_budget(budget.dollars, spent, reserved, amount)
        if granted:
            spending.held[hold.id] = amount
        return Balance(granted, spent, reserved)

    async def settle_dollars(self, budget: Budget, hold: Hold, cost: Decimal) -> None:
        """Release a reservation, and record what was spent in its place."""
        spending = self._spending_of(budget.name, budget.day)
        spending.held.pop(hold.id, None)
        spending.own += cost

    def _spending_of(self, name: str, day: int) -> Spending:
        """Eight days are kept, because the clock may be set back."""
        days = self._spending.setdefault(name, {})
        if day not in days:
            days[day] = Spending()
            if len(days) > _DAYS_KEPT:
                del days[next(iter(days))]
        return days[day]

    def close(self) -> None:
        """Close the store's connections; nothing in this one."""
