"""A limit store in Redis, shared by all workers and replicas of a proxy.

A Lua script, ``redis_store.lua``, decides as ``token_buckets`` does. Redis runs one script at a
time, so charges of any number of proxies are made whole or not at all. Its clock is everybody's. If
it is set back, the times move with it; if it is set forward, that much time has passed. Entries:

* a bucket: when it will be full and when that was written, in microseconds; then ``?`` if it is
  uncertain, and the hold of the request that was alone in flight. It expires when it is full.
* ``held:…``: the holds of one model's buckets, or of one key's budget, each with what it has taken,
  by the time at which they expire. So a process that ends without settling blocks nothing for long.
* ``spent:…``: what each process has spent of a budget on a day.

Nothing that a client sent is stored but names of models. What is there is not taken on faith: the
script replaces an entry of another form, and reports it.

The library's blocking calls are made in threads, because its asynchronous client knows asyncio
only. While Redis does not respond, the in-process store is used that this one inherits from. One
request per second tries Redis again; the others do not wait. The in-process store follows every
Redis reply, so it continues from the last known state. Redis gets afterwards what was settled in
the meantime.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from decimal import ROUND_CEILING, Decimal
from functools import partial
from importlib.resources import files
from itertools import islice
from math import inf
from secrets import token_hex
from typing import Any, NamedTuple

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from ..errors import LimitStoreUnavailable
from ..net.event_loop import Clock, loop_clock
from ..telemetry.logs import Logs
from .token_buckets import Balance, Budget, Charge, Decision, Hold, LimitStore, TokenBucket

__all__ = ("RedisLimitStore",)

_PREFIX = "{ape-cerebras}:"  # in braces, so that all keys are on one node of a cluster
_THREADS = 8
_RETRY_AFTER = 1.0  # seconds
_LONGEST_RETRY_AFTER = 30.0  # seconds, where outages follow one another
_STEADY_FOR = 60.0  # seconds without an outage, after which the next one is a new one
_MICRO = 1e-6
_DECIMALS = 12  # of a dollar
_KEPT_SECONDS = 8 * 24 * 60 * 60  # of a day's dollars; a proxy's clock may be set back
# Longer than an exchange takes: 40,960 tokens, the most of a model, at 100 tokens a second are 410.
_HOLD_SECONDS = 900
_WATCH_EVERY = 5.0  # seconds
_UNSENT_AT_ONCE = 50
_MOST_REPORTED = 100  # damaged entries


class _Command(NamedTuple):
    """KEYS and ARGV of the script."""

    keys: list[str]
    arguments: list[str | float]


class _Reply(NamedTuple):
    """Of the script. Of buckets: the place of the lacking one, from 1 on, or 0; the microseconds to
    wait; those until each is full. Of dollars, in units: whether the amount is reserved; what was
    before; what other processes have spent, of each key. Then the damaged entries."""

    result: int
    amount: int
    values: list[int]
    damaged: list[str]


# Words for what a failed call met, by the name of the exception's class: those of the library are
# known only where it is imported.
_TROUBLES = {
    "ReadOnlyError": "read-only replica",
    "OutOfMemoryError": "out of memory",
    "AuthenticationError": "refused",
    "NoPermissionError": "refused",
    "BusyLoadingError": "loading",
    "TimeoutError": "timeout",
    "ConnectionError": "connection",
    "OSError": "connection",
    "ResponseError": "error",
}


class RedisLimitStore(LimitStore):
    """Buckets and daily spending in the Redis at the URL ``store``.

    A call takes at most ``timeout`` seconds. While Redis does not respond, the inherited methods
    are the fallback; with ``closed``, requests are rejected instead.
    """

    recheck_seconds = 0.5

    def __init__(
        self, store: str, timeout: float, *, closed: bool, logs: Logs, clock: Clock | None = None
    ) -> None:
        # The import takes a third of a second, and few proxies share limits.
        from redis import Redis
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
        script = (files(__package__) / "redis_store.lua").read_text("utf-8")
        self._script = self._client.register_script(script)
        self._process = token_hex(8)
        self._timeout = timeout
        self._closed = closed
        self._logs = logs
        self._clock = clock or loop_clock()
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._responds = True
        self._changes = 0  # of that
        self._changed_at = self._retry_at = self._watched_at = -inf
        self._pause = _RETRY_AFTER
        self._unsent: dict[str, _Command] = {}
        self._reported: set[str] = set()

    async def charge(
        self, charges: Sequence[Charge], now: float, hold: Hold | None = None
    ) -> Decision:
        """See ``LimitStore``. Raises LimitStoreUnavailable."""
        if not charges:
            if hold is not None:
                hold.entry = ""
            return await super().charge(charges, now, hold)
        entry = "" if hold is None else hold.entry_for(charges)
        command = _bucket_command("charge", charges, hold, entry)
        reply = await self._call(command, len(charges), hold)
        if reply is None:
            return await self._charge_alone(charges, now, hold)
        left = await self._follow(charges, reply, now)
        if reply.result:
            lacking = reply.result - 1
            wait = max(1, reply.amount) * _MICRO
            return Decision(wait, charges[lacking].bucket, max(0.0, left[lacking]))
        try:
            await checkpoint_if_cancelled()
        except BaseException:
            await self.adjust(_negated(charges), now, hold)
            raise
        return Decision()

    async def _charge_alone(
        self, charges: Sequence[Charge], now: float, hold: Hold | None
    ) -> Decision:
        """Decide without Redis, which may have taken the charges before it failed."""
        decision = Decision(inf) if self._closed else await super().charge(charges, now, hold)
        if decision.wait and hold is not None and hold.entry:
            command = _bucket_command("adjust", _negated(charges), hold, hold.entry)
            self._unsent[hold.entry] = command
        if self._closed:
            raise LimitStoreUnavailable
        return decision

    async def adjust(
        self,
        charges: Sequence[Charge],
        now: float,
        hold: Hold | None = None,
        *,
        answered: bool = True,
    ) -> None:
        """See ``LimitStore``."""
        entry = "" if hold is None else hold.entry
        reply = None
        if entry is not None and charges:
            command = _bucket_command("adjust", charges, hold, entry, "" if answered else "?")
            reply = await self._call(command, len(charges))
            if reply is None and entry:
                self._unsent[entry] = command
        await super().adjust(charges, now, hold, answered=answered)
        if reply is not None:
            await self._follow(charges, reply, now)

    async def reconcile(
        self, bucket: TokenBucket, least: float, most: float, now: float, hold: Hold | None = None
    ) -> None:
        """See ``LimitStore``. The caller does not know what other processes have in flight, so
        ``least`` counts only where ``hold`` was the only one since it was charged."""
        charges = [Charge(bucket, bucket.capacity - max(0.0, most))]
        latest = bucket.seconds_for(bucket.capacity - max(0.0, least))
        entry = (hold and hold.entry) or ""
        command = _bucket_command("reconcile", charges, hold, entry, latest)
        reply = await self._call(command, len(charges))
        await super().reconcile(bucket, least, most, now, hold)
        if reply is not None:
            await self._follow(charges, reply, now)

    async def _follow(self, charges: Sequence[Charge], reply: _Reply, now: float) -> list[float]:
        """Note in this process what is left in the buckets, and return it."""
        left = [
            bucket.capacity * (1 - until_full * _MICRO / bucket.seconds)
            for (bucket, _), until_full in zip(charges, reply.values, strict=True)
        ]
        for (bucket, _), each in zip(charges, left, strict=True):
            await super().reconcile(bucket, each, each, now)
        return left

    async def reserve_dollars(
        self, budget: Budget, amount: Decimal, hold: Hold, watched: Collection[str] = ()
    ) -> Balance:
        """See ``LimitStore``. Raises LimitStoreUnavailable.

        Every few seconds what others have spent of all the ``watched`` budgets is read too, so that
        an outage finds it known in each process.
        """
        now, names = self._clock(), [budget.name]
        if now - self._watched_at >= _WATCH_EVERY:
            names += [name for name in watched if name != budget.name]
        spending = self._spending_of(budget.name, budget.day)
        entry = f"{hold.id} {_units(amount)}" if amount else ""
        amounts = spending.others, amount, budget.dollars
        command = self._dollar_command("reserve", budget, names, entry, *amounts)
        reply = await self._call(command, len(names), hold)
        if reply is None:
            return await self._reserve_alone(budget, amount, hold)
        for name, units in zip(names, reply.values, strict=True):
            each = self._spending_of(name, budget.day)
            each.others = max(each.others, _dollars(units))
        if len(names) > 1:
            self._watched_at = now
        reserved = _dollars(reply.amount)
        if not reply.result:
            return Balance(False, spending.own + spending.others, reserved)
        spending.held[hold.id] = amount
        try:
            await checkpoint_if_cancelled()
        except BaseException:
            await self.settle_dollars(budget, hold, Decimal(0))
            raise
        return Balance(True, spending.own + spending.others, reserved)

    async def _reserve_alone(self, budget: Budget, amount: Decimal, hold: Hold) -> Balance:
        """Decide without Redis, which may have reserved the amount before it failed."""
        balance = None if self._closed else await super().reserve_dollars(budget, amount, hold)
        if balance is None or not balance.granted:
            self._settle_later(budget, hold)
        if balance is None:
            raise LimitStoreUnavailable
        return balance

    async def settle_dollars(self, budget: Budget, hold: Hold, cost: Decimal) -> None:
        """See ``LimitStore``."""
        await super().settle_dollars(budget, hold, cost)
        if (cost or hold.entry) and await self._call(self._settlement(budget, hold), 0) is None:
            self._settle_later(budget, hold)

    def _settle_later(self, budget: Budget, hold: Hold) -> None:
        command = self._settlement(budget, hold)
        self._unsent[hold.entry or command.keys[0]] = command

    def _settlement(self, budget: Budget, hold: Hold) -> _Command:
        return self._dollar_command("settle", budget, (budget.name,), hold.entry or "")

    def _dollar_command(
        self, operation: str, budget: Budget, names: Sequence[str], entry: str, *amounts: Decimal
    ) -> _Command:
        first, *others = (f"{_PREFIX}spent:{name}:{budget.day}" for name in names)
        keys = [first, f"{_PREFIX}held:{budget.name}:{budget.day}", *others]
        own = _units(self._spending_of(budget.name, budget.day).own)
        fixed = (operation, entry, _HOLD_SECONDS, self._process, own, _KEPT_SECONDS)
        return _Command(keys, [*fixed, *map(_units, amounts)])

    def close(self) -> None:
        """See ``LimitStore``."""
        self._client.close()

    async def _call(
        self, command: _Command, values: int, hold: Hold | None = None
    ) -> _Reply | None:
        """Run a command in a thread, and with it some of those that failed before. None if Redis
        does not respond, or not as it should: with so many values.

        A cancelled caller waits too, so that nothing is taken of which nobody knows. ``hold`` gets
        its entry, unless Redis was not asked.
        """
        now = self._clock()
        if not self._responds:
            if now < self._retry_at:
                return None
            self._retry_at = now + self._pause  # this request tries; the others do not wait
        if hold is not None:
            hold.entry = str(command.arguments[1])
        changes = self._changes
        late: dict[str, _Command] = dict(islice(self._unsent.items(), _UNSENT_AT_ONCE))
        reply: _Reply | None = None
        trouble: str | None = "timeout"
        with anyio.move_on_after(self._timeout, shield=True):
            try:
                reply, trouble = await to_thread.run_sync(
                    partial(self._run, [command, *late.values()], values),
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )
            except RuntimeError:
                trouble = "no thread"
        if changes == self._changes:  # else it was asked before that, and says nothing about now
            self._note(trouble)
        if reply is not None:
            for key in [key for key, sent in late.items() if self._unsent.get(key) is sent]:
                del self._unsent[key]
            self._report_damaged(reply.damaged)
        return reply

    def _run(self, commands: Sequence[_Command], values: int) -> tuple[_Reply | None, str | None]:
        """Return the reply to the first of the commands, or a word for what was met."""
        try:
            if len(commands) == 1:
                return _read_reply(self._script(*commands[0]), values), None
            with self._client.pipeline(transaction=False) as pipeline:
                for keys, arguments in commands:
                    self._script(keys, arguments, client=pipeline)
                return _read_reply(pipeline.execute()[0], values), None
        except Exception as error:  # also of a connection that another thread has closed
            names = (kind.__name__ for kind in type(error).__mro__)
            return None, next((_TROUBLES[name] for name in names if name in _TROUBLES), "reply")

    def _note(self, trouble: str | None) -> None:
        """Note whether Redis responds. Outages that follow one another get longer, so that a Redis
        that responds now and then does not change every limit each second."""
        now = self._clock()
        if trouble is not None:
            # They may lead to a peer that is gone, or that has become a replica.
            with suppress(Exception):
                self._client.connection_pool.disconnect()
            if self._responds:
                steady = now - self._changed_at >= _STEADY_FOR
                self._pause = _RETRY_AFTER if steady else min(2 * self._pause, _LONGEST_RETRY_AFTER)
                fields = {"outage": "closed" if self._closed else "open", "reason": trouble}
                self._logs.event("error", "Limit store does not respond", **fields)
            self._retry_at = now + self._pause
        elif not self._responds:
            self._logs.event("info", "Limit store responds again")
        if self._responds != (trouble is None):
            self._responds, self._changed_at = trouble is None, now
            self._changes += 1

    def _report_damaged(self, entries: list[str]) -> None:
        """Log once for each entry that it was replaced."""
        for entry in {*entries} - self._reported:
            if len(self._reported) < _MOST_REPORTED:
                self._reported.add(entry)
                self._logs.event("warning", "Limit store held a damaged entry", entry=entry)


def _negated(charges: Sequence[Charge]) -> list[Charge]:
    return [Charge(bucket, -amount) for bucket, amount in charges]


def _bucket_command(
    operation: str, charges: Sequence[Charge], hold: Hold | None, entry: str, extra: object = ""
) -> _Command:
    keys = [_PREFIX + bucket.name for bucket, _ in charges]
    arguments: list[str | float] = [operation, entry, _HOLD_SECONDS, str(extra)]
    for bucket, amount in charges:
        label = "" if hold is None else hold.label_of(bucket)
        arguments += [label, bucket.seconds, bucket.seconds_for(amount)]
    return _Command([*keys, f"{_PREFIX}held:{hold.group}"] if hold and entry else keys, arguments)


def _units(dollars: Decimal) -> str:
    """A whole number, as the script has them. Lua is exact to 2^53 of them: 9,007 dollars."""
    return str(int(dollars.scaleb(_DECIMALS).to_integral_value(ROUND_CEILING)))


def _dollars(units: int) -> Decimal:
    return Decimal(units).scaleb(-_DECIMALS)


def _read_reply(reply: Any, values: int) -> _Reply:
    """Raises an exception of some kind where it has another shape."""
    result, amount, found, damaged = reply
    names = [entry.decode("utf-8", "replace").removeprefix(_PREFIX) for entry in damaged]
    read = _Reply(int(result), int(amount), [int(each) for each in found], names)
    if len(read.values) != values or not 0 <= read.result <= max(1, values):
        raise ValueError
    return read
