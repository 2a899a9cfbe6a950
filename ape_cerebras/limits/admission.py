"""Whether a chat request may go up now, has to wait for its turn, or is refused.

A request is refused at once where its key may not have the model, or has spent its US dollars of
the day; or where the requests of the minute are spent, in all or of its key: it could only wait for
what those behind it want as well. Then it waits until the account's quota allows it (``pacing``),
where that is asked for, and for one of ``MAX_CONCURRENT_REQUESTS`` slots, which it holds until its
exchange ends. All that is held is a block's: whatever ends the block, and be it that the client
leaves, gives it back.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf

import anyio

from ..config.config import Config
from ..config.values import ClientKey
from ..errors import BadRequest, BudgetSpent, ModelNotFound, NotAdmitted, RateLimited
from ..net.timestamps import loop_clock
from ..telemetry.exchange import Exchange
from .api_keys import ApiKeys
from .queueing import SlotQueue
from .quota_pacing import QuotaPacing
from .token_buckets import Charge, LimitStore, LocalLimitStore, TokenBucket, day_of

__all__ = ("Admission",)

_MINUTE = 60.0  # seconds


def _one_request(name: str, per_minute: int) -> Charge:
    return Charge(TokenBucket(name, per_minute, _MINUTE), 1)


def _check_model(key: ClientKey, model: str | None) -> None:
    """Whether the key may ask for that model. Raises ModelNotFound, BadRequest."""
    if key.models is None:
        return
    if model is None:
        raise BadRequest("This key may ask for some models only: send plain JSON, which tells one.")
    if model not in key.models:
        raise ModelNotFound


class Admission:
    """The limits of one proxy, and those who wait."""

    def __init__(
        self,
        config: Config,
        api_keys: ApiKeys,
        limits: LimitStore | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._api_keys = api_keys
        self._limits = limits or LocalLimitStore()
        self._clock = loop_clock()
        self._wall_clock = wall_clock
        self._max_wait = config.queue_timeout
        slots, length = config.max_concurrent_requests, config.max_queue_length
        self._queue = SlotQueue(inf if slots is None else slots, length)
        self._pacing: QuotaPacing | None = None
        if config.quota_pacing:
            self._pacing = QuotaPacing(self._limits, config.known_models, length)
        self._in_all: tuple[Charge, ...] = ()
        if config.rate_limit_per_minute is not None:
            self._in_all = (_one_request("requests", config.rate_limit_per_minute),)
        self.paces_quota = config.quota_pacing
        """Whether ``learn`` wants to be told of answers."""
        self._limits_all = bool(self._in_all) or slots is not None or self.paces_quota

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to ask before a request goes up."""
        return self._limits_all or self._api_keys.any_limited

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        held_back = 0 if self._pacing is None else self._pacing.waiting
        return self._queue.waiting + held_back

    @asynccontextmanager
    async def admitted(self, exchange: Exchange) -> AsyncIterator[None]:
        """Hold a slot for as long as the block takes, and charge what that has cost.

        Raises ModelNotFound, BadRequest, BudgetSpent, RateLimited, NotAdmitted.
        """
        key = self._api_keys.for_client(exchange.client)
        _check_model(key, exchange.model)
        await self._check_budget(key, str(exchange.client))
        await self._charge_request(key, str(exchange.client))
        most = inf if key.concurrent_requests is None else key.concurrent_requests
        try:
            async with AsyncExitStack() as held:
                await self._wait(held, exchange, most)
                yield
        finally:
            await self._charge_cost(key, exchange)

    async def _wait(self, held: AsyncExitStack, exchange: Exchange, most: float) -> None:
        """Have what the exchange needs held, as soon as it is its turn. Raises NotAdmitted."""
        with anyio.move_on_after(self._max_wait) as scope:
            if self._pacing is not None:
                await held.enter_async_context(self._pacing.reserved(exchange))
            await held.enter_async_context(self._queue.slot(exchange, most))
        if scope.cancelled_caught:
            seconds = self._queue.estimated_wait(exchange.client)
            if self._pacing is not None:
                seconds = max(seconds, self._pacing.estimated_wait(exchange))
            raise NotAdmitted(seconds)

    async def update_quota(self, exchange: Exchange) -> None:
        """Take in what the head of an answer tells of the account's quota."""
        if self._pacing is not None:
            await self._pacing.update_quota(exchange)

    async def _charge_request(self, key: ClientKey, name: str) -> None:
        charges = self._in_all
        if key.requests_per_minute is not None:
            own = _one_request(f"requests:{name}", key.requests_per_minute)
            charges = (*charges, own)
        if charges:
            decision = await self._limits.charge(charges, self._clock())
            if decision.wait:
                capacity = 0.0 if decision.lacking is None else decision.lacking.capacity
                raise RateLimited(capacity, decision.left, decision.wait)

    async def _check_budget(self, key: ClientKey, name: str) -> None:
        if key.usd_per_day is None:
            return
        day, seconds_left = day_of(self._wall_clock())
        if await self._limits.dollars_spent(name, day) >= key.usd_per_day:
            raise BudgetSpent(seconds_left)

    async def _charge_cost(self, key: ClientKey, exchange: Exchange) -> None:
        if key.usd_per_day is not None and exchange.cost is not None:
            day, _ = day_of(self._wall_clock())
            await self._limits.record_dollars(str(exchange.client), day, exchange.cost)
