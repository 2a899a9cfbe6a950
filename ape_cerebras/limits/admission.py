"""Admission of chat requests: send now, wait, or reject.

A request is rejected at once if its key may not use the model, or if what the request may cost does
not fit into what is left of the key's US dollars of the day, or if the requests of the minute are
used up, of its key or of all: waiting would only take what the requests behind it want as well.
Then it waits until the account's quota allows it (``quota_pacing``, if that is on) and for one of
``MAX_CONCURRENT_REQUESTS`` slots. Slots and reservations are held by a context manager and released
when it exits, also when the client disconnects.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from math import inf

from ..config.config import Config
from ..config.keys import ClientKey
from ..errors import (
    BadRequest,
    BudgetReserved,
    BudgetSpent,
    ModelNotFound,
    NotAdmitted,
    RateLimited,
)
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange
from .api_keys import ApiKeys
from .fair_queue import FairQueue
from .quota_pacing import QuotaPacing
from .token_buckets import Budget, Charge, Hold, LimitStore, TokenBucket, day_of

__all__ = ("Admission",)

_MINUTE = 60.0  # seconds


class Admission:
    """The limits of one proxy, and the requests that wait."""

    def __init__(
        self,
        config: Config,
        api_keys: ApiKeys,
        limits: LimitStore | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._api_keys = api_keys
        self._limits = limits or LimitStore()
        self._clock = loop_clock()
        self._wall_clock = wall_clock
        self._timeout = config.queue_timeout
        slots, length = config.max_concurrent_requests, config.max_queue_length
        self._queue = FairQueue(inf if slots is None else slots, length)
        self._pacing: QuotaPacing | None = None
        if config.quota_pacing:
            self._pacing = QuotaPacing(self._limits, config.known_models, length)
        self._rate_limit = config.rate_limit_per_minute
        self.paces_quota = config.quota_pacing
        """Whether ``update_quota`` has to be called for each response head."""
        has_limit = self._rate_limit is not None or slots is not None
        self._limits_all = has_limit or self.paces_quota

    @property
    def is_limited(self) -> bool:
        """Whether a request has to be admitted before it is sent."""
        return self._limits_all or self._api_keys.any_limited

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        held_back = 0 if self._pacing is None else self._pacing.waiting
        return self._queue.waiting + held_back

    @asynccontextmanager
    async def admitted(self, exchange: Exchange) -> AsyncIterator[None]:
        """Wait for a slot, hold it for the block, and charge the exchange's cost at its end.

        Raises ModelNotFound, BadRequest, BudgetSpent, BudgetReserved, RateLimited,
        NotAdmitted.
        """
        key, name = self._api_keys.for_client(exchange.client), str(exchange.client)
        _check_model(key, exchange.model)
        _check_price(key, exchange)
        async with AsyncExitStack() as held:
            if key.usd_per_day is not None:
                await held.enter_async_context(self._budgeted(name, key.usd_per_day, exchange))
            await self._charge_request(key, name)
            try:
                await self._acquire(held, key, exchange)
            except NotAdmitted:
                raise NotAdmitted(self._estimated_wait(exchange)) from None
            yield

    @asynccontextmanager
    async def _budgeted(
        self, name: str, dollars: Decimal, exchange: Exchange
    ) -> AsyncIterator[None]:
        """Reserve what the exchange may cost, and settle what it did cost, on the day on which it
        began. Raises BudgetSpent, BudgetReserved."""
        day, seconds_left = day_of(self._wall_clock())
        budget, hold = Budget(name, day, dollars), Hold()
        amount = exchange.reserved_cost or Decimal(0)
        watched = self._api_keys.with_budget
        balance = await self._limits.reserve_dollars(budget, amount, hold, watched)
        if balance.spent >= dollars:
            raise BudgetSpent(seconds_left)
        if not balance.granted:
            # Requests in flight give back what they do not use.
            may_fit_soon = balance.spent + amount <= dollars
            raise BudgetReserved(1.0 if may_fit_soon else seconds_left, retry=may_fit_soon)
        try:
            yield
        finally:
            await self._limits.settle_dollars(budget, hold, exchange.cost or Decimal(0))

    async def _charge_request(self, key: ClientKey, name: str) -> None:
        """Count the request of the minute. Raises RateLimited."""
        limits = {"requests": self._rate_limit, f"requests:{name}": key.requests_per_minute}
        charges = [
            Charge(TokenBucket(bucket, limit, _MINUTE), 1)
            for bucket, limit in limits.items()
            if limit is not None
        ]
        if charges:
            decision = await self._limits.charge(charges, self._clock())
            if decision.lacking is not None:
                raise RateLimited(decision.lacking.capacity, decision.left, decision.wait)

    async def _acquire(self, held: AsyncExitStack, key: ClientKey, exchange: Exchange) -> None:
        """Put a reservation and a slot on the stack as soon as they are free. Raises
        NotAdmitted."""
        max_slots = inf if key.concurrent_requests is None else key.concurrent_requests
        if self._pacing is not None:
            await held.enter_async_context(self._pacing.reserved(exchange, self._timeout))
        slot = self._queue.slot(exchange, self._clock, max_slots, self._timeout)
        await held.enter_async_context(slot)

    def _estimated_wait(self, exchange: Exchange) -> float:
        """Seconds that a request like this would wait if it came now."""
        seconds = self._queue.estimated_wait(exchange.client, self._clock())
        return (
            seconds if self._pacing is None else max(seconds, self._pacing.estimated_wait(exchange))
        )

    async def update_quota(self, exchange: Exchange) -> None:
        """Take over the account's quota from the response head of the exchange."""
        if self._pacing is not None:
            await self._pacing.update_quota(exchange)


def _check_model(key: ClientKey, model: str | None) -> None:
    """Raises ModelNotFound or BadRequest if the key may not use the model."""
    if key.models is None:
        return
    if model is None:
        raise BadRequest("This key may ask for some models only: send plain JSON, which tells one.")
    if model not in key.models:
        raise ModelNotFound


def _check_price(key: ClientKey, exchange: Exchange) -> None:
    """Raises BadRequest if the key may not use the model because it has no price."""
    if key.unpriced == "allow":
        return
    if exchange.model is None:
        raise BadRequest(
            "This key may ask for priced models only: send plain JSON, which tells one."
        )
    if exchange.reserved_cost is None:
        raise BadRequest("This model has no price, and this key may ask for priced models only.")
