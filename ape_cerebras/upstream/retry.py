"""Retries of a chat request that the API did not accept: whether, when, and how they are sent.

A request may be retried where it never reached the API (no connection; or the API's edge reports
that it found none, 521 to 523 and 530), or where the API itself reports that it failed (500, 502,
503, 504, and the 429 of a full queue, which clears within about a second). The 429s of the
account's own quota are for the client. A refused certificate will be refused again, so a failure of
TLS is final. So is a response that did not come or broke off: the API may have carried out the
request. With one exception:

A request is sent once more, over a new connection, where one that had been idle ended or was reset
before any byte of a response: upstream closed it as idle while the request was on its way. RFC 9112
section 9.3.1 forbids to repeat a POST automatically, unless its semantics are known to be
idempotent regardless of the method. Of completions, all that is sent from here, that is known: they
are to change nothing at the API (RFC 9110 section 9.2.2). What may happen twice is the work and its
charge, if upstream closed after doing it; and the SDKs of OpenAI and Cerebras repeat a request that
got a 502, or lost its connection, by themselves. nginx and Envoy do not repeat a POST that has been
sent, unless told to (``proxy_next_upstream non_idempotent``, ``retry_on: reset``): they do not know
what they carry. It takes no RETRY_ATTEMPTS and no pause, and happens once for each attempt. Where
the client disconnects before the second time, or there is no connection for it, the exchange is
charged for the first (``request_lost``).

The pause is drawn at random from all that is allowed ("full jitter"), and the allowance doubles
from one retry to the next, so that requests that failed together do not come back together. The
pause is at least as long as the API's ``Retry-After``.

A client sees the last attempt only. ``retry_seconds`` of the exchange lasts from the start of the
first to the start of the last; every other time is the last attempt's.
"""

import random
import re
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

import anyio

from ..errors import ConnectFailed, ConnectTimeout, InvalidResponse, ProxyError
from ..net.event_loop import loop_clock
from ..telemetry.exchange import Exchange
from ..telemetry.health import SlidingMinute
from ..telemetry.logs import Logs
from .circuit_breaker import CircuitBreaker, is_outage
from .client import (
    UpstreamClient,
    UpstreamRequest,
    UpstreamResponse,
    forget_attempt,
    waiting_for_upstream,
)

__all__ = (
    "RetryBudget",
    "RetryingClient",
    "objection",
    "pause_before",
    "read_retry_after",
    "reason_to_retry",
)

_TRY_AGAIN = frozenset(
    # From 520 on Cloudflare's: origin down, not reached in time, not routed to, not resolved. 520
    # and 524 are not among them: the origin may have carried out the request.
    (500, 502, 503, 504, 521, 522, 523, 530)
)
_QUEUE_FULL = "queue_exceeded"
_LOST = frozenset(("closed", "tls_closed", "ECONNRESET"))  # before any byte of a response

_LONGEST_PAUSE = 8.0  # seconds
_LONGEST_RETRY_AFTER = 60.0  # seconds; a client gets a longer one to decide for itself
_SPREAD = 0.25  # of Retry-After, so that those who got the same do not come back together

# Both are compiled when the first Retry-After comes.
_SECONDS = rb"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
# IMF-fixdate, RFC 850, asctime (RFC 9110 section 5.6.7).
_DATE = (
    rb"(?:[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4}"
    rb"|[A-Z][a-z]{5,8}, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2}) [0-9:]{8} GMT"
    rb"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9:]{8} [0-9]{4}"
)
_LONGEST_READ = 1e9  # seconds: so that no number of digits makes infinity
_UNREADABLE = 1.0  # seconds, in place of a wait that nobody can read: a wait all the same

_SHARE = 5  # requests for each retry
_IN_ANY_CASE = 10  # retries in a minute: so few overload nobody


def reason_to_retry(error: ProxyError | None, status: int | None, code: str | None) -> str | None:
    """Why an attempt with that result may be retried; None where it may not. ``error``: its
    failure; without one, ``status`` and ``code`` are those of the API's response."""
    if error is not None:
        return "connect" if isinstance(error, ConnectFailed | ConnectTimeout) else None
    if status == 429:
        return code if code == _QUEUE_FULL else None
    return str(status) if status in _TRY_AGAIN else None


def read_retry_after(value: bytes, now: float) -> float:
    """The seconds of a ``Retry-After``, which may also be a date (RFC 9110 section 10.2.3), and
    which some servers send with decimals. ``now``: since the epoch. Raises ValueError where it is
    malformed."""
    if re.fullmatch(_SECONDS, value):
        return min(float(value), _LONGEST_READ)
    if not re.fullmatch(_DATE, value):
        raise ValueError
    moment = parsedate_to_datetime(value.decode())
    return max(0.0, moment.replace(tzinfo=UTC).timestamp() - now)


def pause_before(retry: int, backoff: float, retry_after: float, chance: float) -> float:
    """Seconds to wait before the first, second, … ``retry``. ``chance``: drawn from 0 to 1."""
    drawn = chance * min(_LONGEST_PAUSE, backoff * 2.0 ** (retry - 1))
    return max(drawn, retry_after * (1 + _SPREAD * chance))


def objection(
    *,
    refused: bool,
    circuit_open: bool,
    last: bool,
    retry_after: float,
    pause: float,
    time_left: float,
    within_budget: bool,
) -> str | None:
    """Why a retry is suppressed for which there is a reason; None where nothing objects."""
    found = {
        "refused": refused,
        "circuit": circuit_open,
        "attempts": last,
        "retry_after": retry_after > _LONGEST_RETRY_AFTER,
        "deadline": pause >= time_left,
        "budget": not within_budget,
    }
    return next((why for why, holds in found.items() if holds), None)


class RetryBudget(SlidingMinute):
    """At most one retry for five requests over the last minute: an API that fails for all clients
    gets a fifth more requests than before, not several times as many. Counts "request" and
    "retry"."""

    def allows_one(self, now: float) -> bool:
        retries = self.total(now, "retry")
        return retries < max(_IN_ANY_CASE, self.total(now, "request") // _SHARE)


class RetryingClient:
    """Sends chat requests, retries them where RETRY_ATTEMPTS is set, and none while the circuit is
    open.

    ``attempts``: retries at most. ``backoff``: seconds allowed for the first pause. ``circuit``:
    None where CIRCUIT_FAILURES is not set. ``chance`` draws from 0 to 1.
    """

    def __init__(
        self,
        client: UpstreamClient,
        attempts: int,
        backoff: float,
        circuit: CircuitBreaker | None,
        logs: Logs,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._circuit = circuit
        self._logs = logs
        self._attempts = attempts
        self._backoff = backoff
        self._chance = chance
        self._budget = RetryBudget()
        self._clock = loop_clock()

    async def send(self, exchange: Exchange, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request until one attempt is final; return its response or raise its failure.

        Raises what ``UpstreamClient.send`` raises, and UpstreamUnavailable.
        """
        if not self._attempts:
            return await self._attempt(exchange, request)
        began_at = self._clock()
        self._budget.add(began_at, "request")
        retry = 1
        while True:
            try:
                response = await self._attempt(exchange, request)
            except ProxyError as failure:
                pause = self._pause_before(retry, exchange, failure, None)
                if pause is None:
                    raise
            else:
                pause = self._pause_before(retry, exchange, None, response)
                if pause is None:
                    return response
                response.close()
            exchange.attempts = exchange.attempts or 1
            try:
                with waiting_for_upstream(exchange, self._clock):
                    await anyio.sleep(pause)
            finally:  # also if the client disconnects meanwhile
                exchange.retry_seconds = round(self._clock() - began_at, 6)
            forget_attempt(exchange)
            retry += 1
            exchange.attempts += 1

    async def _attempt(self, exchange: Exchange, request: UpstreamRequest) -> UpstreamResponse:
        circuit = self._circuit
        if circuit is None:
            return await self._send(exchange, request)
        era = circuit.enter(self._clock())
        failed: bool | None = None
        cause: str | None = None
        try:
            response = await self._send(exchange, request)
            failed = response.status >= 500
            cause = f"status_{response.status}"
        except ProxyError as error:
            failed, cause = is_outage(error), error.cause
            raise
        finally:
            before = circuit.state
            circuit.leave(era, failed, self._clock())
            if before == "closed" != circuit.state:
                trace_id, failures = exchange.trace_id, circuit.in_a_row
                fields = {"cause": cause, "upstream_address": exchange.upstream_address}
                message = "Circuit opened"
                self._logs.event("warning", message, trace_id=trace_id, failures=failures, **fields)
            elif before != "closed" == circuit.state:
                self._logs.event("info", "Circuit closed")
        return response

    async def _send(self, exchange: Exchange, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request; once more where its connection, one that had been idle, was lost."""
        began_at = self._clock()
        try:
            return await self._client.send(exchange, request)
        except InvalidResponse as error:
            if exchange.connection == "new" or error.cause not in _LOST:
                raise
        exchange.attempts = (exchange.attempts or 1) + 1
        exchange.retry_reasons = (*exchange.retry_reasons, "connection_lost")
        exchange.request_lost |= exchange.sent_at is not None
        lost = self._clock() - began_at
        exchange.retry_seconds = round((exchange.retry_seconds or 0.0) + lost, 6)
        forget_attempt(exchange)
        return await self._client.send(exchange, request, on_new=True)

    def _pause_before(
        self,
        retry: int,
        exchange: Exchange,
        failure: ProxyError | None,
        response: UpstreamResponse | None,
    ) -> float | None:
        """Seconds to wait before the ``retry``; None where there is none."""
        reason = reason_to_retry(failure, exchange.upstream_status, exchange.upstream_code)
        if reason is None:
            return None
        retry_after = 0.0
        if response is not None and (value := response.header(b"retry-after")):
            try:
                retry_after = read_retry_after(value, time.time())
            except ValueError:
                exchange.malformed_retry_after += 1
                retry_after = _UNREADABLE
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
        self._budget.add(now, "retry")
        exchange.retry_reasons = (*exchange.retry_reasons, reason)
        return pause
