"""The table of environment variables: the parser of each and its meaning."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .egress_proxy import read_proxy
from .keys_file import read_keys_file
from .values import (
    MODEL,
    matching,
    not_negative,
    on_or_off,
    one_of,
    positive,
    read_aliases,
    read_backend,
    read_buckets,
    read_ca_bundle,
    read_ca_directory,
    read_client_keys,
    read_host,
    read_level,
    read_origin,
    read_prices,
    read_secret,
    read_store,
    read_workers,
    whole,
)

__all__ = ("SETTINGS", "Setting")


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


_seconds = positive
_bytes = whole(64, 2**31)
_count = whole(1, 10_000_000)
_port = whole(0, 65535)
_model = matching(MODEL, "a model's name")
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
    Setting("HOST", read_host, "address to listen on"),
    Setting("PORT", _port, "TCP port to listen on; 0: any free port"),
    Setting("METRICS_PORT", _port, "separate TCP port for /metrics and /health; 0: any free port"),
    Setting("METRICS_ENABLED", on_or_off, "collect metrics and serve /metrics"),
    Setting("METRICS_ON_MAIN_PORT", on_or_off, "serve /metrics on PORT too"),
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
    ),
    Setting(
        "SSL_CERT_DIR",
        read_ca_directory,
        "directories of CA certificates for upstream TLS, as 'openssl rehash' names them",
    ),
)
