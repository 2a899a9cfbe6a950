"""The limits that all workers and replicas of a proxy keep together, in a Redis.

What is decided is what ``limits.decide`` says. Redis decides it, by a script, because it does one
thing at a time: so whoever asks, on whatever machine, all is taken or nothing, and never what
another took meanwhile. Its clock is everybody's. Under a bucket's name it has the moment at which
the bucket will be full, and that at which this was written, in microseconds, until the bucket is
full; under a name and a day, what was spent. No more is kept, so nothing of what a client sent.
Its clock can be set: back, and the moments move with it; forward, and time has passed for all that
anybody can tell.

The library's calls block, and so are made in threads, for its asynchronous ones know asyncio only.
A call that takes too long is left behind. From then on ``fallback`` is asked instead, for a second
at a time: no request waits for a store that does not answer but the first of each second. It is
told of every answer that there was before, so that it goes on from that.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from math import inf
from typing import Any

import anyio
from anyio import to_thread

from ..config.config import Config
from ..errors import LimitStoreUnavailable
from ..net.timestamps import loop_clock
from .token_buckets import Charge, Decision, LimitStore, LocalLimitStore, TokenBucket

__all__ = ("ClosedLimitStore", "RedisLimitStore", "open_limit_store")

_PREFIX = "{ape-cerebras}:"  # in braces, so that the nodes of a cluster keep all in one place
_THREADS = 8
_TRY_AGAIN = 1.0  # seconds
_RECHECK_SECONDS = 0.5  # seconds
_MICRO = 1e-6
_DECIMALS = 12  # of a dollar: Redis adds up whole numbers, of 64 bits, exactly
_DAYS_KEPT = timedelta(days=8)  # the clock of who asks may be set back

# ARGV has, of each bucket in KEYS, the seconds in which it is refilled, and those in which the
# amount to be taken is. What a bucket is when it is full does not differ from never having been.
_READ = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at, takes, waits, empty_for = {}, {}, {}, {}
for i, key in ipairs(KEYS) do
  local seconds = ARGV[2 * i - 1] * 1000000
  takes[i] = ARGV[2 * i] * 1000000
  local known = redis.call('GET', key) or '0 0'
  local moment, written = string.match(known, '^(%d+) (%d+)$')
  full_at[i] = math.max(moment - math.max(0, written - now), now)
  empty_for[i] = full_at[i] - now
  waits[i] = empty_for[i] - math.max(0, seconds - takes[i])
end
"""
_DECIDE = """
local worst = 1
for i, wait in ipairs(waits) do
  if wait > waits[worst] then worst = i end
end
if waits[worst] > 1 then
  return {worst, math.ceil(waits[worst]), unpack(empty_for)}
end
"""
_RAISE = """
for i in ipairs(KEYS) do
  takes[i] = math.max(0, now + takes[i] - full_at[i])
end
"""
_WRITE = """
for i, key in ipairs(KEYS) do
  local moment = full_at[i] + takes[i]
  empty_for[i] = math.max(0, moment - now)
  local milliseconds = math.ceil(empty_for[i] / 1000)
  if milliseconds > 0 then
    redis.call('SET', key, string.format('%.0f %.0f', moment, now), 'PX', milliseconds)
  else
    redis.call('DEL', key)
  end
end
return {0, 0, unpack(empty_for)}
"""


class RedisLimitStore:
    """``store`` is a Redis's URL, ``timeout`` in seconds for each question to it. ``tell`` is
    called with whether the store answers, whenever that changes."""

    recheck_seconds = _RECHECK_SECONDS

    def __init__(
        self,
        store: str,
        timeout: float,
        fallback: LimitStore,
        tell: Callable[[bool], object],
        clock: Callable[[], float] | None = None,
    ) -> None:
        # It takes a third of a second to import, and hardly anybody shares limits.
        from redis import Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client = Redis.from_url(
            store,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            max_connections=_THREADS,
        )
        self._charge = self._client.register_script(_READ + _DECIDE + _WRITE)
        self._adjust = self._client.register_script(_READ + _WRITE)
        self._reconcile = self._client.register_script(_READ + _RAISE + _WRITE)
        self._failures = (RedisError, OSError)  # TimeoutError is an OSError
        self._timeout = timeout
        self._fallback = fallback
        self._tell = tell
        self._clock = clock or loop_clock()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._answers = True
        self._silent_until = -inf

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """See ``LimitStore``."""
        if not charges:
            return Decision()
        answer = await self._ask(partial(self._charge, *_arguments(charges)))
        if answer is None:
            return await self._fallback.charge(charges, now)
        lacking, wait, *empty_for = answer
        left = [
            bucket.capacity * (1 - each * _MICRO / bucket.seconds)
            for (bucket, _), each in zip(charges, empty_for, strict=True)
        ]
        for (bucket, _), each in zip(charges, left, strict=True):
            await self._fallback.reconcile(bucket, each, each, now)
        if not lacking:
            return Decision()
        return Decision(wait * _MICRO, charges[lacking - 1].bucket, max(0.0, left[lacking - 1]))

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """See ``LimitStore``."""
        question = partial(self._adjust, *_arguments(charges))
        if charges and await self._ask(question, shield=True) is None:
            await self._fallback.adjust(charges, now)

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """See ``LimitStore``. The caller does not know what other processes have in flight, so
        ``least`` is ignored."""
        charges = [Charge(bucket, bucket.capacity - most)]
        if await self._ask(partial(self._reconcile, *_arguments(charges))) is None:
            await self._fallback.reconcile(bucket, least, most, now)

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """See ``LimitStore``."""
        key = _day_key(name, day)
        answer = await self._ask(lambda: int(self._client.get(key) or 0))
        if answer is None:
            return await self._fallback.dollars_spent(name, day)
        return Decimal(answer).scaleb(-_DECIMALS)

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """See ``LimitStore``."""
        key, amount = _day_key(name, day), int(dollars.scaleb(_DECIMALS).to_integral_value())

        def count() -> object:
            with self._client.pipeline(transaction=True) as both:
                both.incrby(key, amount)
                both.expire(key, _DAYS_KEPT)
                return both.execute()

        if await self._ask(count, shield=True) is None:
            await self._fallback.record_dollars(name, day, dollars)

    def close(self) -> None:
        """See ``LimitStore``."""
        self._client.close()

    async def _ask(self, question: Callable[[], Any], *, shield: bool = False) -> Any:
        """What the store says; None where it says nothing. With ``shield`` it is asked also on
        behalf of what has been cancelled."""
        now = self._clock()
        if not self._answers:
            if now < self._silent_until:
                return None
            self._silent_until = now + _TRY_AGAIN  # one asks; the others go by its answer
        answer = None
        try:
            with anyio.fail_after(self._timeout, shield=shield):
                answer = await to_thread.run_sync(
                    question, abandon_on_cancel=True, limiter=self._threads
                )
        except self._failures:
            self._silent_until = now + _TRY_AGAIN
        if self._answers != (answer is not None):
            self._answers = answer is not None
            self._tell(self._answers)
        return answer


def _day_key(name: str, day: int) -> str:
    return f"{_PREFIX}spent:{name}:{day}"


def _arguments(charges: Sequence[Charge]) -> tuple[list[str], list[float]]:
    """KEYS and ARGV of the scripts."""
    keys, seconds = [], []
    for bucket, amount in charges:
        keys.append(_PREFIX + bucket.name)
        seconds += [bucket.seconds, bucket.time_of(amount)]
    return keys, seconds


class ClosedLimitStore:
    """What is asked where nothing may pass while the store does not answer."""

    recheck_seconds = _RECHECK_SECONDS

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """Raises LimitStoreUnavailable."""
        raise LimitStoreUnavailable

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """What is owed is not written down by anybody."""

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """Nor what is left."""

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """Raises LimitStoreUnavailable."""
        raise LimitStoreUnavailable

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """As with ``settle``."""

    def close(self) -> None:
        """There is nothing open."""


def open_limit_store(config: Config, event: Callable[..., object]) -> LimitStore:
    """Where a proxy keeps its limits. ``event`` is how an event is logged: level, message, more."""
    if config.limits_store is None:
        return LocalLimitStore()
    outage = config.limits_store_outage

    def tell(answers: bool) -> None:
        if answers:
            event("info", "The store of limits answers again")
        else:
            event("error", "The store of limits does not answer", outage=outage)

    fallback = LocalLimitStore() if outage == "open" else ClosedLimitStore()
    return RedisLimitStore(config.limits_store, config.limits_store_timeout, fallback, tell)
