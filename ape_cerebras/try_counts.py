"""What the metrics tell of tries at upstream: those made again here, and those made by clients."""

from typing import Protocol

from prometheus_client import Counter

from .exchange import Exchange

__all__ = ("TryCounts",)


class MakeCounter(Protocol):
    def __call__(self, name: str, text: str, *labels: str) -> Counter: ...


class TryCounts:
    """Counters, made by ``count``."""

    def __init__(self, count: MakeCounter) -> None:
        self._retries = count("retries", "Requests made again, by why", "reason")
        self._forgone = count("retries_forgone", "Failures passed on all the same, by why", "why")
        self._malformed = count("malformed_retry_after", "Retry-After that could not be read")
        self._by_clients = count("client_retries", "Requests that clients made again", "model")

    def observe(self, exchange: Exchange, model: str) -> None:
        """Count a chat exchange that has ended."""
        if exchange.is_clients_retry:
            self._by_clients.labels(model).inc()
        if exchange.malformed_retry_after:
            self._malformed.inc(exchange.malformed_retry_after)
        if exchange.retry_forgone is not None:
            self._forgone.labels(exchange.retry_forgone).inc()
        for reason in exchange.retry_reasons:
            self._retries.labels(reason).inc()
