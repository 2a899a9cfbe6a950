"""The values of settings, and their parsers.

A parser takes the text of a variable (stripped, never empty) and returns the value that ``Config``
holds. It raises ValueError with our own text, which follows the variable's name and quotes nothing
of a secret.
"""

import hashlib
import re
import signal
from collections.abc import Callable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from .prices import PriceTable

__all__ = (
    "BACKENDS",
    "BACKEND_HELP",
    "BUCKETS",
    "HOST",
    "KEY",
    "KEY_NAME",
    "MODEL",
    "ClientKey",
    "CompletionBounds",
    "Origin",
    "UpstreamKey",
    "matching",
    "not_negative",
    "on_or_off",
    "one_of",
    "positive",
    "read_aliases",
    "read_backend",
    "read_buckets",
    "read_client_keys",
    "read_origin",
    "read_prices",
    "read_secret",
    "read_store",
    "read_workers",
    "readable_file",
    "whole",
)

_SECRET = re.compile(r"[\x21-\x7e]+")
KEY_NAME = r"[A-Za-z0-9._-]{1,64}"
KEY = r"[\x21-\x7e]{1,4096}"
# A name without a key is rejected: "name:${KEY}" with an unset KEY must not let everybody in.
_NAMED_KEY = re.compile(
    rf"(?![A-Za-z0-9._-]+:$)(?:(?P<name>{KEY_NAME}):)?(?P<key>[\x21-\x2b\x2d-\x7e]+)"
)
MODEL = r"[\x21-\x7e]{1,256}"
HOST = r"[A-Za-z0-9._:%-]{1,255}"
BACKENDS = ("asyncio", "trio", "uvloop")
BACKEND_HELP = f"the event loop: {', '.join(BACKENDS)}"

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


class UpstreamKey(str):
    """The account's key. Only ``encode`` reveals it; printing and formatting do not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'(secret)'"

    def __str__(self) -> str:
        return "(secret)"

    def __format__(self, spec: str) -> str:
        return "(secret)"


class ClientKey(NamedTuple):
    """A client key: the SHA-256 of the key, its name if it has one, and its limits; None: no
    limit."""

    digest: bytes
    name: str | None = None
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    usd_per_day: Decimal | None = None
    models: frozenset[str] | None = None

    @property
    def is_limited(self) -> bool:
        return any(limit is not None for limit in self[2:])


class Origin(NamedTuple):
    """The address of the API. ``prefix`` is the part of its paths before ``/v1``."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


class CompletionBounds(NamedTuple):
    """``default`` is put into requests without a token limit, ``cap`` into those with a higher one;
    None leaves them as they are."""

    default: int | None = None
    cap: int | None = None


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
    if not re.fullmatch(HOST, parts.hostname):
        raise ValueError("must be a URL with a host name or an IP address")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(parts.scheme, parts.hostname, port, prefix)


def read_secret(text: str) -> UpstreamKey:
    if not _SECRET.fullmatch(text):
        raise ValueError("must be visible ASCII without white space")
    return UpstreamKey(text)


def read_store(text: str) -> str:
    """``redis(s)://[[user]:password@]host[:port][/database]``."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:
        fits = False
    if not (fits and _SECRET.fullmatch(text) and re.fullmatch(r"(/[0-9]{0,4})?", parts.path)):
        raise ValueError("must be a Redis URL with a host, optionally a port and a database")
    if "?" in text or "#" in text:
        raise ValueError("must be a URL without query or fragment")
    if find_spec("redis") is None:
        raise ValueError("needs a package: pip install 'ape-cerebras[redis]'")
    return text


def read_client_keys(text: str) -> tuple[ClientKey, ...]:
    """``key`` or ``name:key``, several separated by commas."""
    keys = []
    for item in text.split(","):
        match = _NAMED_KEY.fullmatch(item.strip())
        if match is None:
            raise ValueError("must be keys of visible ASCII, comma-separated, each key or name:key")
        keys.append(ClientKey(hashlib.sha256(match["key"].encode()).digest(), match["name"]))
    return tuple(keys)


def read_aliases(text: str) -> dict[str, str]:
    aliases = {}
    for item in text.split(","):
        requested, equals, sent = (part.strip() for part in item.partition("="))
        if not equals or not re.fullmatch(MODEL, requested) or not re.fullmatch(MODEL, sent):
            raise ValueError("must be requested=sent pairs of model names, comma-separated")
        if requested in aliases:
            raise ValueError("names a model twice")
        aliases[requested] = sent
    return aliases


def _inline_or_file(text: str) -> str:
    if text.startswith("{"):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError("names a file that cannot be read") from None


def read_prices(text: str) -> PriceTable:
    return PriceTable.from_json(_inline_or_file(text))


def read_buckets(text: str) -> dict[str, tuple[float, ...]]:
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


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def not_negative(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("must be a number from 0 up")
    return float(text)


def positive(text: str) -> float:
    number = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else 0.0
    if number <= 0:
        raise ValueError("must be a number above 0")
    return number


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text.lower()

    return parse


def read_backend(text: str) -> str:
    """The name of an installed event loop, in any case."""
    name = text.lower()
    if name not in BACKENDS:
        raise ValueError(f"must be one of {', '.join(BACKENDS)}")
    if name == "uvloop" and find_spec("uvloop") is None:
        raise ValueError("needs a package for uvloop: pip install 'ape-cerebras[uvloop]'")
    return name


def read_workers(text: str) -> int:
    number = whole(1, 1000)(text)
    if number > 1 and not hasattr(signal, "sigtimedwait"):
        raise ValueError("must be 1 on this system")
    return number


_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


def on_or_off(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError("must be on or off")
    return _SWITCH[text.lower()]


def matching(pattern: str, what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {what}")
        return text

    return parse


def readable_file(text: str) -> str:
    try:
        Path(text).open("rb").close()
    except OSError:
        raise ValueError("names a file that cannot be read") from None
    return text
