"""Prometheus metrics, in a registry of the instance's own.

``observe`` counts an exchange that has ended, from the exchange and its timings. ``refresh`` sets
the gauges. ``render`` writes the text for a scraper; it may run in a thread while the event loop
goes on counting, since prometheus_client locks every value that it reads or changes.
"""

import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from ..config.config import Config
from ..version import VERSION
from .exchange import CHAT_ROUTE, Exchange, Usage
from .metric_table import CIRCUIT_STATES, DEGRADED_REASONS, METRICS, STEM, MetricRow
from .multiprocess import (
    SharedProcessMetrics,
    WorkerSlot,
    collect_workers,
    private_values,
)
from .outcomes import ALERTED, OUTCOMES, UPSTREAM_CODES
from .timings import Timings

__all__ = ("LiveState", "Metrics")

_MAX_LISTED = 100  # models of the API's list that get a label of their own
_PAUSE = 0.00002  # seconds
_TOKEN_TYPES = (
    *("prompt", "completion", "cached", "reasoning"),
    *("accepted_prediction", "rejected_prediction", "image"),
)
_MAX_EXEMPLAR_ID = 128 - len("trace_id")  # characters; the OpenMetrics specification's limit
_OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# A weight of 0 is a refusal (RFC 9110 section 12.4.2).
_ACCEPTS_OPENMETRICS = (
    rb"(?i)(?:^|,)\s*application/openmetrics-text\s*(?=[;,]|$)"
    rb"(?![^,]*;\s*q=0(?:\.0*)?\s*(?:[;,]|$))"
)
_Values = Callable[[], AbstractContextManager[None]]
"""Where metrics made within such a context keep their values."""
_Times = list[tuple[str, bool, str]]  # histogram, whether its attribute is a timing, attribute


def _times_by(label: str) -> _Times:
    return [
        (row.name, row.attribute in Timings._fields, row.attribute)
        for row in METRICS
        if row.attribute and row.labels == (label,)
    ]


_BY_MODEL, _BY_ROUTE = _times_by("model"), _times_by("route")
_GAPS = next(row for row in METRICS if row.name == "chunk_gap_seconds")
_GAP_COUNTS, _GAP_SUMS = f"{STEM}chunk_gap_counts", f"{STEM}chunk_gap_sums"


class LiveState(NamedTuple):
    """The state of a proxy at one moment: numbers that are read, not counted."""

    draining: bool = False
    in_flight: int = 0
    client_connections: int = 0
    upstream_active: int = 0
    upstream_idle: int = 0
    queue_length: int = 0
    lines_dropped: float = 0
    circuit: str | None = None
    """A state of ``CIRCUIT_STATES``; None without a circuit breaker."""
    upstream_reachable: bool = True
    spans_lost: int = 0
    connections_full: int = 0


class Metrics:
    """All metrics of one proxy. ``slot`` is a worker's."""

    def __init__(
        self,
        config: Config,
        backend: str,
        slot: WorkerSlot | None = None,
        read_state: Callable[[], LiveState] = LiveState,
    ) -> None:
        self._slot = slot
        self._read_state = read_state
        self._registry = CollectorRegistry()
        self._values: _Values = nullcontext if slot is not None else private_values
        self._gaps = _GapCounts(config.buckets["gap"], self._registry, self._values)
        rows = [row for row in METRICS if row != _GAPS]
        with self._values():
            self._metrics: dict[str, Any] = {
                row.name: _make(row, config.buckets, self._registry) for row in rows
            }
        self._process = None if slot is None else SharedProcessMetrics(self._registry)
        if slot is None:
            ProcessCollector(registry=self._registry)
        self._known = set(config.known_models)
        self._max_known = len(self._known) + _MAX_LISTED
        self._target = None if config.ttft_target_ms is None else config.ttft_target_ms / 1000
        self._counted: dict[str, float] = {}  # of counters that the state has
        # Looking a child up by its labels costs more than counting in it.
        self._child: Callable[..., Any] = cache(self._look_up)
        self.loop_lag: Histogram = self._metrics["loop_lag_seconds"]
        # 0 from the start: a rate ignores what was counted before a series' first sample.
        for outcome, status in ALERTED.items():
            side = OUTCOMES[outcome].side
            self._child("outcomes_total", CHAT_ROUTE, outcome, side, str(status))
        self._metrics["client_connections_limit"].set(config.max_connections)
        self.set_degraded(())
        self._child("build_info", VERSION, platform.python_version(), backend).set(1)

    def _look_up(self, name: str, *labels: str) -> Any:
        return _labelled(self._values, self._metrics[name], *labels)

    # Gauges

    def refresh(self) -> None:
        """Set the gauges from the proxy's state: before a scrape, and in a worker every few
        milliseconds, since another worker may be scraped."""
        state = self._read_state()
        self._metrics["requests_in_flight"].set(state.in_flight)
        self._metrics["client_connections"].set(state.client_connections)
        self._metrics["queue_length"].set(state.queue_length)
        self._child("upstream_connections", "active").set(state.upstream_active)
        self._child("upstream_connections", "idle").set(state.upstream_idle)
        self._metrics["upstream_reachable"].set(state.upstream_reachable)
        for name, total in (
            ("log_lines_dropped_total", state.lines_dropped),
            ("spans_lost_total", state.spans_lost),
            ("client_connections_full_total", state.connections_full),
        ):
            self._metrics[name].inc(total - self._counted.get(name, 0))
            self._counted[name] = total
        for name in CIRCUIT_STATES if state.circuit is not None else ():
            self._child("upstream_circuit", name).set(name == state.circuit)

    def refresh_process(self) -> None:
        """Read what the process takes, for another worker that is scraped."""
        if self._process is not None:
            self._process.refresh()

    def set_degraded(self, reasons: tuple[str, ...]) -> None:
        for reason in DEGRADED_REASONS:
            self._child("degraded", reason).set(reason in reasons)

    def count_background_failure(self, task: str) -> None:
        self._child("background_failures_total", task).inc()

    # The API's list of models

    def model_label(self, model: str | None) -> str:
        return model if model in self._known else "other"

    def count_catalogue_fetch(self, succeeded: bool) -> None:
        self._child("catalogue_fetches_total", "ok" if succeeded else "failed").inc()

    def set_catalogue(
        self, limits: Mapping[str, Mapping[str, int]], drift: Mapping[str, int]
    ) -> None:
        """Set the limits of each model in the API's list, by kind, and how many models differ from
        the price table, by kind of difference. A list that grows adds at most 100 labels."""
        for kind, count in drift.items():
            self._child("catalogue_drift", kind).set(count)
        self._metrics["model_limit"].clear()
        for model, of_model in limits.items():
            if len(self._known) < self._max_known:
                self._known.add(model)
            for kind, limit in of_model.items():
                self._look_up("model_limit", self.model_label(model), kind).set(limit)

    # Exchanges

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count an exchange that has ended."""
        status = str(exchange.status)
        side = timings.traits.side
        self._child("outcomes_total", exchange.route, timings.outcome, side, status).inc()
        self._observe_times(exchange, timings, _BY_ROUTE, exchange.route)
        if timings.cause is not None:
            self._child("upstream_failures_total", timings.outcome, timings.cause).inc()
        if (exchange.upstream_status or 0) >= 400:
            code = exchange.upstream_code
            named = code if code in UPSTREAM_CODES else "other" if code else "none"
            self._child("upstream_errors_total", str(exchange.upstream_status), named).inc()
        if exchange.client_blocked_seconds:
            self._metrics["client_blocked_seconds_total"].inc(exchange.client_blocked_seconds)
        if exchange.connection is not None:
            self._child("upstream_connection_uses_total", exchange.connection).inc()
        for (kind, window), value in exchange.quota.limit.items():
            self._child("upstream_ratelimit_limit", kind, window).set(value)
        for (kind, window), value in exchange.quota.remaining.items():
            self._child("upstream_ratelimit_remaining", kind, window).set(value)
        if exchange.quota.malformed:
            self._metrics["malformed_quota_headers_total"].inc(exchange.quota.malformed)
        if exchange.quota.unknown:
            self._metrics["unknown_quota_headers_total"].inc(exchange.quota.unknown)
        if timings.is_chat:
            self._observe_chat(exchange, timings, self.model_label(exchange.model))

    def _observe_times(
        self, exchange: Exchange, timings: Timings, times: _Times, label: str
    ) -> None:
        for name, is_timing, attribute in times:
            value = getattr(timings if is_timing else exchange, attribute)
            if value is not None:
                self._child(name, label).observe(value)

    def _observe_chat(self, exchange: Exchange, timings: Timings, model: str) -> None:
        self._child("requests_total", model).inc()
        # The child exists in any case, so that the error ratio is 0 and not absent.
        errors = self._child("errors_total", model)
        if timings.traits.failed:
            errors.inc()
        ttft = timings.ttft_seconds
        if ttft is not None:
            # The library takes 3 µs to check one, and keeps none where there are several workers.
            fits = len(exchange.trace_id) <= _MAX_EXEMPLAR_ID and self._slot is None
            exemplar = {"trace_id": exchange.trace_id} if fits else None
            self._child("ttft_seconds", model, timings.ttft_source).observe(ttft, exemplar)
            if self._target is not None and ttft > self._target:
                self._metrics["ttft_target_missed_total"].inc()
        if timings.tokens_per_second is not None:
            labels = model, timings.speed_source
            self._child("output_tokens_per_second", *labels).observe(timings.tokens_per_second)
            if timings.tpot_seconds is not None:
                self._child("tpot_seconds", *labels).observe(timings.tpot_seconds)
        self._observe_times(exchange, timings, _BY_MODEL, model)
        if timings.generation_seconds is not None and any(exchange.gap_counts):
            self._gaps.add(model, exchange.gap_counts, timings.generation_seconds)
        self._observe_usage(exchange, timings, model)
        self._observe_retries(exchange, model)
        if exchange.finish_reason is not None:
            self._child("finish_reasons_total", model, exchange.finish_reason).inc()

    def _observe_usage(self, exchange: Exchange, timings: Timings, model: str) -> None:
        usage, client = timings.usage, exchange.client
        if client is not None:
            self._child("client_requests_total", client).inc()
        if usage is None:
            return
        if exchange.estimated_usage is not None:
            self._metrics["usage_estimated_total"].inc()
            self._metrics["usage_missing_total"].inc(timings.outcome == "completed")
        if exchange.reserved_tokens is not None:
            self._child("reserved_tokens_total", model).inc(exchange.reserved_tokens)
        self._count_tokens(usage, model)
        if client is not None:
            self._child("client_tokens_total", client, "prompt").inc(usage.prompt_tokens)
            self._child("client_tokens_total", client, "completion").inc(usage.completion_tokens)
        if exchange.cost is None:
            self._metrics["unpriced_requests_total"].inc()
            return
        self._child("cost_usd_total", model).inc(float(exchange.cost))
        if client is not None:
            self._child("client_cost_usd_total", client).inc(float(exchange.cost))

    def _count_tokens(self, usage: Usage, model: str) -> None:
        for kind in _TOKEN_TYPES:
            count = getattr(usage, f"{kind}_tokens")
            if count is not None:  # 0 makes the series of those that every model has
                self._child("tokens_total", model, kind).inc(count)

    def _observe_retries(self, exchange: Exchange, model: str) -> None:
        count = exchange.request.header(b"x-stainless-retry-count") if exchange.request else None
        if count is not None and count.isdigit() and count.strip(b"0"):
            self._child("client_retries_total", model).inc()
        if exchange.malformed_retry_after:
            self._metrics["malformed_retry_after_total"].inc(exchange.malformed_retry_after)
        if exchange.retry_suppressed is not None:
            self._child("retries_forgone_total", exchange.retry_suppressed).inc()
        for reason in exchange.retry_reasons:
            self._child("retries_total", reason).inc()

    # The text

    def render(self, accept: bytes) -> tuple[bytes, str]:
        """The text for a scraper and its content type: OpenMetrics where the ``Accept`` header
        allows it.

        Where every model has been seen, 300 KB take 20 to 30 ms, with two workers 40 to 50, with
        eight 75 to 100 (CPython 3.11, one core of a virtual server). In a thread, the event loop
        runs meanwhile. A pause after each family lets it have the interpreter 0.3 ms after it is
        ready (median), not after the switch interval of 5 ms.
        """
        # The library repeats parts of the header it is given, so it is given one of ours.
        encode, content_type = choose_encoder(
            _OPENMETRICS if re.search(_ACCEPTS_OPENMETRICS, accept) else ""
        )
        return encode(self), content_type

    def collect(self) -> Iterator[Metric]:
        """All families, of this process or of all workers; the interface of a ``Collector``."""
        slot = self._slot
        families = self._registry.collect() if slot is None else collect_workers(slot)
        for family in self._gaps.merge(families):
            # Times of creation would double the series.
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            time.sleep(_PAUSE)
            yield family


def _make(row: MetricRow, buckets: Mapping[str, tuple[float, ...]], registry: Any) -> Any:
    name = STEM + row.name
    if row.type == "counter":
        return Counter(name, row.meaning, row.labels, registry=registry)
    if row.type == "gauge":
        mode = row.mode
        return Gauge(name, row.meaning, row.labels, registry=registry, multiprocess_mode=mode)
    bounds = buckets[row.buckets]
    return Histogram(name, row.meaning, row.labels, registry=registry, buckets=bounds)


def _labelled(values: _Values, metric: Any, *labels: str) -> Any:
    with values():
        return metric.labels(*labels)


class _GapCounts:
    """A histogram whose observations arrive counted by bucket.

    prometheus_client observes one value at a time, 1.3 µs each, and a stream has thousands of gaps.
    So two counters hold counts and sums, also over several workers, and ``merge`` makes the
    histogram from them.
    """

    def __init__(
        self, bounds: tuple[float, ...], registry: CollectorRegistry, values: _Values
    ) -> None:
        self._bounds = [*map(floatToGoString, bounds), "+Inf"]
        self._counts = Counter(_GAP_COUNTS, "By bucket", ("model", "bucket"), registry=registry)
        self._sums = Counter(_GAP_SUMS, "Seconds", ("model",), registry=registry)
        self._child: Callable[..., Any] = cache(partial(_labelled, values))

    def add(self, model: str, counts: list[int], total: float) -> None:
        for bucket, count in enumerate(counts):
            if count:
                self._child(self._counts, model, str(bucket)).inc(count)
        self._child(self._sums, model).inc(total)

    def merge(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """``families`` with the histogram in place of the counters."""
        counts: dict[str, list[float]] = {}
        sums: dict[str, float] = {}
        for family in families:
            if family.name not in (_GAP_COUNTS, _GAP_SUMS):
                yield family
                continue
            for name, labels, value, *_ in family.samples:
                if name == f"{_GAP_COUNTS}_total":
                    of_model = counts.setdefault(labels["model"], [0.0] * len(self._bounds))
                    of_model[int(labels["bucket"])] = value
                elif name == f"{_GAP_SUMS}_total":
                    sums[labels["model"]] = value
        histogram = HistogramMetricFamily(STEM + _GAPS.name, _GAPS.meaning, labels=_GAPS.labels)
        for model, of_model in counts.items():
            buckets = [*zip(self._bounds, accumulate(of_model), strict=True)]
            histogram.add_metric([model], buckets, sums.get(model, 0.0))
        yield histogram
