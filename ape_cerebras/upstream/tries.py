"""A chat request's tries at upstream, of which a client sees the last one only; and none at all
while upstream is known to be down.

What they have taken belongs to the exchange: ``retry_seconds`` goes from the beginning of the first
to that of the last, and every other time of the record is the last one's.
"""

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from ..config.config import Config
from ..errors import ProxyError
from ..http1.messages import Headers
from ..net.timestamps import loop_clock
from ..telemetry.exchange import Exchange
from ..telemetry.logs import Logs
from .circuit_breaker import CircuitBreaker, says_it_is_down
from .client import UpstreamClient, UpstreamResponse, WaitingForUpstream, forget_try
from .retry import RetryBudget, objection, pause_before, read_retry_after, reason_to_retry

__all__ = ("RetryingClient", "tries_at")


def tries_at(
    upstream: UpstreamClient, config: Config, circuit: CircuitBreaker | None, logs: Logs
) -> "UpstreamClient | RetryingClient":
    """What requests are sent through: nothing between where nothing is asked for."""
    wanted = config.retry_attempts or circuit is not None
    return RetryingClient(config, upstream, circuit, logs) if wanted else upstream


class RetryingClient:
    """Takes the place of ``UpstreamClient`` where RETRY_ATTEMPTS or CIRCUIT_FAILURES is set.
    ``chance`` draws from 0 to 1."""

    def __init__(
        self,
        config: Config,
        upstream: UpstreamClient,
        circuit: CircuitBreaker | None,
        logs: Logs,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._upstream = upstream
        self._circuit = circuit
        self._logs = logs
        self._attempts = config.retry_attempts
        self._backoff = config.retry_backoff
        self._chance = chance
        self._budget = RetryBudget()
        self._clock = loop_clock()

    async def send(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        headers: Headers,
        body: bytes,
        *,
        awaits_token: bool,
    ) -> UpstreamResponse:
        """As ``UpstreamClient.send``: the response of the last try, or what that raised; or raises
        UpstreamUnavailable."""
        ask = partial(
            self._upstream.send, exchange, method, path, headers, body, awaits_token=awaits_token
        )
        if not self._attempts:
            return await self._once(ask)
        began_at = self._clock()
        self._budget.note_request(began_at)
        retry = 1
        while True:
            try:
                response = await self._once(ask)
            except ProxyError as failure:
                pause = self._pause_before(retry, exchange, failure, None)
                if pause is None:
                    raise
            else:
                pause = self._pause_before(retry, exchange, None, response)
                if pause is None:
                    return response
                response.close()
            await self._wait(pause, retry, exchange, began_at)
            forget_try(exchange)
            retry += 1

    async def _once(self, ask: Callable[[], Awaitable[UpstreamResponse]]) -> UpstreamResponse:
        if self._circuit is None:
            return await ask()
        era = self._circuit.enter(self._clock())
        failed: bool | None = None
        try:
            response = await ask()
            failed = response.status >= 500
        except ProxyError as error:
            failed = says_it_is_down(error)
            raise
        finally:
            self._leave(self._circuit, era, failed)
        return response

    def _leave(self, circuit: CircuitBreaker, era: int, failed: bool | None) -> None:
        before = circuit.state
        circuit.leave(era, failed, self._clock())
        if before == "closed" != circuit.state:
            self._logs.event("warning", "Circuit opened")
        elif before != "closed" == circuit.state:
            self._logs.event("info", "Circuit closed")

    def _pause_before(
        self,
        retry: int,
        exchange: Exchange,
        failure: ProxyError | None,
        response: UpstreamResponse | None,
    ) -> float | None:
        """Seconds to wait before the ``retry``; None where there is to be none."""
        reason = reason_to_retry(failure, exchange.upstream_status, exchange.upstream_code)
        if reason is None:
            return None
        retry_after = 0.0 if response is None else _asked_for(response, exchange)
        pause = pause_before(retry, self._backoff, retry_after, self._chance())
        now = self._clock()
        exchange.retry_suppressed = objection(
            refused=response is not None and response.header(b"x-should-retry").lower() == b"false",
            circuit_open=self._circuit is not None and self._circuit.state != "closed",
            last=retry > self._attempts,
            retry_after=retry_after,
            pause=pause,
            time_left=anyio.current_effective_deadline() - anyio.current_time(),
            within_budget=self._budget.allows_one(now),
        )
        if exchange.retry_suppressed is not None:
            return None
        self._budget.note_retry(now)
        exchange.retry_reasons = (*exchange.retry_reasons, reason)
        return pause

    async def _wait(self, pause: float, retry: int, exchange: Exchange, began_at: float) -> None:
        exchange.attempts = retry
        try:
            with WaitingForUpstream(exchange, self._clock):
                await anyio.sleep(pause)
        finally:  # also if the client has left meanwhile
            exchange.retry_seconds = round(self._clock() - began_at, 6)
        exchange.attempts = retry + 1


def _asked_for(response: UpstreamResponse, exchange: Exchange) -> float:
    """Seconds; 0 where nothing is, or nothing that could be read."""
    value = response.header(b"retry-after")
    try:
        return read_retry_after(value, time.time()) if value else 0.0
    except ValueError:
        exchange.malformed_retry_after += 1
        return 0.0
