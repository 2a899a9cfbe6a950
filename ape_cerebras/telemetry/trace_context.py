"""The ids of a request, its planned start and its caller, as its headers give them.

A trace id comes from ``X-Trace-ID`` where that is well formed, else from a valid ``traceparent``
(W3C Trace Context level 1, section 3.2), else it is new. Upstream gets a ``traceparent`` with our
own span id, so that its spans are children of ours and not of the caller's. The client's
``tracestate`` goes with it only where its ``traceparent`` is continued (section 3.3.1.1): beside
another trace it would say of that one what is not so.

Who sent a request is read for its log line alone, and no metric has a label of it. ``Forwarded``
(RFC 7239) and ``X-Forwarded-For`` are read from the right, hop by hop, and only as far as each hop
is trusted: whatever else they hold, anybody may have written.
"""

import os
import re
import time
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from ..config.config import Config
from ..config.values import Networks
from ..errors import NotFound
from ..http1.messages import TOKEN, Headers, Request
from .exchange import Exchange

__all__ = (
    "Caller",
    "CallerReader",
    "TraceContext",
    "identify",
    "intended_start_lag",
    "peer_of",
    "request_id",
    "trace_context",
)

_TRACE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01
_UNIX_TIME = re.compile(rb"[0-9]{1,10}(?:\.[0-9]{1,9})?")
_LONGEST_LAG = 86_400.0  # seconds; beyond it one of the clocks is wrong
_NO_REQUEST = Request("", b"", b"", ())
_W3C_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")

_MAX_TEXT = 128  # characters of a user agent or a path, escaped
_ATTEMPT = re.compile(rb"[0-9]{1,4}")
# Keys of the API begin with csk-, those of others with sk- or the like, and tokens with eyJ.
_LIKE_A_KEY = re.compile(rb"(?<![a-z0-9])(?:[cgpr]?sk[-_]|gh[a-z]_|eyj)[a-z0-9._-]{6}")
_SHORTEST_KEY = 6  # bytes; a shorter one is a word that may be anywhere
_CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"proxy-authorization", b"cookie")
# One element of Forwarded: pairs of a token and a token or a quoted string. This and the next are
# compiled when a trusted proxy sends the first.
_PAIR = (
    rb"\s*(?P<name>" + TOKEN + rb')=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>' + TOKEN + rb"))\s*"
    rb"(?P<end>[;,]|$)"
)
_ZONE = r"(?:%[\w.-]{1,32})?"
_PORT = r"(?::(?:[0-9]{1,5}|_[\w.-]{1,32}))?"
_NODE = (
    rf"(?P<v4>[0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}){_PORT}"
    rf"|(?P<v6>[0-9A-Fa-f:.]{{2,45}}){_ZONE}"
    rf"|\[(?P<literal>[0-9A-Fa-f:.]{{2,45}}){_ZONE}\]{_PORT}"
)


def _random_hex(size: int) -> str:
    """As ``secrets.token_hex`` makes it, without the way through a Random object."""
    return os.urandom(size).hex()


def identify(exchange: Exchange, request: Request | None, now: float) -> None:
    """Give the exchange its ids and the lag of its start; new ids where the headers carry none or
    there is no valid head. ``now`` is a reading of the clock that ``started_at`` is from."""
    request = request or _NO_REQUEST
    header = request.header
    parent = header(b"traceparent")
    if parent and len(_values(request, b"traceparent")) > 1:  # which of them is no longer known
        parent = None
    context = trace_context(header(b"x-trace-id"), parent)
    exchange.trace_id, exchange.traceparent, exchange.parent_span_id = context
    exchange.span_id = _random_hex(8)
    if exchange.parent_span_id and header(b"tracestate"):
        exchange.tracestate = b",".join(_values(request, b"tracestate"))
    exchange.request_id = request_id(header(b"x-request-id"))
    started = time.time() - (now - exchange.started_at)
    exchange.intended_start_lag_seconds = intended_start_lag(
        header(b"x-request-timestamp"), started
    )


def _values(request: Request, name: bytes) -> list[bytes]:
    return [value for each, value in request.headers if each == name]


class TraceContext(NamedTuple):
    """``trace_id`` for log lines and the response; ``traceparent`` for the request upstream.
    ``parent_span_id``: the client's span, whose trace is continued; None in a new trace."""

    trace_id: str
    traceparent: bytes
    parent_span_id: str | None


def trace_context(x_trace_id: bytes | None, traceparent: bytes | None) -> TraceContext:
    """The context of an exchange, from the two headers that may carry one."""
    incoming = _parse_traceparent(traceparent) if traceparent else None
    if x_trace_id and _TRACE_ID.fullmatch(x_trace_id):
        trace_id = x_trace_id.decode()
    else:
        trace_id = incoming[0] if incoming else _random_hex(16)
    if incoming:
        w3c_id, parent, flags = incoming
    else:
        # Unsampled: a proxy must not switch on tracing in the client's system.
        w3c_id = trace_id if _W3C_TRACE_ID.fullmatch(trace_id) else _random_hex(16)
        parent, flags = None, "00"
    own = f"00-{w3c_id}-{_random_hex(8)}-{flags}".encode()
    return TraceContext(trace_id, own, parent)


def _parse_traceparent(value: bytes) -> tuple[str, str, str] | None:
    """Trace id, parent's span id and flags of a valid header; None for anything else.

    Only the flag "sampled" is passed on: a vendor must clear those it does not know (section
    3.2.2.5.2), and flags of a future version may mean anything.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None or match["version"] == b"ff":
        return None
    if match["version"] == b"00" and match["more"] is not None:
        return None
    if not match["trace"].strip(b"0") or not match["parent"].strip(b"0"):
        return None
    flags = f"{int(match['flags'], 16) & _SAMPLED:02x}"
    return match["trace"].decode(), match["parent"].decode(), flags


def request_id(x_request_id: bytes | None) -> str:
    """The client's own id where it is well formed, else a new one."""
    if x_request_id and _REQUEST_ID.fullmatch(x_request_id):
        return x_request_id.decode()
    return _random_hex(16)


def intended_start_lag(x_request_timestamp: bytes | None, started: float) -> float | None:
    """Seconds from the planned start of a request to its first byte, ``started``; both are seconds
    since the epoch.

    A load generator that falls behind its plan sends late, and times that begin with the sending
    look better than they are ("coordinated omission"). None where the header is malformed or
    in the future: then the clocks of the two machines disagree.
    """
    value = x_request_timestamp or b""
    if not _UNIX_TIME.fullmatch(value):
        return None
    lag = round(started - float(value), 6)
    return lag if 0 <= lag <= _LONGEST_LAG else None


class Caller(NamedTuple):
    """Who sent a request, and which one it was upstream, for its log line."""

    peer: str | None
    user_agent: str | None
    session_id: str | None
    agent_id: str | None
    client_attempt: int | None
    path: str | None  # of a request for something that is not there
    upstream_id: str | None
    cf_ray: str | None


class CallerReader:
    """Reads the ``Caller`` of an exchange, as the settings have it."""

    def __init__(self, config: Config) -> None:
        self._trusted = config.trusted_proxies
        self._logs_peer = config.log_peer
        self._session = config.session_id_headers
        self._agent = config.agent_id_headers

    def read(self, exchange: Exchange) -> Caller:
        """What the headers of request and response say; ids that are malformed are left out, and so
        is whatever may hold a key."""
        request = exchange.request or _NO_REQUEST
        header = request.header
        attempt = header(b"x-stainless-retry-count")
        peer = None
        if self._logs_peer:
            peer = exchange.address
            if self._trusted and peer is not None:
                peer = peer_of(peer, request.headers, self._trusted)
        upstream = dict(exchange.upstream_headers)
        is_nowhere = isinstance(exchange.error, NotFound)
        return Caller(
            peer,
            _text(header(b"user-agent"), request),
            _first_id(self._session, request),
            _first_id(self._agent, request),
            int(attempt) if attempt and _ATTEMPT.fullmatch(attempt) else None,
            _text(request.path, request) if is_nowhere else None,
            _id(upstream.get(b"inference-id")) or _id(upstream.get(b"x-request-id")),
            _id(upstream.get(b"cf-ray")),
        )


def _id(value: bytes | None) -> str | None:
    return value.decode() if value and _TRACE_ID.fullmatch(value) else None


def _first_id(names: Iterable[bytes], request: Request) -> str | None:
    """The first of these headers that is well formed."""
    for name in names:
        value = request.header(name)
        if value is not None and _TRACE_ID.fullmatch(value) and not _may_hold_key(value, request):
            return value.decode()
    return None


def _text(value: bytes | None, request: Request) -> str | None:
    """Text from outside as visible ASCII, cut."""
    if not value or _holds_presented_key(value, request):
        return None
    return _known_text(value) if len(value) <= _MAX_TEXT else _visible_text(value)


def _visible_text(value: bytes) -> str | None:
    """None for what looks like a key."""
    if _LIKE_A_KEY.search(value.lower()):
        return None
    text = value[:_MAX_TEXT].decode("ascii", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text[:_MAX_TEXT]


# Clients are of a few kinds, and most user agents were seen before: 6,000 instructions less.
_known_text = lru_cache(maxsize=256)(_visible_text)


def _may_hold_key(value: bytes, request: Request) -> bool:
    """Whether the value looks like a key, or holds one that the request presents elsewhere."""
    return bool(_LIKE_A_KEY.search(value.lower())) or _holds_presented_key(value, request)


def _holds_presented_key(value: bytes, request: Request) -> bool:
    for name in _CREDENTIALS:
        presented = request.header(name)
        if presented is not None:
            key = presented.rpartition(b" ")[2]
            if len(key) >= _SHORTEST_KEY and value.find(key) >= 0:
                return True
    return False


def peer_of(address: str, headers: Headers, trusted: Networks) -> str:
    """The client's address: of the connection, or behind hops that are trusted the one that the
    last of them reports.

    A hop may write one of the two headers and pass on the other as it came. So where both are
    there and differ, neither is believed, and the hop's own address is the last that is certain.
    """
    found = _parse_node(address)
    if found is None or not _is_trusted(found, trusted):
        return address
    forwarded = _values_of(headers, b"forwarded")
    listed = _values_of(headers, b"x-forwarded-for")
    peers = {
        _last_untrusted(found, chain, trusted)
        for values, chain in (
            (forwarded, [node for value in forwarded for node in _nodes_in(value)]),
            (listed, [node.strip() for value in listed for node in value.split(b",")]),
        )
        if values
    }
    return str(peers.pop() if len(peers) == 1 else found)


def _values_of(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


_Address = IPv4Address | IPv6Address


def _last_untrusted(address: _Address, chain: list[bytes], trusted: Networks) -> _Address:
    """The address that the hops report, from the last one on as far as they are trusted. One that
    is hidden or ``unknown`` (RFC 7239 section 6) ends the way, and so does one that is none."""
    while chain and _is_trusted(address, trusted):
        found = _parse_node(chain.pop().decode("latin-1"))
        if found is None:
            break
        address = found
    return address


def _nodes_in(value: bytes) -> list[bytes]:
    """The ``for`` of each element of a Forwarded field, empty where it has none; one empty node
    where the field is malformed, so that nothing in it counts."""
    nodes, node, at = [], b"", 0
    element = re.compile(_PAIR)
    while at < len(value):
        pair = element.match(value, at)
        if pair is None:
            return [b""]
        at = pair.end()
        if pair["name"].lower() == b"for":
            node = pair["plain"] or pair["quoted"] or b""
        if pair["end"] != b";":
            nodes.append(node)
            node = b""
    return nodes


def _parse_node(text: str) -> _Address | None:
    """An address with or without port and brackets; its zone is left out."""
    match = re.fullmatch(_NODE, text)
    if match is None:
        return None
    try:
        address = ip_address(match["v4"] or match["v6"] or match["literal"])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: _Address, trusted: Networks) -> bool:
    return any(address in network for network in trusted)
