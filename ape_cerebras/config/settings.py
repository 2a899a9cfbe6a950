"""The table of environment variables: the parser of each and its meaning; and the histograms'
buckets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from .keys import read_client_keys, read_keys_file, read_secret
from .values import (
    MODEL,
    inline_or_file,
    matching,
    not_negative,
    on_or_off,
    one_of,
    positive,
    read_aliases,
    read_backend,
    read_ca_bundle,
    read_ca_directory,
    read_collector,
    read_header_names,
    read_host,
    read_level,
    read_networks,
    read_origin,
    read_prices,
    read_proxy,
    read_store,
    read_web_origins,
    read_workers,
    whole,
)

__all__ = ("BUCKETS", "SETTINGS", "Setting")

_MAX_BUCKETS = 100  # a series each, for every model

# Fine from 1 ms to 500 ms for TTFT and down to 0.1 ms for a token, the usual times of the API.
# All bounds of OpenTelemetry's semantic conventions are among them, so that their queries work.
BUCKETS: dict[str, tuple[float, ...]] = {
    "ttft": (
        *(0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25),
        *(0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80),
    ),
    "tpot": (
        *(0.0001, 0.0002, 0.0003, 0.0004, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005),
        *(0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ),
    "duration": tuple(0.01 * 2**power for power in range(16)),
    "overhead": (
        *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1),
    ),
    "gap": (
        *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56),
        *(5.12, 10.24),
    ),
    "lag": (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    "speed": (50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000, 2500, 3000, 4000),
}
"""Upper bounds of histogram buckets by metric family, in seconds; `speed` in tokens per second."""


class Setting(NamedTuple):
    """A row of the table."""

    variable: str
    parse: Callable[[str], Any]
    meaning: str
    secret: bool = False
    required: bool = False
    per_worker: bool = False
    """Whether each of several workers has the whole of it."""
    shared: bool = False
    """Whether that holds only without a LIMITS_STORE."""
    guards: bool = False
    """Whether every client is served without it, so that it must not be lost by accident."""
    of_https: bool = False
    """Whether it is of use for an API at https:// only, and is not looked into for another:
    platforms name the system's 140 CAs to every program, and OpenSSL takes a quarter of a start
    (250 million instructions) and 1.6 MB to read them."""


def read_buckets(text: str) -> dict[str, tuple[float, ...]]:
    try:
        table = orjson.loads(inline_or_file(text))
    except orjson.JSONDecodeError:
        raise ValueError("is not valid JSON") from None
    if not isinstance(table, dict) or not set(table) <= set(BUCKETS):
        raise ValueError(f"must be an object with some of {', '.join(BUCKETS)}")
    return {family: _read_bounds(family, bounds) for family, bounds in table.items()}


def _read_bounds(family: str, bounds: Any) -> tuple[float, ...]:
    numbers = [b for b in bounds if type(b) in (int, float)] if isinstance(bounds, list) else []
    if not numbers or numbers != bounds or sorted(set(numbers)) != numbers or numbers[0] < 0:
        raise ValueError(f"needs rising numbers from 0 up for {family}")
    if len(numbers) > _MAX_BUCKETS:
        raise ValueError(f"has more than {_MAX_BUCKETS} numbers for {family}")
    return tuple(float(number) for number in numbers)


_seconds = positive
_bytes = whole(64, 2**31)
_count = whole(1, 10_000_000)
_port = whole(0, 65535)
_model = matching(MODEL, "a model's name")
_exporters = matching("[a-z_]+(?:,[a-z_]+)*", "names of exporters: otlp or none")
_LIMIT = {"per_worker": True}
_SHARED_LIMIT = {"per_worker": True, "shared": True}

SETTINGS: tuple[Setting, ...] = (
    Setting("CEREBRAS_API_KEY", read_secret, "API key of the account, sent upstream", True, True),
    Setting("CEREBRAS_BASE_URL", read_origin, "URL of the API, with or without a trailing /v1"),
    Setting(
        "UPSTREAM_PROXY",
        read_proxy,
        "HTTP proxy on the way to the API; unset: HTTPS_PROXY, unless NO_PROXY exempts the API",
        True,
    ),
    Setting(
        "APE_API_KEY",
        read_client_keys,
        "keys that clients must present; unset: every client is served",
        True,
        guards=True,
    ),
    Setting(
        "APE_API_KEYS_FILE",
        read_keys_file,
        "TOML file of client keys, each with a name and limits (per worker)",
        guards=True,
        **_LIMIT,
    ),
    Setting("LOG_LEVEL", read_level, "lowest level logged"),
    Setting(
        "RUN_ID",
        matching(r"[A-Za-z0-9._:-]{1,64}", "1 to 64 letters, digits, and any of . _ : -"),
        "name of the run in each log line; unset: a new one at each start",
    ),
    Setting("LOG_PEER", on_or_off, "log the clients' addresses"),
    Setting(
        "TRUSTED_PROXIES",
        read_networks,
        "addresses and networks of proxies whose Forwarded or X-Forwarded-For names the client",
    ),
    Setting(
        "SESSION_ID_HEADERS",
        read_header_names,
        "headers that carry the id of an agent's session; the first that is there; off: none",
    ),
    Setting(
        "AGENT_ID_HEADERS",
        read_header_names,
        "headers that carry the id of an agent; the first that is there; off: none",
    ),
    Setting(
        "CORS_ORIGINS",
        read_web_origins,
        "origins of web pages that may use this proxy, comma-separated, or *; unset: none",
    ),
    Setting("HOST", read_host, "address to listen on"),
    Setting("PORT", _port, "TCP port to listen on; 0: any free port"),
    Setting("METRICS_PORT", _port, "separate TCP port for /metrics and /health; 0: any free port"),
    Setting("METRICS_ENABLED", on_or_off, "collect metrics and serve /metrics"),
    Setting("METRICS_ON_MAIN_PORT", on_or_off, "serve /metrics on PORT too"),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        read_collector,
        "URL of an OTLP collector that traces are sent to (extra otel); unset: none are",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        read_collector,
        "whole URL that traces are sent to; unset: OTEL_EXPORTER_OTLP_ENDPOINT and /v1/traces",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        read_collector,
        "whole URL that metrics are sent to by OTLP; unset: as OTEL_METRICS_EXPORTER says",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        one_of("http/protobuf", "http/json", "grpc"),
        "protocol to the collector; only http/protobuf is supported, others send nothing",
    ),
    Setting("OTEL_TRACES_EXPORTER", _exporters, "none: no traces in spite of an endpoint"),
    Setting(
        "OTEL_METRICS_EXPORTER",
        _exporters,
        "otlp: metrics too, to OTEL_EXPORTER_OTLP_ENDPOINT and /v1/metrics; unset: none",
    ),
    Setting("DEFAULT_MODEL", _model, "model for requests that name none"),
    Setting("MODEL_ALIASES", read_aliases, "model names to replace in requests: requested=sent,…"),
    Setting(
        "MODEL_PRICES",
        read_prices,
        "prices as JSON, or a file of it: US dollars per million tokens",
    ),
    Setting(
        "PRICE_CATALOGUE",
        on_or_off,
        "fetch models, prices and limits from the API's public list every hour",
    ),
    Setting("ASYNC_WORKERS", read_workers, "worker processes that serve the port"),
    Setting("BACKEND", read_backend, "event loop: asyncio, trio or uvloop"),
    Setting(
        "MAX_CONCURRENT_REQUESTS",
        _count,
        "chat requests in flight (per worker); unset: no limit",
        **_LIMIT,
    ),
    Setting(
        "MAX_QUEUE_SECONDS",
        not_negative,
        "longest wait of a chat request for admission, in seconds; unset: 60 with QUOTA_PACING, "
        "else 0",
    ),
    Setting(
        "MAX_QUEUE_LENGTH", whole(0, 1_000_000), "chat requests in the queue (per worker)", **_LIMIT
    ),
    Setting(
        "RATE_LIMIT_PER_MINUTE",
        _count,
        "chat requests per minute, of all clients (per worker, or shared through LIMITS_STORE); "
        "unset: no limit",
        **_SHARED_LIMIT,
    ),
    Setting("QUOTA_PACING", on_or_off, "hold chat requests back until the account's quota allows"),
    Setting(
        "MAX_COMPLETION_TOKENS_DEFAULT",
        _count,
        "token limit put into chat requests that set none; unset: none is put in",
    ),
    Setting(
        "MAX_COMPLETION_TOKENS_CAP",
        _count,
        "highest token limit of chat requests; higher ones are lowered; unset: no cap",
    ),
    Setting("LIMITS_STORE", read_store, "Redis URL; all proxies that name it share limits", True),
    Setting("LIMITS_STORE_TIMEOUT", _seconds, "timeout of a Redis call, in seconds"),
    Setting(
        "LIMITS_STORE_OUTAGE",
        one_of("open", "closed"),
        "if Redis does not respond: open = each worker enforces limits alone; closed = requests "
        "are rejected",
    ),
    Setting("CONNECTION_POOL_SIZE", _count, "upstream connections (per worker)", **_LIMIT),
    Setting(
        "KEEP_ALIVE_CONNECTIONS",
        whole(0, 100_000),
        "idle upstream connections kept open (per worker)",
        **_LIMIT,
    ),
    Setting(
        "WARM_CONNECTIONS",
        whole(0, 1000),
        "idle upstream connections opened ahead of requests (per worker)",
        **_LIMIT,
    ),
    Setting(
        "UPSTREAM_KEEP_ALIVE_TIMEOUT",
        _seconds,
        "lifetime of an idle upstream connection, in seconds",
    ),
    Setting(
        "UPSTREAM_MAX_CONNECTION_AGE", _seconds, "lifetime of any upstream connection, in seconds"
    ),
    Setting("UPSTREAM_CONNECT_TIMEOUT", _seconds, "timeout of TCP connect plus TLS, in seconds"),
    Setting(
        "UPSTREAM_FIRST_BYTE_TIMEOUT",
        _seconds,
        "timeout from the request's last byte to the whole response head, in seconds",
    ),
    Setting(
        "UPSTREAM_IDLE_TIMEOUT",
        _seconds,
        "timeout between two reads of a response body, in seconds",
    ),
    Setting(
        "UPSTREAM_GZIP_MIN_BYTES",
        _bytes,
        "size in bytes from which plain JSON request bodies are compressed; unset: never",
    ),
    Setting(
        "RETRY_ATTEMPTS",
        whole(0, 10),
        "retries of a request that upstream did not accept; 0 disables retries",
    ),
    Setting(
        "RETRY_BACKOFF",
        _seconds,
        "longest wait before the first retry, in seconds; doubles with each retry, up to 8",
    ),
    Setting(
        "CIRCUIT_FAILURES",
        _count,
        "consecutive upstream failures that open the circuit breaker (per worker); unset: never",
        **_LIMIT,
    ),
    Setting("REQUEST_TIMEOUT", _seconds, "timeout of a whole exchange, in seconds; unset: none"),
    Setting(
        "CLIENT_HEAD_TIMEOUT",
        _seconds,
        "timeout of a request head, and of a new connection's first byte, in seconds",
    ),
    Setting("CLIENT_BODY_TIMEOUT", _seconds, "timeout of reading a request body, in seconds"),
    Setting(
        "CLIENT_WRITE_TIMEOUT",
        _seconds,
        "timeout of a write to a client that makes no progress, in seconds",
    ),
    Setting(
        "KEEP_ALIVE_TIMEOUT",
        _seconds,
        "lifetime of an idle client connection that has had a request, in seconds",
    ),
    Setting("MAX_HEADER_BYTES", _bytes, "largest header block of a request, in bytes"),
    Setting("MAX_HEADERS", _count, "header lines of a request"),
    Setting("MAX_TARGET_BYTES", _bytes, "longest request target, in bytes"),
    Setting("MAX_BODY_BYTES", _bytes, "largest request body, in bytes"),
    Setting(
        "MAX_CONNECTIONS",
        _count,
        "open client connections (per worker); the longest idle makes room for another",
        **_LIMIT,
    ),
    Setting("MAX_REQUESTS_PER_CONNECTION", _count, "requests on one client connection"),
    Setting(
        "GRACEFUL_SHUTDOWN_TIMEOUT",
        _seconds,
        "time for exchanges in flight after a shutdown signal, in seconds",
    ),
    Setting(
        "TTFT_TARGET_MS", positive, "TTFT in milliseconds above which a stream is counted as slow"
    ),
    Setting(
        "TTFT_MODE",
        one_of("passthrough", "exact"),
        "exact: send plain requests upstream as streams, so that their TTFT is measured",
    ),
    Setting("KERNEL_STAMPS", on_or_off, "use kernel receive timestamps where the system has them"),
    Setting(
        "HISTOGRAM_BUCKETS",
        read_buckets,
        "histogram buckets as JSON, or a file of it: upper bounds by metric family",
    ),
    Setting(
        "SSL_CERT_FILE",
        read_ca_bundle,
        "CA bundle for upstream TLS; unset: certifi's, or SSL_CERT_DIR alone",
        of_https=True,
    ),
    Setting(
        "SSL_CERT_DIR",
        read_ca_directory,
        "directories of CA certificates for upstream TLS, as 'openssl rehash' names them",
        of_https=True,
    ),
)
