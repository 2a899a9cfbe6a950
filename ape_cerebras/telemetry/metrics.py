"""The Prometheus metrics, in a registry of the instance's own.

``observe`` counts an exchange that has ended; everything it needs stands in the exchange. Labels
are closed sets: ``model`` is a model of the price table or of the aliases, anything else is
``other``, so that no client can make a series.
"""

import platform
from collections.abc import Callable, Generator
from functools import cache
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge

from ..config.config import Config
from ..upstream.circuit_breaker import CircuitBreaker
from ..version import VERSION
from .client_metrics import ClientMetrics
from .degradation import REASONS
from .exchange import CUT_SHORT, Exchange
from .instruments import QuickHistogram, following
from .model_metrics import ModelMetrics
from .multiprocess import STEM, AllWorkers, Source, WorkerSlot, render
from .timings import Timings
from .try_counts import TryCounts

__all__ = ("Metrics",)

_Mode = Literal["livesum", "livemax", "mostrecent"]


class _Row(NamedTuple):
    """A histogram: its name, family of buckets, the exchange's attribute, what it shows."""

    name: str
    family: str
    attribute: str
    text: str


_CHAT = (
    _Row(
        "upstream_ttft_seconds",
        "ttft",
        "upstream_ttft_seconds",
        "Request written upstream to first token arrived",
    ),
    _Row("proxy_ttft_seconds", "overhead", "proxy_ttft_seconds", "What the proxy added to TTFT"),
    _Row("retry_seconds", "ttft", "retry_seconds", "Tries before the last, and waits for the next"),
    _Row(
        "wait_seconds",
        "ttft",
        "wait_seconds",
        "Wait for the turn, to be admitted and to have a connection",
    ),
    _Row("upstream_connect_seconds", "ttft", "connect_seconds", "Look-up and TCP, if it was new"),
    _Row("upstream_tls_seconds", "ttft", "tls_seconds", "TLS handshake, if it was new"),
    _Row("proxy_own_seconds", "overhead", "proxy_own_seconds", "proxy_ttft less those four"),
    _Row("ttfo_seconds", "ttft", "ttfo_seconds", "Like TTFT, to the first token beyond reasoning"),
    _Row("tpot_seconds", "tpot", "tpot_seconds", "Time per output token, one value a stream"),
    _Row("network_seconds", "ttft", "network_seconds", "Upstream TTFT less queue and prompt time"),
    _Row("upstream_queue_seconds", "ttft", "queue_seconds", "Cerebras's own queue_time"),
    _Row("upstream_prompt_seconds", "ttft", "prompt_seconds", "Cerebras's own prompt_time"),
    _Row(
        "output_tokens_per_second",
        "speed",
        "tokens_per_second",
        "Completion tokens over generation time, one value a stream",
    ),
)
_ROUTE = (
    _Row(
        "request_duration_seconds",
        "duration",
        "total_time_seconds",
        "Request complete to last byte written",
    ),
    _Row(
        "overhead_seconds",
        "overhead",
        "overhead_seconds",
        "Time not spent waiting for upstream, client or turn",
    ),
)
_MAX_EXEMPLAR_ID = 128 - len("trace_id")  # characters; the OpenMetrics specification's limit


class Metrics:
    """All metrics of one proxy."""

    def __init__(self, config: Config, backend: str, slot: WorkerSlot | None = None) -> None:
        self._registry = CollectorRegistry()
        self._source: Source = self._registry if slot is None else AllWorkers(slot)
        self._watched: tuple[tuple[Callable[[float], object], Callable[[], float]], ...] = ()
        self._buckets = config.buckets
        self.models = ModelMetrics(config, self._counter, self._gauge)
        self._target = None if config.ttft_target_ms is None else config.ttft_target_ms / 1000
        # Looking a child up by its labels costs more than counting in it.
        self._child: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))
        self._make_counters()
        self._ttft = self._histogram(
            _Row("ttft_seconds", "ttft", "", "Request complete to first token written to client"),
            "model",
            "source",
        )
        self._chat = [(self._histogram(row, "model"), row.attribute) for row in _CHAT]
        self._route = [(self._histogram(row, "route"), row.attribute) for row in _ROUTE]
        gap = _Row("chunk_gap_seconds", "gap", "", "Between reads that brought tokens")
        self._gaps = self._histogram(gap, "model")
        lag = _Row("loop_lag_seconds", "lag", "", "How late a 10 ms sleep wakes")
        self.loop_lag = self._histogram(lag)
        self._make_gauges(backend)
        self._tries = TryCounts(self._counter, self._gauge)
        self._clients = ClientMetrics(self._registry)

    def _make_gauges(self, backend: str) -> None:
        text = "1 while the service is degraded"
        self._degraded = self._gauge("degraded", text, "reason", mode="livemax")
        for reason in REASONS:
            self._degraded.labels(reason).set(0)
        self._quota = {
            what: self._gauge(
                f"upstream_ratelimit_{what}", text, "kind", "window", mode="mostrecent"
            )
            for what, text in (("limit", "Quota"), ("remaining", "Left"))
        }
        labels = ("version", "python", "backend")
        build = self._gauge("build_info", "Always 1", *labels, mode="livemax")
        build.labels(VERSION, platform.python_version(), backend).set(1)

    def _make_counters(self) -> None:
        count = self._counter
        self._requests = count("requests", "Chat exchanges that ended", "model")
        self._errors = count("errors", "Chat exchanges that failed", "model")
        self._outcomes = count(
            "outcomes", "Exchanges by how they ended", "route", "outcome", "status_code"
        )
        # 0 from the start: a rate knows nothing of what was before a series' first sample.
        for outcome in CUT_SHORT:
            self._outcomes.labels("/v1/chat/completions", outcome, "200")
        self._tokens = count(
            "tokens", "Tokens; cached: of prompt, reasoning: of completion", "model", "type"
        )
        self._reserved = count(
            "reserved_tokens", "Tokens that the API reserves, as estimated", "model"
        )
        text = "x-ratelimit-* that could not be read"
        self._malformed_quota = count("malformed_quota_headers", text)
        self._cost = count("cost_usd", "US dollars, where the model has a price", "model")
        self._unpriced = count("unpriced_requests", "Answers of models without a price")
        self._no_usage = count("usage_missing", "Answers that told no usage")
        self._missed = count("ttft_target_missed", "TTFTs above TTFT_TARGET_MS")
        self._connections = count(
            "upstream_connection_uses", "Exchanges by the connection they had", "connection"
        )
        self._blocked = count("client_blocked_seconds", "Time spent waiting for slow clients")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{STEM}_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str, mode: _Mode = "livesum") -> Gauge:
        """``mode``: what the gauges of several workers make together; live: of those that are."""
        name = f"{STEM}_{name}"
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode=mode)

    def _histogram(self, row: _Row, *labels: str) -> QuickHistogram:
        return QuickHistogram(
            f"{STEM}_{row.name}",
            row.text,
            labels,
            registry=self._registry,
            buckets=self._buckets[row.family],
        )

    def watch(
        self,
        *,
        in_flight: Callable[[], float],
        client_connections: Callable[[], float],
        active: Callable[[], float],
        idle: Callable[[], float],
        lines_dropped: Callable[[], float],
        waiting: Callable[[], float],
        knows_client: Callable[[str], bool],
    ) -> None:
        """The values that ``refresh`` reads, and which names clients' keys have."""
        self._clients.knows = knows_client
        upstream = self._gauge("upstream_connections", "Open", "state")
        dropped = self._counter("log_lines_dropped", "Log lines lost: output stalled or closed")
        self._watched += (
            (self._gauge("requests_in_flight", "Exchanges under way").set, in_flight),
            (self._gauge("client_connections", "Open").set, client_connections),
            (upstream.labels("active").set, active),
            (upstream.labels("idle").set, idle),
            (following(dropped), lines_dropped),
            (self._gauge("queue_length", "Requests waiting for their turn").set, waiting),
        )

    def watch_circuit(self, circuit: CircuitBreaker) -> None:
        self._watched += self._tries.watching(circuit)

    def refresh(self) -> None:
        """Look at the watched values: before a text is made, and in a worker often enough for the
        others to have them in theirs."""
        for tell, read in self._watched:
            tell(read())

    def set_degraded(self, reasons: tuple[str, ...]) -> None:
        for reason in REASONS:
            self._child(self._degraded, reason).set(reason in reasons)

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count an exchange that has ended."""
        status = str(exchange.status)
        self._child(self._outcomes, exchange.route, timings.outcome, status).inc()
        self._observe_rows(self._route, exchange.route, exchange, timings)
        if exchange.client_blocked_seconds:
            self._blocked.inc(exchange.client_blocked_seconds)
        if exchange.connection is not None:
            self._child(self._connections, exchange.connection).inc()
        self._observe_quota(exchange)
        if exchange.is_chat:
            self._observe_chat(exchange, timings, self.models.label(exchange.model))

    def _observe_rows(
        self,
        rows: list[tuple[QuickHistogram, str]],
        label: str,
        exchange: Exchange,
        timings: Timings,
    ) -> None:
        for histogram, attribute in rows:
            source = timings if attribute in Timings._fields else exchange
            value = getattr(source, attribute)
            if value is not None:
                self._child(histogram, label).observe(value)

    def _observe_chat(self, exchange: Exchange, timings: Timings, model: str) -> None:
        self._child(self._requests, model).inc()
        # Made in any case: errors over requests is 0 then, where it would else be absent.
        errors = self._child(self._errors, model)
        if timings.traits.failed:
            errors.inc()
        self._observe_ttft(exchange, timings, model)
        self._observe_rows(self._chat, model, exchange, timings)
        if any(exchange.gap_counts) and timings.generation_seconds is not None:
            self._child(self._gaps, model).add(exchange.gap_counts, timings.generation_seconds)
        self._observe_usage(exchange, timings, model)
        self._tries.observe(exchange, model)
        self._clients.observe(exchange)

    def _observe_ttft(self, exchange: Exchange, timings: Timings, model: str) -> None:
        ttft = timings.ttft_seconds
        if ttft is None:
            return
        fits = len(exchange.trace_id) <= _MAX_EXEMPLAR_ID
        exemplar = {"trace_id": exchange.trace_id} if fits else None
        self._child(self._ttft, model, timings.ttft_source).observe(ttft, exemplar)
        if self._target is not None and ttft > self._target:
            self._missed.inc()

    def _observe_usage(self, exchange: Exchange, timings: Timings, model: str) -> None:
        usage = exchange.usage
        if usage is None:
            self._no_usage.inc(timings.usage_source == "missing")
            return
        if exchange.reserved_tokens is not None:
            self._child(self._reserved, model).inc(exchange.reserved_tokens)
        for kind in ("prompt", "completion", "cached", "reasoning"):
            tokens = self._child(self._tokens, model, kind)
            if count := getattr(usage, f"{kind}_tokens"):
                tokens.inc(count)
        if exchange.cost is None:
            self._unpriced.inc()
        else:
            self._child(self._cost, model).inc(float(exchange.cost))

    def _observe_quota(self, exchange: Exchange) -> None:
        quota = exchange.quota
        for what, found in (("limit", quota.limit), ("remaining", quota.remaining)):
            for (kind, window), value in found.items():
                self._child(self._quota[what], kind, window).set(value)
        if quota.malformed:
            self._malformed_quota.inc(quota.malformed)

    def render(self, accept: bytes) -> Generator[None, None, tuple[bytes, str]]:
        """The text for a scraper, and its content type, in steps; OpenMetrics where it accepts
        that."""
        self.refresh()
        return render(self._source, accept)
