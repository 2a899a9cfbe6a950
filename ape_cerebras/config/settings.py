"""The table of environment variables: what each may hold, and what it means."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .keys_file import read_keys_file
from .values import (
    HOST,
    MODEL,
    matching,
    not_negative,
    on_or_off,
    one_of,
    positive,
    read_aliases,
    read_backend,
    read_buckets,
    read_client_keys,
    read_origin,
    read_prices,
    read_secret,
    read_store,
    read_workers,
    readable_file,
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
    """Whether each of several workers has as much of it."""
    shared: bool = False
    """Whether that is so only without a LIMITS_STORE."""


def _limit(variable: str, parse: Callable[[str], Any], meaning: str) -> Setting:
    """A limit that each process keeps for itself, so that several have as many times of it."""
    return Setting(variable, parse, f"{meaning}; of each worker", per_worker=True)


def _shared_limit(variable: str, parse: Callable[[str], Any], meaning: str) -> Setting:
    """One that all who name the same store keep together."""
    meaning = f"{meaning}; of each worker, or with LIMITS_STORE of all"
    return Setting(variable, parse, meaning, per_worker=True, shared=True)


_seconds = positive
_bytes = whole(64, 2**31)
_count = whole(1, 10_000_000)
_model = matching(MODEL, "a model's name")
_host = matching(HOST, "a host name or an IP address")

SETTINGS: tuple[Setting, ...] = (
    Setting("CEREBRAS_API_KEY", read_secret, "the key sent upstream", True, True),
    Setting("CEREBRAS_BASE_URL", read_origin, "the API, with or without a trailing /v1"),
    Setting("APE_API_KEY", read_client_keys, "keys that clients present; unset: open", True),
    _limit("APE_API_KEYS_FILE", read_keys_file, "TOML: keys, each with a name and limits"),
    Setting("LOG_LEVEL", one_of("debug", "info", "warning", "error"), "lowest level written"),
    Setting("HOST", _host, "address to listen on"),
    Setting("PORT", whole(0, 65535), "port to listen on; 0 picks one"),
    Setting("METRICS_PORT", whole(0, 65535), "another port for /metrics and /health; 0 picks one"),
    Setting("METRICS_ENABLED", on_or_off, "off: nothing is counted, and there is no /metrics"),
    Setting("METRICS_ON_MAIN_PORT", on_or_off, "off: /metrics is on METRICS_PORT only"),
    Setting("DEFAULT_MODEL", _model, "used where a request names none"),
    Setting("MODEL_ALIASES", read_aliases, "asked=served,…: models renamed in requests"),
    Setting("MODEL_PRICES", read_prices, "JSON or a file of it: USD per million tokens"),
    Setting(
        "PRICE_CATALOGUE",
        on_or_off,
        "models, prices and limits from the API's public list, asked for every hour",
    ),
    Setting("ASYNC_WORKERS", read_workers, "processes that serve the port"),
    Setting("BACKEND", read_backend, "the event loop: asyncio, trio or uvloop"),
    _limit("MAX_CONCURRENT_REQUESTS", _count, "chat requests under way; unset: no limit"),
    Setting("MAX_QUEUE_SECONDS", not_negative, "for a chat request's turn, in all"),
    _limit("MAX_QUEUE_LENGTH", whole(0, 1_000_000), "chat requests that wait for their turn"),
    _shared_limit(
        "RATE_LIMIT_PER_MINUTE", _count, "chat requests, of all clients; unset: no limit"
    ),
    Setting("QUOTA_PACING", on_or_off, "chat requests wait until the account's quota allows them"),
    Setting(
        "MAX_COMPLETION_TOKENS_DEFAULT",
        _count,
        "put into chat requests without a limit of tokens; unset: none is",
    ),
    Setting(
        "MAX_COMPLETION_TOKENS_CAP",
        _count,
        "put in place of higher limits of tokens; unset: none is lowered",
    ),
    Setting("LIMITS_STORE", read_store, "a Redis that keeps limits for all that name it", True),
    Setting("LIMITS_STORE_TIMEOUT", _seconds, "a question to it"),
    Setting(
        "LIMITS_STORE_OUTAGE",
        one_of("open", "closed"),
        "without an answer, open: each worker keeps limits by itself; closed: nothing is served",
    ),
    _limit("CONNECTION_POOL_SIZE", _count, "upstream connections in all"),
    _limit("KEEP_ALIVE_CONNECTIONS", whole(0, 100_000), "upstream connections kept when idle"),
    _limit("WARM_CONNECTIONS", whole(0, 1000), "idle upstream connections kept ready"),
    Setting("UPSTREAM_KEEP_ALIVE_TIMEOUT", _seconds, "an idle upstream connection"),
    Setting("UPSTREAM_MAX_CONNECTION_AGE", _seconds, "an upstream connection in all"),
    Setting("UPSTREAM_CONNECT_TIMEOUT", _seconds, "connect and TLS in all"),
    Setting("UPSTREAM_FIRST_BYTE_TIMEOUT", _seconds, "request written to response head, in all"),
    Setting("UPSTREAM_IDLE_TIMEOUT", _seconds, "between two reads of a response body"),
    Setting(
        "UPSTREAM_GZIP_MIN_BYTES",
        _bytes,
        "plain JSON bodies from this size on go up compressed; unset: none does",
    ),
    Setting(
        "RETRY_ATTEMPTS",
        whole(0, 10),
        "times that a request is made again which upstream did not take on; 0: none",
    ),
    Setting("RETRY_BACKOFF", _seconds, "wait before the first at most; doubles, up to 8"),
    _limit(
        "CIRCUIT_FAILURES",
        _count,
        "failures in a row after which upstream is left alone for a moment; unset: it never is",
    ),
    Setting("REQUEST_TIMEOUT", _seconds, "the whole exchange; unset: no limit"),
    Setting("CLIENT_HEAD_TIMEOUT", _seconds, "a request head in all"),
    Setting("CLIENT_BODY_TIMEOUT", _seconds, "a request body in all"),
    Setting("CLIENT_WRITE_TIMEOUT", _seconds, "a write that makes no progress"),
    Setting("KEEP_ALIVE_TIMEOUT", _seconds, "an idle client connection"),
    Setting("MAX_HEADER_BYTES", _bytes, "a request's header block"),
    Setting("MAX_HEADERS", _count, "header lines of a request"),
    Setting("MAX_TARGET_BYTES", _bytes, "a request's target"),
    Setting("MAX_BODY_BYTES", _bytes, "a request's body"),
    _limit("MAX_CONNECTIONS", _count, "client connections"),
    Setting("MAX_REQUESTS_PER_CONNECTION", _count, "requests on one client connection"),
    Setting("GRACEFUL_SHUTDOWN_TIMEOUT", _seconds, "for exchanges in flight after a signal"),
    Setting("TTFT_TARGET_MS", positive, "milliseconds; a TTFT above it is counted"),
    Setting(
        "TTFT_MODE",
        one_of("passthrough", "exact"),
        "exact: plain requests go up as streams, so that their TTFT is measured",
    ),
    Setting("KERNEL_STAMPS", on_or_off, "arrivals as the kernel stamps them, where it does"),
    Setting("HISTOGRAM_BUCKETS", read_buckets, "JSON or a file of it: upper bounds by family"),
    Setting("SSL_CERT_FILE", readable_file, "the CA bundle for upstream; unset: certifi's"),
)
