"""What each client has used: counters by the names that keys were given, which no client chooses.

Keys without a name are not told apart, and not counted here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from .exchange import Exchange
from .multiprocess import STEM

__all__ = ("ClientMetrics",)


class ClientMetrics:
    """Part of the metrics of one proxy, in the same registry. ``knows``: whether a key has, or has
    had, that name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def count(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{STEM}_client_{name}", text, ("client", *labels), registry=registry)

        self.knows: Callable[[str], bool] = lambda name: False
        self._child: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self._requests = count("requests", "Chat exchanges that ended")
        self._tokens = count("tokens", "Tokens of prompts and completions", "type")
        self._cost = count("cost_usd", "US dollars, where the model has a price")

    def observe(self, exchange: Exchange) -> None:
        """Count a chat exchange that has ended."""
        client, usage = exchange.client, exchange.usage
        if client is None or not self.knows(client):
            return
        self._child(self._requests, client).inc()
        if usage is not None:
            self._child(self._tokens, client, "prompt").inc(usage.prompt_tokens)
            self._child(self._tokens, client, "completion").inc(usage.completion_tokens)
        if exchange.cost is not None:
            self._child(self._cost, client).inc(float(exchange.cost))
