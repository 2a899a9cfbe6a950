"""What the metrics tell of tries at upstream: those made again, here or by clients, and whether any
are made at all."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from prometheus_client import Counter, Gauge

from ..upstream.circuit_breaker import STATES, CircuitBreaker
from .exchange import Exchange

__all__ = ("TryCounts",)


class MakeCounter(Protocol):
    def __call__(self, name: str, text: str, *labels: str) -> Counter: ...


class MakeGauge(Protocol):
    def __call__(self, name: str, text: str, *labels: str) -> Gauge: ...


class TryCounts:
    """Counters and a gauge, made by ``count`` and ``gauge``."""

    def __init__(self, count: MakeCounter, gauge: MakeGauge) -> None:
        self._retries = count("retries", "Requests made again, by why", "reason")
        self._forgone = count("retries_forgone", "Failures passed on all the same, by why", "why")
        self._malformed = count("malformed_retry_after", "Retry-After that could not be read")
        self._by_clients = count("client_retries", "Requests that clients made again", "model")
        self._circuit = gauge("upstream_circuit", "1 for the state it is in", "state")

    def watching(
        self, circuit: CircuitBreaker
    ) -> tuple[tuple[Callable[[float], object], Callable[[], float]], ...]:
        """What tells the gauge, and what it is told."""
        return tuple(
            (self._circuit.labels(state).set, partial(_is_in, circuit, state)) for state in STATES
        )

    def observe(self, exchange: Exchange, model: str) -> None:
        """Count a chat exchange that has ended."""
        if _is_client_retry(exchange):
            self._by_clients.labels(model).inc()
        if exchange.malformed_retry_after:
            self._malformed.inc(exchange.malformed_retry_after)
        if exchange.retry_suppressed is not None:
            self._forgone.labels(exchange.retry_suppressed).inc()
        for reason in exchange.retry_reasons:
            self._retries.labels(reason).inc()


def _is_in(circuit: CircuitBreaker, state: str) -> float:
    return float(circuit.state == state)


def _is_client_retry(exchange: Exchange) -> bool:
    """Whether the client has sent the request before, as the SDKs do by themselves."""
    count = exchange.request.header(b"x-stainless-retry-count") if exchange.request else None
    return count is not None and count.isdigit() and count.strip(b"0") != b""
