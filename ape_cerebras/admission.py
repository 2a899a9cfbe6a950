"""Whether a chat request may go up now, has to wait for its turn, or is refused.

A request is refused at once where its key may not have the model, or has spent its US dollars of
the day; or where the requests of the minute are spent, in all or of its key: it could only wait for
what those behind it want as well. Then it waits for one of
``MAX_CONCURRENT_REQUESTS`` slots, in the order of ``turns``, and holds it until its exchange ends.
The slot is a block's: whatever ends the block, and be it that the client leaves, gives the slot
back, or the place in the line.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import anyio

from .config import Config
from .errors import BadRequest, ModelNotFound
from .exchange import Exchange
from .keyring import Keyring
from .limit_errors import BudgetSpent, NoTurn, RateLimited
from .limits import Bucket, Charge, Limits, LocalLimits, day_of
from .stamps import loop_clock
from .turns import Stage, Ticket, Turns
from .values import ClientKey

__all__ = ("Admission",)

_MINUTE = 60.0  # seconds


def _one_request(name: str, per_minute: int) -> Charge:
    return Charge(Bucket(name, per_minute, _MINUTE), 1)


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
        keyring: Keyring,
        limits: Limits | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._limits = limits or LocalLimits()
        self._clock = loop_clock()
        self._wall_clock = wall_clock
        self._patience = config.max_queue_seconds
        slots = config.max_concurrent_requests
        self._turns = Turns(inf if slots is None else slots, config.max_queue_length)
        self._in_all: tuple[Charge, ...] = ()
        if config.rate_limit_per_minute is not None:
            self._in_all = (_one_request("requests", config.rate_limit_per_minute),)
        self._limits_all = bool(self._in_all) or slots is not None

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to ask before a request goes up."""
        return self._limits_all or self._keyring.limits_any

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._turns.waiting

    @asynccontextmanager
    async def turn(self, exchange: Exchange) -> AsyncIterator[None]:
        """Hold a slot for as long as the block takes, and charge what that has cost.

        Raises ModelNotFound, BadRequest, BudgetSpent, RateLimited, NoTurn.
        """
        key = self._keyring.of(exchange.client)
        _check_model(key, exchange.model)
        name = exchange.client
        await self._check_budget(key, str(name))
        await self._charge_request(key, str(name))
        most = inf if key.concurrent_requests is None else key.concurrent_requests
        ticket = self._turns.join(name, self._clock(), most)
        try:
            if ticket.stage is Stage.WAITING:
                await self._wait(ticket, exchange)
            if ticket.stage is not Stage.ADMITTED:
                self._turns.leave(ticket, self._clock())
                raise NoTurn(self._turns.seconds_to_a_turn(name, self._clock()))
            yield
        finally:
            self._turns.leave(ticket, self._clock())
            await self._charge_cost(key, exchange)

    async def _wait(self, ticket: Ticket, exchange: Exchange) -> None:
        """Return when the ticket's turn has come, or it is refused, or the time is over."""
        turn = anyio.Event()
        ticket.wake = turn.set
        began_at = self._clock()
        try:
            with anyio.move_on_after(self._patience):
                await turn.wait()
        finally:
            exchange.admission_wait_seconds = round(self._clock() - began_at, 6)

    async def _charge_request(self, key: ClientKey, name: str) -> None:
        charges = self._in_all
        if key.requests_per_minute is not None:
            own = _one_request(f"requests:{name}", key.requests_per_minute)
            charges = (*charges, own)
        if charges:
            verdict = await self._limits.take(charges, self._clock())
            if verdict.wait:
                raise RateLimited(verdict)

    async def _check_budget(self, key: ClientKey, name: str) -> None:
        if key.usd_per_day is None:
            return
        day, seconds_left = day_of(self._wall_clock())
        if await self._limits.spent(name, day) >= key.usd_per_day:
            raise BudgetSpent(seconds_left)

    async def _charge_cost(self, key: ClientKey, exchange: Exchange) -> None:
        if key.usd_per_day is not None and exchange.cost is not None:
            day, _ = day_of(self._wall_clock())
            await self._limits.spend(str(exchange.client), day, exchange.cost)
