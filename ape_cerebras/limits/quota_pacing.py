"""Hold chat requests back just long enough that they do not exceed the account's quota.

The API charges a request when it admits it: one request, and the tokens that it reserves. So is
each request charged here before it is sent, to buckets that mirror the API's own; when it has
ended, tokens that were reserved and not used are refunded. A response reports the quota at the time
the request was admitted. The current value is at most that, and at least that minus all requests
that were in flight together with it. Requests that do not fit wait in a fair queue, of which only
the first may try: so small requests never overtake a large one for ever.

A request that ends without a response, because its client disconnected or the API did not respond,
counts as its estimated prompt. Whether the API counts it so is not known, so the store keeps its
buckets as uncertain: one request may go up as a probe once nothing else is in flight.

That the API refunds unused tokens is not documented. So after a 429 in spite of pacing, nothing is
refunded here for a minute: then only the API's responses say how much is left.

Quotas are per model. Of a model whose quota is unknown, one request is sent alone, and the others
wait for its response. The time that a store takes to decide is not waiting: it does not count
against the longest wait.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf

import anyio

from ..errors import NotAdmitted
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange
from .fair_queue import FairQueue, recording_wait, time_left
from .token_buckets import Charge, Hold, LimitStore, TokenBucket

__all__ = ("QuotaPacing", "estimate_prompt", "estimate_reservation")

_NO_REFUNDS_FOR = 60.0  # seconds
_MAX_MODELS = 100  # of unknown names; clients can send any
_OTHER = "other"  # the name for all models beyond, and for binary bodies
_WINDOWS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}  # seconds
_MAX_COMPLETION = 16_384  # tokens
_BYTES_PER_TOKEN = 4

Amounts = dict[str, int]  # by kind: requests, tokens
_NOTHING: Amounts = {"requests": 0, "tokens": 0}


def estimate_prompt(request_bytes: int) -> int:
    """Tokens of the prompt of a request of that size, as the API is thought to estimate them."""
    return -(-request_bytes // _BYTES_PER_TOKEN)


def estimate_reservation(request_bytes: int, limit: int | None) -> int:
    """Tokens that the API reserves for a request of that size and completion limit.

    It reserves the estimated prompt and the completion limit: 16,384 tokens at most, and where the
    request sets none (reported in 2026). How it estimates the prompt is not documented; here four
    bytes of the request count as a token.
    """
    prompt = estimate_prompt(request_bytes)
    return prompt + (_MAX_COMPLETION if limit is None else min(limit, _MAX_COMPLETION))


@dataclass(slots=True, eq=False)
class _Flight:
    """A request from its admission here on. It is in flight until its response head."""

    reserved: Amounts
    charged: Amounts  # what of that is not refunded yet
    hold: Hold
    began_at: float
    ended_at: float = inf


@dataclass(slots=True, eq=False)
class _ModelQuota:
    """The known quota of one model, its requests in flight, and those that wait."""

    name: str
    queue: FairQueue
    wait: float = 0.0  # seconds, of the first in the queue when it last tried
    is_known: bool = False
    no_refunds_until: float = -inf
    buckets: dict[tuple[str, str], TokenBucket] = field(default_factory=dict)
    admitted: dict[int, _Flight] = field(default_factory=dict)  # by exchange, until it ends
    in_flight: dict[int, _Flight] = field(default_factory=dict)  # by exchange
    arrived: list[_Flight] = field(default_factory=list)  # those that others were in flight with
    changed: anyio.Event = field(default_factory=anyio.Event)

    def charges(self, amounts: Amounts, minus: Amounts = _NOTHING) -> list[Charge]:
        """The amounts, or their difference to others, each as far as a bucket can hold it."""
        return [
            Charge(bucket, min(amounts[kind], bucket.capacity) - min(minus[kind], bucket.capacity))
            for (kind, _), bucket in self.buckets.items()
        ]

    def end_flight(self, exchange: int, now: float) -> _Flight | None:
        """Note that the response head is there; None if it was before."""
        flight = self.in_flight.pop(exchange, None)
        if flight is not None:
            flight.ended_at = now
            oldest = min(each.began_at for each in (flight, *self.in_flight.values()))
            self.arrived = [each for each in (*self.arrived, flight) if each.ended_at > oldest]
        return flight

    def notify_waiting(self) -> None:
        """Let the first in the queue try again."""
        self.changed.set()
        self.changed = anyio.Event()


class QuotaPacing:
    """``known_models`` have a quota each, however many names clients send."""

    def __init__(self, limits: LimitStore, known_models: frozenset[str], max_waiting: int) -> None:
        self._limits = limits
        self._clock = loop_clock()
        self._known_models = known_models
        self._max_waiting = max_waiting
        self._models: dict[str, _ModelQuota] = {}
        self._first_waiting = 0

    @property
    def waiting(self) -> int:
        """Requests that are held back."""
        return self._first_waiting + sum(model.queue.waiting for model in self._models.values())

    def estimated_wait(self, exchange: Exchange) -> float:
        """Seconds that a request like this would wait if it came now."""
        model = self._model_of(exchange)
        return max(model.wait, model.queue.estimated_wait(exchange.client, self._clock()))

    def _model_of(self, exchange: Exchange) -> _ModelQuota:
        name = exchange.model or _OTHER
        if name not in self._models:
            if len(self._models) >= _MAX_MODELS and name not in self._known_models:
                name = _OTHER
            if name not in self._models:
                self._models[name] = _ModelQuota(name, FairQueue(1, self._max_waiting))
        return self._models[name]

    @asynccontextmanager
    async def reserved(self, exchange: Exchange, timeout: float) -> AsyncIterator[None]:
        """Wait until the exchange's tokens fit, hold them for the block, then refund the rest.

        Raises NotAdmitted when the queue is full, or after waiting ``timeout`` seconds.
        """
        model = self._model_of(exchange)
        # Nobody is overtaken while nobody waits.
        if model.queue.in_use or not await self._reserve(model, exchange):
            if not time_left(exchange, timeout):
                raise NotAdmitted(self.estimated_wait(exchange))
            async with model.queue.slot(exchange, self._clock, timeout=timeout):
                await self._wait_first(model, exchange, timeout)
        try:
            yield
        finally:
            await self._settle(model, exchange)

    async def _reserve(self, model: _ModelQuota, exchange: Exchange) -> bool:
        """Reserve the exchange's tokens if they fit."""
        model.wait = 0.0
        if model.in_flight and not model.is_known:
            return False
        amounts = {"requests": 1, "tokens": _reserved_by(exchange)}
        hold = Hold(f"quota:{model.name}")
        decision = await self._limits.charge(model.charges(amounts), self._clock(), hold)
        model.wait = decision.wait
        if decision.wait:
            return False
        flight = _Flight(amounts, amounts, hold, self._clock())
        model.admitted[id(exchange)] = model.in_flight[id(exchange)] = flight
        return True

    async def _wait_first(self, model: _ModelQuota, exchange: Exchange, timeout: float) -> None:
        """Wait as the first in the queue. Raises NotAdmitted."""
        changed = model.changed  # taken first: a change during the attempt counts
        while not await self._reserve(model, exchange):
            left = time_left(exchange, timeout)
            if not left:
                raise NotAdmitted(self.estimated_wait(exchange))
            self._first_waiting += 1
            try:
                with (
                    recording_wait(exchange, self._clock),
                    anyio.move_on_after(min(model.wait or inf, self._limits.recheck_seconds, left)),
                ):
                    await changed.wait()
            finally:
                self._first_waiting -= 1
            changed = model.changed

    async def _settle(self, model: _ModelQuota, exchange: Exchange) -> None:
        """Refund what the exchange did not use, unless it is doubtful that the API does."""
        now = self._clock()
        model.end_flight(id(exchange), now)
        flight = model.admitted.pop(id(exchange))
        sent = exchange.was_sent
        used = flight.charged if sent and now < model.no_refunds_until else _used_by(exchange)
        if flight.charged is not flight.reserved:  # when the head came
            used = flight.charged
        await self._limits.adjust(
            model.charges(used, flight.charged),
            now,
            flight.hold,
            answered=not sent or exchange.upstream_status is not None,
        )
        model.notify_waiting()

    async def update_quota(self, exchange: Exchange) -> None:
        """Correct the model's buckets by the quota in the exchange's response head."""
        model = self._model_of(exchange)
        flight = model.end_flight(id(exchange), self._clock())
        if flight is None:
            return
        rejected = exchange.upstream_status is None or exchange.upstream_status >= 400
        if rejected:  # the reported quota does not include its tokens
            flight.charged = {"requests": int(exchange.upstream_status != 429), "tokens": 0}
            refund = model.charges(flight.charged, flight.reserved)
            await self._limits.adjust(refund, self._clock())
        if exchange.upstream_status == 429:
            model.no_refunds_until = self._clock() + _NO_REFUNDS_FOR
        quota = exchange.quota
        model.is_known = model.is_known or bool(quota.limit) or not rejected
        # The API may have charged these after this request, or will yet.
        others = [
            each.reserved
            for each in (*model.arrived, *model.in_flight.values())
            if each is not flight and each.ended_at > flight.began_at
        ]
        for (kind, window), limit in quota.limit.items():
            if limit and (kind, window) in quota.remaining:
                most = quota.remaining[kind, window]
                least = most - sum(amounts[kind] for amounts in others)
                if (kind, window) not in model.buckets:  # nothing was charged to it so far
                    most = least
                name = f"quota:{model.name}:{kind}:{window}"
                bucket = model.buckets[kind, window] = TokenBucket(name, limit, _WINDOWS[window])
                await self._limits.reconcile(bucket, least, most, self._clock(), flight.hold)
        model.notify_waiting()


def _reserved_by(exchange: Exchange) -> int:
    if exchange.reserved_tokens is not None:
        return exchange.reserved_tokens
    return estimate_reservation(len(exchange.body), None)  # a binary body, which may set a limit


def _used_by(exchange: Exchange) -> Amounts:
    """Nothing if nothing was sent; the prompt if nothing is known of the response."""
    if not exchange.was_sent:
        return _NOTHING
    usage = exchange.counted_usage
    if usage is None:
        prompt = min(_reserved_by(exchange), estimate_prompt(len(exchange.body)))
        return {"requests": 1, "tokens": prompt}
    return {"requests": 1, "tokens": usage.prompt_tokens + usage.completion_tokens}
