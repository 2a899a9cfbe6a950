"""Models in the metrics: which have a label of their own, and what the API's list says of them.

The labels are a closed set: models of the price table, of the aliases and of the list, so that no
client can make a series; and a list that grows and grows no more than so many.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

from prometheus_client import Counter, Gauge

from ..config.config import Config

__all__ = ("ModelMetrics",)

_MORE_AT_MOST = 100


class MakeCounter(Protocol):
    def __call__(self, name: str, text: str, *labels: str) -> Counter: ...


class MakeGauge(Protocol):
    def __call__(
        self, name: str, text: str, *labels: str, mode: Literal["mostrecent"]
    ) -> Gauge: ...


class ModelMetrics:
    """Metrics, made by ``count`` and ``gauge``."""

    def __init__(self, config: Config, count: MakeCounter, gauge: MakeGauge) -> None:
        self._known = set(config.known_models)
        self._at_most = len(self._known) + _MORE_AT_MOST
        self._fetches = count("catalogue_fetches", "Fetches of the API's list", "result")
        text = "Models in which the API's list and the price table differ"
        self._drift = gauge("catalogue_drift", text, "kind", mode="mostrecent")
        text = "What the API's list allows"
        self._limits = gauge("model_limit", text, "model", "kind", mode="mostrecent")

    def label(self, model: str | None) -> str:
        return model if model in self._known else "other"

    def note_fetch(self, succeeded: bool) -> None:
        self._fetches.labels("ok" if succeeded else "failed").inc()

    def update(self, limits: Mapping[str, Mapping[str, int]], drift: Mapping[str, int]) -> None:
        """Set what the API's list says: each model's limits by kind, and how many models differ
        from the price table, by kind of difference."""
        for kind, count in drift.items():
            self._drift.labels(kind).set(count)
        self._limits.clear()
        for name, of_model in limits.items():
            if len(self._known) < self._at_most:
                self._known.add(name)
            for kind, limit in of_model.items():
                self._limits.labels(self.label(name), kind).set(limit)
