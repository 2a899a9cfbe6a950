"""Prometheus metrics, in a registry of the instance's own.

``observe`` counts an exchange that has ended, from the exchange and its timings. ``refresh`` sets
the gauges. ``render`` writes the text for a scraper; it may run in a thread while the event loop
goes on counting, since prometheus_client locks every value that it reads or changes.
"""

import platform
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, values
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Exemplar

from ..config.config import Config
from ..version import VERSION
from .exchange import CHAT_ROUTE, Exchange, Usage
from .metric_table import CIRCUIT_STATES, DEGRADED_REASONS, METRICS
from .multiprocess import (
    GAPS,
    GapCounts,
    SharedProcessMetrics,
    Values,
    WorkerSlot,
    collect_workers,
    labelled,
    make_metric,
    values_by,
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
_READ_TOKENS = itemgetter(*(Usage._fields.index(f"{kind}_tokens") for kind in _TOKEN_TYPES))
_EXCHANGE_TIMES = tuple(
    row.attribute for row in METRICS if row.attribute and row.attribute not in Timings._fields
)
_read_exchange_times = attrgetter(*_EXCHANGE_TIMES)


class _Times(NamedTuple):
    """Histograms of one label, and what reads their values from all times of an exchange: those of
    its timings, and behind them ``_EXCHANGE_TIMES``."""

    names: tuple[str, ...]
    read: Callable[[tuple[Any, ...]], tuple[float | None, ...]]


def _times_by(label: str) -> _Times:
    rows = [row for row in METRICS if row.attribute and row.labels == (label,)]
    fields = (*Timings._fields, *_EXCHANGE_TIMES)
    places = [fields.index(row.attribute) for row in rows]
    return _Times(tuple([row.name for row in rows]), itemgetter(*places))


_BY_MODEL, _BY_ROUTE = _times_by("model"), _times_by("route")


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
        self._values: Values = (
            nullcontext if slot is not None else partial(values_by, _PrivateValue)
        )
        self._gaps = GapCounts(config.buckets["gap"], self._registry, self._values)
        rows = [row for row in METRICS if row != GAPS]
        with self._values():
            self._metrics: dict[str, Any] = {
                row.name: make_metric(row, config.buckets, self._registry) for row in rows
            }
        self._bounds = {row.name: config.buckets[row.buckets] for row in rows if row.buckets}
        self._process = None if slot is None else SharedProcessMetrics(self._registry)
        if slot is None:
            ProcessCollector(registry=self._registry)
        self._known = set(config.known_models)
        self._max_known = len(self._known) + _MAX_LISTED
        self._target = None if config.ttft_target_ms is None else config.ttft_target_ms / 1000
        self._counted: dict[str, float] = {}  # of counters that the state has
        self._children = _Children(self._make_child)
        self.loop_lag: Histogram = self._metrics["loop_lag_seconds"]
        # 0 from the start: a rate ignores what was counted before a series' first sample.
        for outcome, status in ALERTED.items():
            side = OUTCOMES[outcome].side
            self._children["outcomes_total", CHAT_ROUTE, outcome, side, str(status)]
        self._metrics["client_connections_limit"].set(config.max_connections)
        self.set_degraded(())
        self._children["build_info", VERSION, platform.python_version(), backend].set(1)

    def _make_child(self, name: str, *labels: str) -> Any:
        """What counts in a child: of a counter its value, of a histogram its ``_Buckets``."""
        made: list[Any] = []
        with self._values():
            kind = values.ValueClass

            def make(*arguments: Any, **options: Any) -> Any:
                made.append(kind(*arguments, **options))
                return made[-1]

            with values_by(make):
                child = self._metrics[name].labels(*labels)
        if isinstance(child, Counter):
            return made[0]
        return _Buckets(self._bounds[name], *made) if name in self._bounds else child

    # Gauges

    def refresh(self) -> None:
        """Set the gauges from the proxy's state: before a scrape, and in a worker with each sample
        of the loop's lag, since another worker may be scraped."""
        state = self._read_state()
        self._metrics["requests_in_flight"].set(state.in_flight)
        self._metrics["client_connections"].set(state.client_connections)
        self._metrics["queue_length"].set(state.queue_length)
        self._children["upstream_connections", "active"].set(state.upstream_active)
        self._children["upstream_connections", "idle"].set(state.upstream_idle)
        self._metrics["upstream_reachable"].set(state.upstream_reachable)
        for name, total in (
            ("log_lines_dropped_total", state.lines_dropped),
            ("spans_lost_total", state.spans_lost),
            ("client_connections_full_total", state.connections_full),
        ):
            self._metrics[name].inc(total - self._counted.get(name, 0))
            self._counted[name] = total
        for name in CIRCUIT_STATES if state.circuit is not None else ():
            self._children["upstream_circuit", name].set(name == state.circuit)

    def refresh_process(self) -> None:
        """Read what the process takes, for another worker that is scraped."""
        if self._process is not None:
            self._process.refresh()

    def set_degraded(self, reasons: tuple[str, ...]) -> None:
        for reason in DEGRADED_REASONS:
            self._children["degraded", reason].set(reason in reasons)

    def count_background_failure(self, task: str) -> None:
        self._children["background_failures_total", task].inc(1)

    # The API's list of models

    def model_label(self, model: str | None) -> str:
        return model if model in self._known else "other"

    def count_catalogue_fetch(self, succeeded: bool) -> None:
        self._children["catalogue_fetches_total", "ok" if succeeded else "failed"].inc(1)

    def set_catalogue(
        self, limits: Mapping[str, Mapping[str, int]], drift: Mapping[str, int]
    ) -> None:
        """Set the limits of each model in the API's list, by kind, and how many models differ from
        the price table, by kind of difference. A list that grows adds at most 100 labels."""
        for kind, count in drift.items():
            self._children["catalogue_drift", kind].set(count)
        self._metrics["model_limit"].clear()
        for model, of_model in limits.items():
            if len(self._known) < self._max_known:
                self._known.add(model)
            for kind, limit in of_model.items():
                labels = self.model_label(model), kind
                labelled(self._values, self._metrics["model_limit"], *labels).set(limit)

    # Exchanges

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count an exchange that has ended."""
        status = str(exchange.status)
        side = timings.traits.side
        self._children["outcomes_total", exchange.route, timings.outcome, side, status].inc(1)
        times = (*timings, *_read_exchange_times(exchange))
        self._observe_times(times, _BY_ROUTE, exchange.route)
        if timings.cause is not None:
            self._children["upstream_failures_total", timings.outcome, timings.cause].inc(1)
        if (exchange.upstream_status or 0) >= 400:
            code = exchange.upstream_code
            named = code if code in UPSTREAM_CODES else "other" if code else "none"
            self._children["upstream_errors_total", str(exchange.upstream_status), named].inc(1)
        if exchange.client_blocked_seconds:
            self._metrics["client_blocked_seconds_total"].inc(exchange.client_blocked_seconds)
        if exchange.connection is not None:
            self._children["upstream_connection_uses_total", exchange.connection].inc(1)
        for (kind, window), value in exchange.quota.limit.items():
            self._children["upstream_ratelimit_limit", kind, window].set(value)
        for (kind, window), value in exchange.quota.remaining.items():
            self._children["upstream_ratelimit_remaining", kind, window].set(value)
        if exchange.quota.malformed:
            self._metrics["malformed_quota_headers_total"].inc(exchange.quota.malformed)
        if exchange.quota.unknown:
            self._metrics["unknown_quota_headers_total"].inc(exchange.quota.unknown)
        if timings.is_chat:
            model = self.model_label(exchange.model)
            self._observe_times(times, _BY_MODEL, model)
            self._observe_chat(exchange, timings, model)

    def _observe_times(self, times: tuple[Any, ...], rows: _Times, label: str) -> None:
        for name, value in zip(rows.names, rows.read(times), strict=True):
            if value is not None:
                self._children[name, label].observe(value)

    def _observe_chat(self, exchange: Exchange, timings: Timings, model: str) -> None:
        self._children["requests_total", model].inc(1)
        # The child exists in any case, so that the error ratio is 0 and not absent.
        errors = self._children["errors_total", model]
        if timings.traits.failed:
            errors.inc(1)
        ttft = timings.ttft_seconds
        if ttft is not None:
            # The library keeps none where there are several workers.
            fits = len(exchange.trace_id) <= _MAX_EXEMPLAR_ID and self._slot is None
            exemplar = {"trace_id": exchange.trace_id} if fits else None
            self._children["ttft_seconds", model, timings.ttft_source].observe(ttft, exemplar)
            if self._target is not None and ttft > self._target:
                self._metrics["ttft_target_missed_total"].inc()
        if timings.tokens_per_second is not None:
            labels = model, timings.speed_source
            self._children["output_tokens_per_second", *labels].observe(timings.tokens_per_second)
            if timings.tpot_seconds is not None:
                self._children["tpot_seconds", *labels].observe(timings.tpot_seconds)
        if timings.generation_seconds is not None and any(exchange.gap_counts):
            self._gaps.add(model, exchange.gap_counts, timings.generation_seconds)
        self._observe_usage(exchange, timings, model)
        self._observe_retries(exchange, model)
        if exchange.finish_reason is not None:
            self._children["finish_reasons_total", model, exchange.finish_reason].inc(1)

    def _observe_usage(self, exchange: Exchange, timings: Timings, model: str) -> None:
        usage, client = timings.usage, exchange.client
        if client is not None:
            self._children["client_requests_total", client].inc(1)
        if usage is None:
            return
        if exchange.estimated_usage is not None:
            self._metrics["usage_estimated_total"].inc()
            self._metrics["usage_missing_total"].inc(timings.outcome == "completed")
        if exchange.reserved_tokens is not None:
            self._children["reserved_tokens_total", model].inc(exchange.reserved_tokens)
        self._count_tokens(usage, model)
        if client is not None:
            self._children["client_tokens_total", client, "prompt"].inc(usage.prompt_tokens)
            self._children["client_tokens_total", client, "completion"].inc(usage.completion_tokens)
        if exchange.cost is None:
            self._metrics["unpriced_requests_total"].inc()
            return
        self._children["cost_usd_total", model].inc(float(exchange.cost))
        if client is not None:
            self._children["client_cost_usd_total", client].inc(float(exchange.cost))

    def _count_tokens(self, usage: Usage, model: str) -> None:
        for kind, count in zip(_TOKEN_TYPES, _READ_TOKENS(usage), strict=True):
            if count is not None:  # 0 makes the series of those that every model has
                counter = self._children["tokens_total", model, kind]
                if count:
                    counter.inc(count)

    def _observe_retries(self, exchange: Exchange, model: str) -> None:
        count = exchange.request.header(b"x-stainless-retry-count") if exchange.request else None
        if count is not None and count.isdigit() and count.strip(b"0"):
            self._children["client_retries_total", model].inc(1)
        if exchange.malformed_retry_after:
            self._metrics["malformed_retry_after_total"].inc(exchange.malformed_retry_after)
        if exchange.retry_suppressed is not None:
            self._children["retries_forgone_total", exchange.retry_suppressed].inc(1)
        for reason in exchange.retry_reasons:
            self._children["retries_total", reason].inc(1)

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


class _PrivateValue:
    """A value in this process, which one thread changes, the event loop's, and any may read.

    So it needs no lock, unlike the library's ``MutexValue``, which takes 1,500 instructions for it.
    The library makes values by this interface; what its constructor gets is for shared ones.
    """

    _multiprocess = False

    def __init__(self, *_: object, **__: object) -> None:
        self._value = 0.0
        self._exemplar: object = None

    def inc(self, amount: float) -> None:
        self._value += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._value = value

    def get(self) -> float:
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        self._exemplar = exemplar

    def get_exemplar(self) -> object:
        return self._exemplar


class _Buckets:
    """The values of a histogram's child. The library checks that it can be observed, and looks
    through the bounds one by one: counting an exchange took 178,000 instructions, not 102,000.
    """

    def __init__(self, bounds: tuple[float, ...], total: Any, *counts: Any) -> None:
        self._bounds = bounds
        self._total = total
        self._counts = counts  # one more than bounds

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._total.inc(amount)
        count = self._counts[bisect_left(self._bounds, amount)]
        count.inc(1)
        if exemplar is not None:
            count.set_exemplar(Exemplar(exemplar, amount, time.time()))


class _Children(dict[tuple[str | None, ...], Any]):
    """What counts in the children of metrics, by the metric's name and the labels; made where it
    is missing. This dict takes 500 instructions, ``functools.cache`` 1,000.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: tuple[str | None, ...]) -> Any:
        child = self[key] = self._make(*key)
        return child
