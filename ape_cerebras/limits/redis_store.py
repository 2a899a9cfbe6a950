"""A limit store in Redis, shared by all workers and replicas of a proxy.

A Lua script decides as ``token_buckets.decide`` does. Redis runs one script at a time, so charges
of any number of proxies are made whole or not at all. Its clock is everybody's. A bucket's key
holds the time at which the bucket will be full and the time of writing, in microseconds, and
expires when the bucket is full; the key of a name and a day holds the amount spent. Nothing that a
client sent is stored. If the clock of Redis is set back, the times move with it; if it is set
forward, that much time has passed.

The library's blocking calls are made in threads, because its asynchronous client knows asyncio
only. While Redis does not respond, the in-process store is used that this one inherits from. One
request per second tries Redis again; the others do not wait. The in-process store follows every
Redis reply, so it continues from the last known state.
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
from ..net.event_loop import loop_clock
from ..telemetry.logs import Logs
from .token_buckets import Charge, Decision, LimitStore, TokenBucket

__all__ = ("RedisLimitStore", "open_limit_store")

_PREFIX = "{ape-cerebras}:"  # in braces, so that all keys are on one node of a cluster
_THREADS = 8
_RETRY_AFTER = 1.0  # seconds
_MICRO = 1e-6
_DECIMALS = 12  # of a dollar: Redis adds whole numbers of 64 bits exactly
_DAYS_KEPT = timedelta(days=8)  # a proxy's clock may be set back

# ARGV holds two numbers for each bucket in KEYS: the seconds in which it is refilled, and those in
# which the charged amount is. A full bucket is the same as one that was never used.
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


class RedisLimitStore(LimitStore):
    """Buckets and daily spending in the Redis at the URL ``store``.

    A call takes at most ``timeout`` seconds. While Redis does not respond, the inherited methods
    are the fallback; with ``closed``, requests are rejected instead.
    """

    recheck_seconds = 0.5

    def __init__(
        self,
        store: str,
        timeout: float,
        *,
        closed: bool,
        logs: Logs,
        clock: Callable[[], float] | None = None,
    ) -> None:
        # The import takes a third of a second, and few proxies share limits.
        from redis import Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        super().__init__()
        self._client = Redis.from_url(
            store,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            max_connections=_THREADS,
        )
        self._charge_script = self._client.register_script(_READ + _DECIDE + _WRITE)
        self._adjust_script = self._client.register_script(_READ + _WRITE)
        self._reconcile_script = self._client.register_script(_READ + _RAISE + _WRITE)
        self._failures = (RedisError, OSError)  # TimeoutError is an OSError
        self._timeout = timeout
        self._closed = closed
        self._logs = logs
        self._clock = clock or loop_clock()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._responds = True
        self._retry_at = -inf

    async def charge(self, charges: Sequence[Charge], now: float) -> Decision:
        """See ``LimitStore``. Raises LimitStoreUnavailable."""
        if not charges:
            return Decision()
        reply = await self._call(partial(self._charge_script, *_arguments(charges)))
        if reply is None:
            if self._closed:
                raise LimitStoreUnavailable
            return await super().charge(charges, now)
        lacking, wait, *until_full = reply
        left = [
            bucket.capacity * (1 - each * _MICRO / bucket.seconds)
            for (bucket, _), each in zip(charges, until_full, strict=True)
        ]
        for (bucket, _), each in zip(charges, left, strict=True):
            await super().reconcile(bucket, each, each, now)
        if not lacking:
            return Decision()
        return Decision(wait * _MICRO, charges[lacking - 1].bucket, max(0.0, left[lacking - 1]))

    async def adjust(self, charges: Sequence[Charge], now: float) -> None:
        """See ``LimitStore``."""
        script = partial(self._adjust_script, *_arguments(charges))
        if charges and await self._call(script, shield=True) is None:
            await super().adjust(charges, now)

    async def reconcile(self, bucket: TokenBucket, least: float, most: float, now: float) -> None:
        """See ``LimitStore``. The caller does not know what other processes have in flight, so
        ``least`` is ignored."""
        charges = [Charge(bucket, bucket.capacity - most)]
        if await self._call(partial(self._reconcile_script, *_arguments(charges))) is None:
            await super().reconcile(bucket, least, most, now)

    async def dollars_spent(self, name: str, day: int) -> Decimal:
        """See ``LimitStore``. Raises LimitStoreUnavailable."""
        key = f"{_PREFIX}spent:{name}:{day}"
        reply = await self._call(lambda: int(self._client.get(key) or 0))
        if reply is None:
            if self._closed:
                raise LimitStoreUnavailable
            return await super().dollars_spent(name, day)
        return Decimal(reply).scaleb(-_DECIMALS)

    async def record_dollars(self, name: str, day: int, dollars: Decimal) -> None:
        """See ``LimitStore``."""
        key = f"{_PREFIX}spent:{name}:{day}"
        amount = int(dollars.scaleb(_DECIMALS).to_integral_value())

        def add() -> object:
            with self._client.pipeline(transaction=True) as both:
                both.incrby(key, amount)
                both.expire(key, _DAYS_KEPT)
                return both.execute()

        if await self._call(add, shield=True) is None:
            await super().record_dollars(name, day, dollars)

    def close(self) -> None:
        """See ``LimitStore``."""
        self._client.close()

    async def _call(self, command: Callable[[], Any], *, shield: bool = False) -> Any:
        """Run a blocking command in a thread; None if Redis does not respond. With ``shield``, a
        cancelled caller waits for it too."""
        now = self._clock()
        if not self._responds:
            if now < self._retry_at:
                return None
            self._retry_at = now + _RETRY_AFTER  # this request tries; the others do not wait
        reply = None
        try:
            with anyio.fail_after(self._timeout, shield=shield):
                reply = await to_thread.run_sync(
                    command, abandon_on_cancel=True, limiter=self._threads
                )
        except self._failures:
            self._retry_at = now + _RETRY_AFTER
        responds = reply is not None
        if responds and not self._responds:
            self._logs.event("info", "Limit store responds again")
        elif self._responds and not responds:
            outage = "closed" if self._closed else "open"
            self._logs.event("error", "Limit store does not respond", outage=outage)
        self._responds = responds
        return reply


def _arguments(charges: Sequence[Charge]) -> tuple[list[str], list[float]]:
    """KEYS and ARGV of the scripts."""
    keys, seconds = [], []
    for bucket, amount in charges:
        keys.append(_PREFIX + bucket.name)
        seconds += [bucket.seconds, bucket.seconds_for(amount)]
    return keys, seconds


def open_limit_store(config: Config, logs: Logs) -> LimitStore:
    """The store that the settings name."""
    if config.limits_store is None:
        return LimitStore()
    closed = config.limits_store_outage == "closed"
    timeout = config.limits_store_timeout
    return RedisLimitStore(config.limits_store, timeout, closed=closed, logs=logs)
