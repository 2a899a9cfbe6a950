"""The ids of a request and its planned start, as its headers give them.

A trace id comes from ``X-Trace-ID`` where that is well formed, else from a valid ``traceparent``
(W3C Trace Context level 1, section 3.2), else it is new. Upstream gets a ``traceparent`` with our
own span id, so that its spans are children of ours and not of the caller's. The client's
``tracestate`` goes with it only where its ``traceparent`` is continued (section 3.3.1.1): beside
another trace it would say of that one what is not so.
"""

import os
import re
import time
from typing import NamedTuple

from ..http1.messages import Request
from .exchange import Exchange

__all__ = ("TraceContext", "identify", "intended_start_lag", "request_id", "trace_context")

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
