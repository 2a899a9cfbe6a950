"""Holding chat requests back just long enough that the account's quota is not overrun.

The API charges a request when it admits it: one request, and the tokens of its reservation. So is
each charged here before it goes up, to buckets that are what the API's answers say of its own; and
when it has ended, what it reserved and did not use comes back. An answer says what was left when it
was begun: no more than that is left now, and no less but for what was on its way at the same time,
of which nobody knows which came first. Who comes while the
buckets have too little waits, in turns of names, one at a time at the head of the line: so nobody
small overtakes somebody large for ever.

That the API gives back what was not used is not documented. So where it rejects a request in spite
of all this, nothing is given back here for a minute: then only its own answers say what there is.

Quotas are a model's. Of one that no answer has told of yet a single request goes first, and the
others wait for what that brings.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

import anyio

from ..net.timestamps import loop_clock
from ..telemetry.exchange import Exchange
from ..upstream.quota import WINDOWS, read_quota
from .queueing import SlotQueue, recording_wait
from .token_buckets import Charge, LimitStore, TokenBucket

__all__ = ("QuotaPacing", "estimate_reservation")

_NO_REFUNDS_FOR = 60.0  # seconds
_MOST_COMPLETION = 16_384  # tokens
_BYTES_PER_TOKEN = 4
_UNKNOWN_AT_MOST = 100  # models; clients can name any

Amounts = dict[str, int]  # by kind: requests, tokens


@dataclass
class _InFlight:
    """A request's way to the API and back, as far as its answer's head."""

    amounts: Amounts
    began_at: float
    ended_at: float = inf


class _ModelQuota:
    """What is known of one model's quota, and who waits for it."""

    def __init__(self, most_waiting: int) -> None:
        self.head = SlotQueue(1, most_waiting)
        self.wait = 0.0  # seconds that who is at the head had to wait when it looked last
        self.is_known = False
        self.no_refunds_until = -inf
        self.buckets: dict[tuple[str, str], TokenBucket] = {}
        self.charged: dict[int, Amounts] = {}  # by exchange, until they are settled
        self.in_flight: dict[int, _InFlight] = {}  # by exchange, until an answer shows it was seen
        self.arrived: list[_InFlight] = []  # while one is on its way that began before they ended
        self.changed = anyio.Event()

    def charges(self, amounts: Amounts) -> list[Charge]:
        return [Charge(bucket, amounts[kind]) for (kind, _), bucket in self.buckets.items()]

    def head_arrived(self, exchange: int, now: float) -> _InFlight | None:
        trip = self.in_flight.pop(exchange, None)
        if trip is not None:
            trip.ended_at = now
            open_since = min(each.began_at for each in (trip, *self.in_flight.values()))
            self.arrived = [each for each in (*self.arrived, trip) if each.ended_at > open_since]
        return trip

    def possibly_uncounted(self, trip: _InFlight) -> list[Amounts]:
        """What the API may have charged after that request, or will yet: of all that were on their
        way together with it."""
        others = (*self.arrived, *self.in_flight.values())
        return [
            each.amounts for each in others if each is not trip and each.ended_at > trip.began_at
        ]

    def wake_waiting(self) -> None:
        """Have whoever waits look again."""
        self.changed.set()
        self.changed = anyio.Event()


class QuotaPacing:
    """``models`` are those that are known to be some."""

    def __init__(self, limits: LimitStore, models: frozenset[str], most_waiting: int) -> None:
        self._limits = limits
        self._clock = loop_clock()
        self._known = models
        self._most_waiting = most_waiting
        self._models: dict[str, _ModelQuota] = {}
        self._at_the_head = 0

    @property
    def waiting(self) -> int:
        """How many are held back."""
        return self._at_the_head + sum(model.head.waiting for model in self._models.values())

    def estimated_wait(self, exchange: Exchange) -> float:
        """How long one like this that came now would wait."""
        model = self._model_of(exchange)
        return max(model.wait, model.head.estimated_wait(exchange.client))

    def _name_of(self, exchange: Exchange) -> str:
        """The model's; of more models than there can be, and of opaque bodies, one for all."""
        model = exchange.model or "other"
        has_room = len(self._models) < _UNKNOWN_AT_MOST
        return model if has_room or model in self._known or model in self._models else "other"

    def _model_of(self, exchange: Exchange) -> _ModelQuota:
        name = self._name_of(exchange)
        if name not in self._models:
            self._models[name] = _ModelQuota(self._most_waiting)
        return self._models[name]

    @asynccontextmanager
    async def reserved(self, exchange: Exchange) -> AsyncIterator[None]:
        """Wait until the exchange's reservation fits, and have it made for as long as the block
        takes; then settle. Raises NotAdmitted."""
        model = self._model_of(exchange)
        amounts = {"requests": 1, "tokens": _tokens_of(exchange)}
        async with model.head.slot(exchange):
            await self._reserve(model, amounts, exchange)
        try:
            yield
        finally:
            await self._release(model, exchange)

    async def _reserve(self, model: _ModelQuota, amounts: Amounts, exchange: Exchange) -> None:
        changed = model.changed  # whatever comes after the look counts
        while not await self._try_reserve(model, amounts):
            self._at_the_head += 1
            try:
                with (
                    recording_wait(exchange, self._clock),
                    anyio.move_on_after(min(model.wait or inf, self._limits.recheck_seconds)),
                ):
                    await changed.wait()
            finally:
                self._at_the_head -= 1
            changed = model.changed
        model.charged[id(exchange)] = amounts
        model.in_flight[id(exchange)] = _InFlight(amounts, self._clock())

    async def _try_reserve(self, model: _ModelQuota, amounts: Amounts) -> bool:
        """Take it, if it can be."""
        model.wait = 0.0
        if not model.is_known and model.in_flight:
            return False
        decision = await self._limits.charge(model.charges(amounts), self._clock())
        model.wait = decision.wait
        return not decision.wait

    async def update_quota(self, exchange: Exchange) -> None:
        """Take in what the exchange's answer says of the quota, as soon as its head is there."""
        model = self._model_of(exchange)
        trip = model.head_arrived(id(exchange), self._clock())
        if trip is None:
            return
        refused = exchange.upstream_status is None or exchange.upstream_status >= 400
        if refused:  # what is left is told without the tokens that it would have had
            had = {"requests": int(exchange.upstream_status != 429), "tokens": 0}
            await self._refund(model, exchange, had)
        if exchange.upstream_status == 429:
            model.no_refunds_until = self._clock() + _NO_REFUNDS_FOR
        quota = read_quota(exchange.upstream_headers)
        model.is_known = model.is_known or bool(quota.limit) or not refused
        unseen = model.possibly_uncounted(trip)
        for (kind, window), limit in quota.limit.items():
            if limit and (kind, window) in quota.remaining:
                most = quota.remaining[kind, window]
                least = most - sum(amounts[kind] for amounts in unseen)
                if (kind, window) not in model.buckets:  # nothing was charged to it so far
                    most = least
                name = f"quota:{self._name_of(exchange)}:{kind}:{window}"
                bucket = model.buckets[kind, window] = TokenBucket(name, limit, WINDOWS[window])
                await self._limits.reconcile(bucket, least, most, self._clock())
        model.wake_waiting()

    async def _release(self, model: _ModelQuota, exchange: Exchange) -> None:
        now = self._clock()
        model.head_arrived(id(exchange), now)
        if exchange.sent_at is not None and now < model.no_refunds_until:
            model.charged.pop(id(exchange), None)
        else:
            await self._refund(model, exchange, _used_by(exchange))
        model.wake_waiting()

    async def _refund(self, model: _ModelQuota, exchange: Exchange, used: Amounts) -> None:
        """What was charged for the exchange beyond that; once is enough."""
        charged = model.charged.pop(id(exchange), used)
        beyond = {kind: used[kind] - charged[kind] for kind in used}
        await self._limits.adjust(model.charges(beyond), self._clock())


def estimate_reservation(request_bytes: int, completion_limit: int | None) -> int:
    """Tokens that the API reserves for a request when it admits it, about.

    They are the prompt's estimate and the most completion tokens: reported of 2026, 16,384 where
    the request names no limit, and never more. How the API estimates a prompt is not documented;
    here four bytes of the request count as a token.
    """
    most = _MOST_COMPLETION if completion_limit is None else completion_limit
    return -(-request_bytes // _BYTES_PER_TOKEN) + min(most, _MOST_COMPLETION)


def _tokens_of(exchange: Exchange) -> int:
    if exchange.reserved_tokens is not None:
        return exchange.reserved_tokens
    return estimate_reservation(len(exchange.body), None)  # an opaque body, which may say less


def _used_by(exchange: Exchange) -> Amounts:
    """Nothing where nothing was sent; all that was reserved where the answer does not tell."""
    if exchange.sent_at is None:
        return {"requests": 0, "tokens": 0}
    if exchange.usage is None:
        return {"requests": 1, "tokens": _tokens_of(exchange)}
    usage = exchange.usage
    return {"requests": 1, "tokens": usage.prompt_tokens + usage.completion_tokens}
