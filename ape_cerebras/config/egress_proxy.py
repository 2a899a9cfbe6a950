"""The HTTP proxy on the way to the API, where a network lets nothing else out.

``UPSTREAM_PROXY`` names it. Where that is unset, ``HTTPS_PROXY`` and ``NO_PROXY`` are read as curl
reads them, for an API at https:// only; lower-case names win, as there.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from .values import HOST, Origin

__all__ = ("EgressProxy", "find_proxy", "read_proxy")

_DEFAULT_PORT = 80


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


def read_proxy(text: str) -> EgressProxy:
    """``http://[user:password@]host[:port]``; user and password percent-encoded.

    Raises ValueError with a text that quotes nothing: the value may hold a password.
    """
    try:
        parts = urlsplit(text)
        port = _DEFAULT_PORT if parts.port is None else parts.port
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


def find_proxy(environment: Mapping[str, str], api: Origin) -> EgressProxy | None:
    """The proxy that the environment's own variables name for the API.

    Raises ValueError, beginning with the variable's name.
    """
    found = [name for name in ("https_proxy", "HTTPS_PROXY") if environment.get(name, "").strip()]
    if api.scheme != "https" or not found:
        return None
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if _is_exempt(api, exempt):
        return None
    try:
        return read_proxy(environment[found[0]].strip())
    except ValueError as problem:
        raise ValueError(f"{found[0]} {problem}") from None


def _is_exempt(api: Origin, exempt: str) -> bool:
    """Whether ``NO_PROXY`` names the API: its name, a domain that it is in, either with its port,
    or ``*``."""
    for entry in exempt.lower().replace(" ", ",").split(","):
        name, _, port = entry.rpartition(":") if re.search(r":[0-9]+$", entry) else (entry, "", "")
        name = name.lstrip(".")
        matches = name == "*" or (name != "" and f".{api.host}".endswith(f".{name}"))
        if matches and port in ("", str(api.port)):
            return True
    return False
