"""The table of environment variables: what each may hold, checked, and what it means.

A parser takes the text of a variable (stripped, never empty) and gives the value that ``Config``
holds. It raises ValueError with a text of ours that reads well after the variable's name and
repeats nothing of a secret.
"""

import hashlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from .buckets import BUCKETS
from .usage import PriceTable

__all__ = (
    "SETTINGS",
    "ClientKey",
    "Origin",
    "Setting",
    "UpstreamKey",
    "read_client_keys",
    "read_origin",
)

_SECRET = re.compile(r"[\x21-\x7e]+")
# A name with no key after it is not a key: "name:${KEY}" with an unset KEY must not open the door.
_NAMED_KEY = re.compile(
    r"(?![A-Za-z0-9._-]+:$)(?:(?P<name>[A-Za-z0-9._-]{1,64}):)?(?P<key>[\x21-\x2b\x2d-\x7e]+)"
)
_MODEL = re.compile(r"[\x21-\x7e]{1,256}")
_HOST = r"[A-Za-z0-9._:%-]{1,255}"


class UpstreamKey(str):
    """The account's key. Only ``encode`` gives it away; what prints or formats it cannot."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(secret)'"

    def __str__(self) -> str:
        return "(secret)"

    def __format__(self, spec: str) -> str:
        return "(secret)"


class ClientKey(NamedTuple):
    """A key that clients may present: its SHA-256, and its name where it was given one."""

    digest: bytes
    name: str | None = None


class Origin(NamedTuple):
    """Where the API is. ``prefix`` is what stands before ``/v1`` in its paths."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


def read_origin(text: str) -> Origin:
    """``http(s)://host[:port][/prefix]``, with or without a trailing ``/v1``."""
    try:
        parts = urlsplit(text)
        port = {"http": 80, "https": 443}.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be a URL of visible ASCII")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port:
        raise ValueError("must be an http:// or https:// URL")
    if "@" in parts.netloc or "?" in text or "#" in text:
        raise ValueError("must be a URL without user, query or fragment")
    if not re.fullmatch(_HOST, parts.hostname):
        raise ValueError("must be a URL with a host's name or address in it")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(parts.scheme, parts.hostname, port, prefix)


def _read_secret(text: str) -> UpstreamKey:
    if not _SECRET.fullmatch(text):
        raise ValueError("must be visible ASCII without white space")
    return UpstreamKey(text)


def read_client_keys(text: str) -> tuple[ClientKey, ...]:
    """``key`` or ``name:key``, several separated by commas."""
    keys = []
    for item in text.split(","):
        match = _NAMED_KEY.fullmatch(item.strip())
        if match is None:
            raise ValueError("must be keys of visible ASCII, comma-separated, each maybe name:key")
        keys.append(ClientKey(hashlib.sha256(match["key"].encode()).digest(), match["name"]))
    return tuple(keys)


def _read_aliases(text: str) -> dict[str, str]:
    aliases = {}
    for item in text.split(","):
        asked, equals, served = (part.strip() for part in item.partition("="))
        if not equals or not _MODEL.fullmatch(asked) or not _MODEL.fullmatch(served):
            raise ValueError("must be asked=served pairs, comma-separated")
        if asked in aliases:
            raise ValueError("names a model twice")
        aliases[asked] = served
    return aliases


def _inline_or_file(text: str) -> str:
    if text.startswith("{"):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError("names a file that cannot be read") from None


def _read_prices(text: str) -> PriceTable:
    return PriceTable.from_json(_inline_or_file(text))


def _read_buckets(text: str) -> dict[str, tuple[float, ...]]:
    try:
        table = orjson.loads(_inline_or_file(text))
    except orjson.JSONDecodeError:
        raise ValueError("is not valid JSON") from None
    if not isinstance(table, dict) or not set(table) <= set(BUCKETS):
        raise ValueError(f"must be an object with some of {', '.join(BUCKETS)}")
    return {family: _read_bounds(family, bounds) for family, bounds in table.items()}


def _read_bounds(family: str, bounds: Any) -> tuple[float, ...]:
    numbers = [b for b in bounds if type(b) in (int, float)] if isinstance(bounds, list) else []
    if not numbers or numbers != bounds or sorted(set(numbers)) != numbers:
        raise ValueError(f"needs rising numbers for {family}")
    return tuple(float(number) for number in numbers)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
    if number <= 0:
        raise ValueError("must be a number above 0")
    return number


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text.lower()

    return parse


def _read_workers(text: str) -> int:
    number = _whole(1, 1000)(text)
    if number > 1 and not hasattr(signal, "sigtimedwait"):
        raise ValueError("must be 1 on this system")
    return number


_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def _on_or_off(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError("must be on or off")
    return _SWITCH[text.lower()]


def _text(pattern: str, what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return parse


def _readable_file(text: str) -> str:
    try:
        Path(text).open("rb").close()
    except OSError:
        raise ValueError("names a file that cannot be read") from None
    return text


class Setting(NamedTuple):
    """A row of the table."""

    variable: str
    parse: Callable[[str], Any]
    meaning: str
    secret: bool = False
    required: bool = False
    per_worker: bool = False
    """Whether each of several workers has as much of it."""


def _limit(variable: str, parse: Callable[[str], Any], meaning: str) -> Setting:
    """A limit that each process keeps for itself, so that several have as many times of it."""
    return Setting(variable, parse, f"{meaning}; of each worker", per_worker=True)


_seconds = _positive
_bytes = _whole(64, 2**31)
_count = _whole(1, 10_000_000)
_model = _text(_MODEL.pattern, "a model's name")
_host = _text(_HOST, "a host name or an IP address")

SETTINGS: tuple[Setting, ...] = (
    Setting("CEREBRAS_API_KEY", _read_secret, "the key sent upstream", True, True),
    Setting("CEREBRAS_BASE_URL", read_origin, "the API, with or without a trailing /v1"),
    Setting("APE_API_KEY", read_client_keys, "keys that clients present; unset: open", True),
    Setting("LOG_LEVEL", _one_of("debug", "info", "warning", "error"), "lowest level written"),
    Setting("HOST", _host, "address to listen on"),
    Setting("PORT", _whole(0, 65535), "port to listen on; 0 picks one"),
    Setting("DEFAULT_MODEL", _model, "used where a request names none"),
    Setting("MODEL_ALIASES", _read_aliases, "asked=served,…: models renamed in requests"),
    Setting("MODEL_PRICES", _read_prices, "JSON or a file of it: USD per million tokens"),
    Setting("ASYNC_WORKERS", _read_workers, "processes that serve the port"),
    Setting("BACKEND", _one_of("asyncio", "trio"), "the event loop"),
    _limit("CONNECTION_POOL_SIZE", _count, "upstream connections in all"),
    _limit("KEEP_ALIVE_CONNECTIONS", _whole(0, 100_000), "upstream connections kept when idle"),
    _limit("WARM_CONNECTIONS", _whole(0, 1000), "idle upstream connections kept ready"),
    Setting("UPSTREAM_KEEP_ALIVE_TIMEOUT", _seconds, "an idle upstream connection"),
    Setting("UPSTREAM_CONNECT_TIMEOUT", _seconds, "connect and TLS in all"),
    Setting("UPSTREAM_FIRST_BYTE_TIMEOUT", _seconds, "request written to response head, in all"),
    Setting("UPSTREAM_IDLE_TIMEOUT", _seconds, "between two reads of a response body"),
    Setting(
        "UPSTREAM_GZIP_MIN_BYTES",
        _bytes,
        "plain JSON bodies from this size on go up compressed; unset: none does",
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
    Setting("TTFT_TARGET_MS", _positive, "milliseconds; a TTFT above it is counted"),
    Setting(
        "TTFT_MODE",
        _one_of("passthrough", "exact"),
        "exact: plain requests go up as streams, so that their TTFT is measured",
    ),
    Setting("KERNEL_STAMPS", _on_or_off, "arrivals as the kernel stamps them, where it does"),
    Setting("HISTOGRAM_BUCKETS", _read_buckets, "JSON or a file of it: upper bounds by family"),
    Setting("SSL_CERT_FILE", _readable_file, "the CA bundle for upstream; unset: certifi's"),
)
