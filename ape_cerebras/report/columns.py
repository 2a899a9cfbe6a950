"""The columns of log lines: the keys that are read, and the measures that are made of them.

A batch holds some chat exchanges, one NumPy array for each key. Measured and derived TTFTs are
columns of their own, so that no figure mixes them by accident; ``felt`` is the one that has both.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..telemetry.outcomes import OUTCOMES

__all__ = ("LABELS", "METRICS", "NUMBERS", "PARTS", "Batch", "Floats", "columns_of", "texts_of")

Floats = NDArray[np.float64]

NUMBERS = (
    *("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "ttfo_seconds"),
    *("total_time_seconds", "generation_seconds", "tpot_seconds", "tokens_per_second"),
    *("retry_seconds", "wait_seconds", "connect_seconds", "tls_seconds", "proxy_own_seconds"),
    *("queue_seconds", "prompt_seconds", "intended_start_lag_seconds", "tries", "cost_usd"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"),
    *("reserved_tokens", "client_attempt"),
)
"""The keys that are read as numbers; NaN where a line has none."""

LABELS = (
    *("outcome", "model", "client", "session_id", "agent_id", "ttft_source", "finish_reason"),
    *("upstream_status", "upstream_code", "cause", "usage_source", "connection", "run_id"),
)
"""The keys that are read as text; empty where a line has none."""

METRICS: dict[str, tuple[str, str]] = {
    "ttft_intended": ("TTFT from the intended start", "s"),
    "ttft": ("TTFT", "s"),
    "ttft_derived": ("TTFT, derived from time_info", "s"),
    "ttfo": ("TTFO", "s"),
    "upstream_ttft": ("upstream TTFT", "s"),
    "proxy_ttft": ("proxy TTFT", "s"),
    "total_intended": ("total from the intended start", "s"),
    "total": ("total", "s"),
    "tpot": ("TPOT", "s"),
    "tokens_per_second": ("tokens per second", "/s"),
}
"""Label and unit of each distribution. But for the derived TTFT all are of measured times."""

PARTS = {
    "retry": "retries",
    "wait": "waiting for a slot or a connection",
    "connect": "TCP",
    "tls": "TLS",
    "proxy_own": "the proxy itself",
    "queue": "Cerebras: queue",
    "prompt": "Cerebras: prompt",
    "network": "network, and what upstream does not report",
}
"""The parts of a TTFT, in the order in which they happen, but for the network, which is around."""

_LONGEST = 7 * 86_400.0  # seconds of a request; what is longer is a mistake


class Batch(NamedTuple):
    """The chat exchanges of some lines, one column for each key. ``ends`` is when each ended, in
    seconds since the epoch; ``texts`` are their lines."""

    ends: Floats
    numbers: dict[str, Floats]
    labels: dict[str, NDArray[np.object_]]
    texts: NDArray[np.object_]

    @property
    def starts(self) -> Floats:
        """When each request was complete at the proxy."""
        total = self.numbers["total_time_seconds"]
        return self.ends - np.where((total >= 0) & (total < _LONGEST), total, 0.0)

    def where(self, mask: NDArray[np.bool_]) -> "Batch":
        return Batch(
            self.ends[mask],
            {name: column[mask] for name, column in self.numbers.items()},
            {name: column[mask] for name, column in self.labels.items()},
            self.texts[mask],
        )


def columns_of(batch: Batch) -> dict[str, Floats]:
    """The columns that are added up or go into sketches."""
    numbers, labels = batch.numbers, batch.labels
    used = ~np.isnan(numbers["completion_tokens"])
    columns = {name: np.nan_to_num(numbers[name]) for name in numbers if name.endswith("_tokens")}
    _add_times(columns, batch)
    columns["start"], columns["end"] = batch.starts, batch.ends
    columns["requests"] = np.ones(len(batch.ends))
    columns["turns"] = (~(numbers["client_attempt"] > 0)).astype(np.float64)
    failing = {name: _is_failure(name) for name in dict.fromkeys(labels["outcome"])}
    columns["failed"] = np.array([failing[name] for name in labels["outcome"]], dtype=np.float64)
    columns["cost_usd"] = np.nan_to_num(numbers["cost_usd"])
    columns["no_cost"] = (used & np.isnan(numbers["cost_usd"])).astype(np.float64)
    columns["retried"] = (numbers["tries"] > 1).astype(np.float64)
    columns["attempts"] = np.nan_to_num(numbers["tries"], nan=1.0)
    for name in ("estimated", "missing"):
        columns[f"usage_{name}"] = (labels["usage_source"] == name).astype(np.float64)
    reserved = ~np.isnan(numbers["reserved_tokens"])
    of_both = columns["prompt_tokens"] + columns["completion_tokens"]
    columns["used_of_reserved"] = np.where(reserved, of_both, 0.0)
    return columns


def _add_times(columns: dict[str, Floats], batch: Batch) -> None:
    numbers, labels = batch.numbers, batch.labels
    measured = labels["ttft_source"] == "measured"
    derived = labels["ttft_source"] == "derived"
    lag = numbers["intended_start_lag_seconds"]
    for name in ("ttft", "upstream_ttft", "proxy_ttft", "ttfo", "tpot"):
        columns[name] = np.where(measured, numbers[f"{name}_seconds"], np.nan)
    columns["tokens_per_second"] = np.where(measured, numbers["tokens_per_second"], np.nan)
    columns["ttft_derived"] = np.where(derived, numbers["ttft_seconds"], np.nan)
    columns["felt"] = np.where(measured | derived, numbers["ttft_seconds"], np.nan)
    completed = labels["outcome"] == "completed"
    columns["total"] = np.where(completed, numbers["total_time_seconds"], np.nan)
    columns["lagged"] = (~np.isnan(lag)).astype(np.float64)
    for name in ("ttft", "total"):
        columns[f"{name}_intended"] = columns[name] + lag
    for name in PARTS:
        if name != "network":
            columns[name] = np.nan_to_num(numbers[f"{name}_seconds"])
    columns["network"] = columns["upstream_ttft"] - columns["queue"] - columns["prompt"]
    generation = numbers["generation_seconds"]
    whole = measured & (generation > 0) & ~np.isnan(numbers["completion_tokens"])
    columns["streamed_tokens"] = np.where(whole, numbers["completion_tokens"], 0.0)
    columns["generation_seconds"] = np.where(whole, generation, 0.0)


def _is_failure(outcome: str) -> bool:
    """An outcome that this version does not know is taken for a failure."""
    return OUTCOMES[outcome].failed if outcome in OUTCOMES else True


def texts_of(values: Any) -> NDArray[np.object_]:
    """An array of objects, whatever their lengths."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
