"""Admission of chat requests: send now, wait, or reject.

A request is rejected at once if its key may not use the model or has spent its US dollars of the
day, or if the requests of the minute are used up, of its key or of all: waiting would only take
what the requests behind it want as well. Then it waits until the account's quota allows it
(``quota_pacing``, if that is on) and for one of ``MAX_CONCURRENT_REQUESTS`` slots. Slots and
reservations are held by a context manager and released when it exits, also when the client
disconnects.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf

import anyio

from ..config.config import Config
from ..config.values import ClientKey
from ..errors import BadRequest, BudgetSpent, ModelNotFound, NotAdmitted, RateLimited
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange
from .api_keys import ApiKeys
from .fair_queue import FairQueue
from .quota_pacing import QuotaPacing
from .token_buckets import Charge, LimitStore, TokenBucket, day_of

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

        Raises ModelNotFound, BadRequest, BudgetSpent, RateLimited, NotAdmitted.
        """
        key, name = self._api_keys.for_client(exchange.client), str(exchange.client)
        _check_model(key, exchange.model)
        if key.usd_per_day is not None:
            day, seconds_left = day_of(self._wall_clock())
            if await self._limits.dollars_spent(name, day) >= key.usd_per_day:
                raise BudgetSpent(seconds_left)
        await self._charge_request(key, name)
        try:
            async with AsyncExitStack() as held:
                await self._acquire(held, key, exchange)
                yield
        finally:
            if key.usd_per_day is not None and exchange.cost is not None:
                day, _ = day_of(self._wall_clock())
                await self._limits.record_dollars(name, day, exchange.cost)

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
        with anyio.move_on_after(self._timeout) as scope:
            if self._pacing is not None:
                await held.enter_async_context(self._pacing.reserved(exchange))
            slot = self._queue.slot(exchange, self._clock, max_slots)
            await held.enter_async_context(slot)
        if scope.cancelled_caught:
            seconds = self._queue.estimated_wait(exchange.client, self._clock())
            if self._pacing is not None:
                seconds = max(seconds, self._pacing.estimated_wait(exchange))
            raise NotAdmitted(seconds)

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
