"""The table of all metrics: name, type, labels and meaning.

``metrics`` makes them from it, a scraper reads each meaning as the metric's help text, and the
documentation is generated from it. Labels are closed sets: ``model`` is a model of the price table,
the aliases or the API's list, or ``other``, so that no client can make a series.
"""

from typing import Literal, NamedTuple

__all__ = (
    "CIRCUIT_STATES",
    "DEGRADED_REASONS",
    "METRICS",
    "STEM",
    "WORKER_METRICS",
    "MetricRow",
)

STEM = "cerebras_proxy_"
"""Begins every name."""

CIRCUIT_STATES = ("closed", "open", "half_open")
DEGRADED_REASONS = ("ttft", "failures")

_Mode = Literal["livesum", "livemax", "livemin", "mostrecent"]


class MetricRow(NamedTuple):
    """One metric."""

    name: str  # without the stem
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    buckets: str = ""  # of a histogram: its family in HISTOGRAM_BUCKETS
    attribute: str = ""  # of the timings or the exchange; empty where it is observed otherwise
    mode: _Mode = "livesum"  # of a gauge: how workers' values combine; live: of living workers


def _count(name: str, labels: tuple[str, ...], meaning: str) -> MetricRow:
    return MetricRow(name, "counter", labels, meaning)


def _gauge(name: str, labels: tuple[str, ...], meaning: str, mode: _Mode = "livesum") -> MetricRow:
    return MetricRow(name, "gauge", labels, meaning, mode=mode)


def _times(
    name: str, labels: tuple[str, ...], buckets: str, meaning: str, attribute: str | None = None
) -> MetricRow:
    """A histogram. Its attribute has its name by default."""
    attribute = name if attribute is None else attribute
    return MetricRow(name, "histogram", labels, meaning, buckets, attribute)


_MODEL, _ROUTE, _CLIENT, _QUOTA = ("model",), ("route",), ("client",), ("kind", "window")
_BY_END, _KIND = ("route", "outcome", "class", "status_code"), ("model", "type")
_CLIENT_KIND, _SPEED = ("client", "type"), ("model", "source")

METRICS = (
    _count("requests_total", _MODEL, "Chat exchanges that ended"),
    _count("errors_total", _MODEL, "Chat exchanges that failed"),
    _count("outcomes_total", _BY_END, "Exchanges by how they ended, and who has to act"),
    _count("upstream_failures_total", ("outcome", "cause"), "Failures on the way upstream, by why"),
    _count(
        *("upstream_errors_total", ("status", "code")),
        "Error responses of the API, by the code in them: one of a list, other or none",
    ),
    _count("tokens_total", _KIND, "Tokens; the other types are part of prompt or completion"),
    _count("finish_reasons_total", ("model", "finish_reason"), "Completions by why they ended"),
    _count("reserved_tokens_total", _MODEL, "Tokens that the API reserves, as estimated"),
    _count("cost_usd_total", _MODEL, "US dollars, where the model has a price"),
    _count("unpriced_requests_total", (), "Responses of models without a price"),
    _count("usage_missing_total", (), "Complete responses without usage that can be read"),
    _count("usage_estimated_total", (), "Exchanges whose tokens are estimated"),
    _count("client_requests_total", _CLIENT, "Chat exchanges that ended, of keys with a name"),
    _count(
        "client_tokens_total", _CLIENT_KIND, "Prompt and completion tokens, of keys with a name"
    ),
    _count("client_cost_usd_total", _CLIENT, "US dollars, of keys with a name"),
    _count("ttft_target_missed_total", (), "TTFTs above TTFT_TARGET_MS"),
    _times("ttft_seconds", _SPEED, "ttft", "Request complete to first token sent", ""),
    _times("upstream_ttft_seconds", _MODEL, "ttft", "Request sent upstream to first token arrived"),
    _times("proxy_ttft_seconds", _MODEL, "overhead", "TTFT less upstream TTFT: the proxy's part"),
    _times("retry_seconds", _MODEL, "ttft", "Failed attempts and the waits behind them"),
    _times("wait_seconds", _MODEL, "ttft", "Waiting in the queue and for an upstream connection"),
    _times("upstream_connect_seconds", _MODEL, "ttft", "Name lookup and TCP", "connect_seconds"),
    _times("upstream_tls_seconds", _MODEL, "ttft", "TLS handshake", "tls_seconds"),
    _times("proxy_own_seconds", _MODEL, "overhead", "Proxy's TTFT less retry, wait, connect, TLS"),
    _times("ttfo_seconds", _MODEL, "ttft", "Like TTFT, to the first token beyond reasoning"),
    _times("tpot_seconds", _SPEED, "tpot", "Time per output token, one value a response", ""),
    _times("network_seconds", _MODEL, "ttft", "Upstream TTFT less queue and prompt time"),
    _times("upstream_queue_seconds", _MODEL, "ttft", "Cerebras's queue_time", "queue_seconds"),
    _times("upstream_prompt_seconds", _MODEL, "ttft", "Cerebras's prompt_time", "prompt_seconds"),
    _times(
        *("output_tokens_per_second", _SPEED, "speed"),
        *("Completion tokens by generation time, one value a response", ""),
    ),
    _times("chunk_gap_seconds", _MODEL, "gap", "Between reads that brought tokens", ""),
    _times(
        *("request_duration_seconds", _ROUTE, "duration"),
        *("Request complete to last byte written", "total_time_seconds"),
    ),
    _times("overhead_seconds", _ROUTE, "overhead", "Time not waiting for upstream, client, queue"),
    _count("upstream_connection_uses_total", ("connection",), "Exchanges by it: warm, reused, new"),
    _count(
        "retries_total", ("reason",), "Retries: connect, connection_lost, queue_exceeded, a status"
    ),
    _count(
        *("retries_forgone_total", ("why",)),
        "Suppressed retries: attempts, budget, circuit, deadline, retry_after (> 60 s) or refused",
    ),
    _count("malformed_retry_after_total", (), "Retry-After headers that could not be read"),
    _count("client_retries_total", _MODEL, "Requests that clients retried"),
    _gauge("upstream_circuit", ("state",), "1 for the circuit's state, with CIRCUIT_FAILURES"),
    _gauge("degraded", ("reason",), "1 while p95 TTFT misses its target, or > 5 % fail", "livemax"),
    _count("client_blocked_seconds_total", (), "Time spent waiting for slow clients"),
    _gauge("requests_in_flight", (), "Exchanges in flight"),
    _gauge("client_connections", (), "Open connections of clients"),
    _gauge("client_connections_limit", (), "How many there may be: MAX_CONNECTIONS"),
    _count("client_connections_full_total", (), "Connections that had to wait for room"),
    _gauge("upstream_connections", ("state",), "Open connections to upstream: active or idle"),
    _gauge(
        *("upstream_reachable", ()),
        "1 where the latest attempt to connect to upstream succeeded, and before the first",
        "livemin",
    ),
    _gauge("queue_length", (), "Chat requests that wait in the queue"),
    _gauge("upstream_ratelimit_limit", _QUOTA, "The account's quota, as last seen", "mostrecent"),
    _gauge("upstream_ratelimit_remaining", _QUOTA, "Left of the account's quota", "mostrecent"),
    _count("malformed_quota_headers_total", (), "x-ratelimit-* headers that could not be read"),
    _count("unknown_quota_headers_total", (), "x-ratelimit-* headers with names not known"),
    _count("catalogue_fetches_total", ("result",), "Fetches of the API's list: ok or failed"),
    _gauge(
        *("catalogue_drift", ("kind",)),
        "Models with another price in the API's list (price), only there, not there, price refused",
        "mostrecent",
    ),
    _gauge("model_limit", ("model", "kind"), "What the API's list allows", "mostrecent"),
    _times(
        *("loop_lag_seconds", (), "lag"),
        *("How late a sleep wakes: of 10 ms with several exchanges in flight, else of 100 ms", ""),
    ),
    _count(
        *("background_failures_total", ("task",)),
        "Failures of tasks in the background, which go on after a pause",
    ),
    _count("log_lines_dropped_total", (), "Log lines lost: the output stalled or closed"),
    _count("spans_lost_total", (), "Spans lost: their collector was slow, down, or refused them"),
    _gauge("build_info", ("version", "python", "backend"), "Always 1", "livemax"),
)

WORKER_METRICS = (
    _gauge("workers_up", (), "Workers that serve"),
    _gauge("workers_configured", (), "Workers that there should be: ASYNC_WORKERS"),
    _count("worker_restarts_total", (), "Workers that ended and were replaced"),
)
"""Only where there are several workers."""
