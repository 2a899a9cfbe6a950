"""The values of settings, and their parsers.

A parser takes the text of a variable (stripped, never empty, ``reject_unfinished`` before) and
returns the value that ``Config`` holds. It raises ValueError with our own text, which follows the
variable's name and quotes nothing of a secret.
"""

import os
import re
import signal
import ssl
from base64 import b64encode
from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from .prices import PriceTable

__all__ = (
    "BACKENDS",
    "BACKEND_HELP",
    "HOST",
    "MODEL",
    "CompletionBounds",
    "Networks",
    "EgressProxy",
    "Origin",
    "has_opentelemetry",
    "inline_or_file",
    "matching",
    "not_negative",
    "on_or_off",
    "one_of",
    "positive",
    "read_aliases",
    "read_backend",
    "read_ca_bundle",
    "read_ca_directory",
    "read_collector",
    "read_file",
    "read_header_names",
    "read_host",
    "read_level",
    "read_networks",
    "read_origin",
    "read_prices",
    "read_proxy",
    "read_store",
    "read_web_origins",
    "read_workers",
    "reject_unfinished",
    "whole",
)

# What a shell, compose or a template should have replaced.
_REFERENCE = re.compile(r"\$\{\w+[^}]*\}|\$\(\w+\)|\{\{[^}]*\}\}")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
MODEL = r"[\x21-\x7e]{1,256}"
HOST = r"[A-Za-z0-9._:%-]{1,255}"
_HASHED_NAME = re.compile("[0-9a-f]{8}[.][0-9]+")  # of a certificate, by 'openssl rehash'
_MAX_FILE_BYTES = 4 * 1024 * 1024
_PROXY_PORT = 80
_COLLECTOR = r"https?://[^\s/?#@]+(?:/[^\s?#@]*)?"
_MAX_PORT = 65535
BACKENDS = ("asyncio", "trio", "uvloop")
BACKEND_HELP = f"the event loop: {', '.join(BACKENDS)}"


Networks = tuple[IPv4Network | IPv6Network, ...]

_HEADER_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SECRET_HEADERS = {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"}
_WEB_ORIGIN = (
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])"
    r"(?P<colon>(?::(?P<port>[0-9]{1,5}))?)"
)


class Origin(NamedTuple):
    """The address of the API. ``prefix`` is the part of its paths before ``/v1``."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"


class EgressProxy(NamedTuple):
    """``authorization`` is the value of Proxy-Authorization; empty without a user."""

    host: str
    port: int
    authorization: bytes = b""

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def __repr__(self) -> str:
        """Without the password."""
        return str(self)


class CompletionBounds(NamedTuple):
    """``default`` is put into requests without a token limit, ``cap`` into those with a higher one;
    None leaves them as they are."""

    default: int | None = None
    cap: int | None = None


def reject_unfinished(text: str) -> None:
    """Reject a value with quotation marks around it, as ``docker --env-file`` keeps them, and one
    that still names what should have replaced it. Raises ValueError."""
    if text[0] in "\"'" or text[-1] in "\"'":
        raise ValueError("begins or ends with a quotation mark, which would be a part of it")
    if _REFERENCE.search(text):
        raise ValueError("names a variable, in braces, that nothing has replaced")


def read_file(path: str, what: str, at_most: int = _MAX_FILE_BYTES) -> bytes:
    """The content of a file. Raises ValueError where it cannot be read, or has more bytes than
    ``at_most``, with a text that follows the variable's name."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(at_most + 1)
    except (OSError, ValueError):  # the latter: no path at all
        raise ValueError("names a file that cannot be read") from None
    if len(content) > at_most:
        raise ValueError(f"names a file that is too large for {what}")
    return content


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
    read_host(parts.hostname)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Origin(parts.scheme, parts.hostname, port, prefix)


def read_proxy(text: str) -> EgressProxy:
    """``http://[user:password@]host[:port]``; user and password percent-encoded.

    Raises ValueError with a text that quotes nothing: the value may hold a password.
    """
    try:
        parts = urlsplit(text)
        port = _PROXY_PORT if parts.port is None else parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme != "http" or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be an http:// URL: the proxy is reached without TLS, and no SOCKS")
    if not parts.hostname or not re.fullmatch(HOST, parts.hostname) or not port:
        raise ValueError("must be a URL with a host name or an IP address")
    if parts.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError("must be a URL without path, query or fragment")
    authorization = b""
    if "@" in parts.netloc:
        user, password = (unquote_to_bytes(each or "") for each in (parts.username, parts.password))
        authorization = b"Basic " + b64encode(user + b":" + password)
    return EgressProxy(parts.hostname, port, authorization)


def read_store(text: str) -> str:
    """``redis(s)://[[user]:password@]host[:port][/database]``."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:
        fits = False
    if not (fits and _VISIBLE.fullmatch(text) and re.fullmatch(r"(/[0-9]{0,4})?", parts.path)):
        raise ValueError("must be a Redis URL with a host, optionally a port and a database")
    if "?" in text or "#" in text:
        raise ValueError("must be a URL without query or fragment")
    if find_spec("redis") is None:
        raise ValueError("needs a package: pip install 'ape-cerebras[redis]'")
    return text


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


def inline_or_file(text: str) -> str:
    if text.startswith("{"):
        return text
    try:
        return read_file(text, "this setting").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8") from None


def read_prices(text: str) -> PriceTable:
    return PriceTable.from_json(inline_or_file(text))


def read_networks(text: str) -> Networks:
    """Addresses and networks (CIDR), separated by commas."""
    try:
        return tuple(ip_network(item.strip()) for item in text.split(","))
    except ValueError:
        raise ValueError(
            "must be IP addresses and networks like 10.0.0.0/8, comma-separated"
        ) from None


def read_header_names(text: str) -> tuple[bytes, ...]:
    """Names of headers, separated by commas; ``off`` for none."""
    if text.lower() == "off":
        return ()
    names = [item.strip().lower() for item in text.split(",")]
    if not all(map(_HEADER_NAME.fullmatch, names)):
        raise ValueError("must be names of headers, comma-separated, or off")
    if _SECRET_HEADERS & set(names):
        raise ValueError("names a header that carries keys")
    return tuple(name.encode() for name in names)


def read_web_origins(text: str) -> tuple[bytes, ...]:
    """Origins as browsers send them, ``scheme://host[:port]``, separated by commas; or ``*``."""
    if text == "*":
        return (b"*",)
    return tuple(_read_web_origin(item.strip().lower()) for item in text.split(","))


def _read_web_origin(text: str) -> bytes:
    match = re.fullmatch(_WEB_ORIGIN, text)
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ValueError("must be origins like https://app.example.com, comma-separated, or *")
    is_default = match["port"] == {"http": "80", "https": "443"}.get(match["scheme"])
    return (
        match["scheme"] + "://" + match["host"] + ("" if is_default else match["colon"])
    ).encode()


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


def read_level(text: str) -> str:
    """The name of a log level, in any case; Python's ``warn`` is ``warning``."""
    text = "warning" if text.lower() == "warn" else text
    return one_of("debug", "info", "warning", "error")(text)


def read_backend(text: str) -> str:
    """The name of an installed event loop, in any case."""
    name = text.lower()
    if name not in BACKENDS:
        raise ValueError(f"must be one of {', '.join(BACKENDS)}")
    if name == "uvloop" and find_spec("uvloop") is None:
        raise ValueError("needs a package for uvloop: pip install 'ape-cerebras[uvloop]'")
    return name


def read_collector(text: str) -> str:
    """The URL of an OTLP collector. The SDK sends OTEL_EXPORTER_OTLP_HEADERS, which hold its
    keys."""
    if not re.fullmatch(_COLLECTOR, text):
        raise ValueError("must be an http or https URL, without user and password")
    return text


def has_opentelemetry() -> bool:
    """Whether the extra ``otel`` is installed."""
    try:
        found = find_spec("opentelemetry.sdk"), find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:  # of a package that one of them is in
        return False
    return None not in found


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


def read_host(text: str) -> str:
    """A host name or an IP address. Raises ValueError, also where no name can be like that."""
    can_be = all(len(part) < 64 for part in text.split(".")) and ".." not in f".{text}"
    if not can_be or not re.fullmatch(HOST, text):
        raise ValueError("must be a host name or an IP address")
    return text


def read_ca_bundle(text: str) -> str:
    """The path of a file of certificates that OpenSSL takes. Raises ValueError."""
    content = read_file(text, "a CA bundle", 4 * _MAX_FILE_BYTES)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=text)
    except OSError:  # ssl.SSLError is one
        if not content.strip():
            raise ValueError("names an empty file") from None
        is_der = content.startswith(b"\x30") and b"-----BEGIN" not in content
        wrong = "in DER, and they have to be in PEM" if is_der else "that OpenSSL cannot read"
        raise ValueError(f"names a file of certificates {wrong}") from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError("names a file without a certificate in PEM")
    return text


def read_ca_directory(text: str) -> str:
    """The path of a directory, or of several with colons between, that OpenSSL looks certificates
    up in, by names that are hashes. Raises ValueError."""
    names: list[str] = []
    try:
        for path in text.split(os.pathsep):
            names += os.listdir(path)
    except (OSError, ValueError):
        raise ValueError("names a directory that cannot be read") from None
    if not any(map(_HASHED_NAME.fullmatch, names)):
        raise ValueError("names a directory without certificates as 'openssl rehash' names them")
    return text
