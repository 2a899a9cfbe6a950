"""What a request says of itself: its trace, its id, and when it was meant to begin.

A trace id comes from ``X-Trace-ID`` where that is well formed, else from a valid ``traceparent``
(W3C Trace Context level 1, section 3.2), else it is new. Upstream gets a ``traceparent`` with a
span id of our own, so that its spans are children of ours and not of the caller's.
"""

import re
from secrets import token_hex
from typing import NamedTuple

__all__ = ("TraceContext", "intended_start_lag", "request_id", "trace_context")

_TRACE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})"
    rb"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01
_UNIX_TIME = re.compile(rb"[0-9]{1,10}(?:\.[0-9]{1,9})?")
_LONGEST_LAG = 86_400.0  # seconds; beyond it somebody's clock is wrong
_W3C_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")


class TraceContext(NamedTuple):
    """``trace_id`` for log lines and the response; ``traceparent`` for the request upstream."""

    trace_id: str
    traceparent: bytes


def trace_context(x_trace_id: bytes | None, traceparent: bytes | None) -> TraceContext:
    """The context of an exchange, from the two headers that may carry one."""
    incoming = _parse_traceparent(traceparent) if traceparent else None
    if x_trace_id and _TRACE_ID.fullmatch(x_trace_id):
        trace_id = x_trace_id.decode()
    else:
        trace_id = incoming[0] if incoming else token_hex(16)
    if incoming:
        w3c_id, flags = incoming
    else:
        # Unsampled: it is not ours to switch on tracing in somebody else's system.
        w3c_id, flags = trace_id if _W3C_TRACE_ID.fullmatch(trace_id) else token_hex(16), "00"
    return TraceContext(trace_id, f"00-{w3c_id}-{token_hex(8)}-{flags}".encode())


def _parse_traceparent(value: bytes) -> tuple[str, str] | None:
    """Trace id and flags of a valid header; None for anything else.

    Of the flags only "sampled" is handed on: a vendor must clear those it does not know (section
    3.2.2.5.2), and flags of a version to come may mean anything.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None or match["version"] == b"ff":
        return None
    if match["version"] == b"00" and match["more"] is not None:
        return None
    if not match["trace"].strip(b"0") or not match["parent"].strip(b"0"):
        return None
    return match["trace"].decode(), f"{int(match['flags'], 16) & _SAMPLED:02x}"


def request_id(x_request_id: bytes | None) -> str:
    """The client's own id for the request where it is well formed, else a new one."""
    if x_request_id and _REQUEST_ID.fullmatch(x_request_id):
        return x_request_id.decode()
    return token_hex(16)


def intended_start_lag(x_request_timestamp: bytes | None, started: float) -> float | None:
    """Seconds from the moment at which the client meant to send its request to that at which it
    came, ``started``; both are seconds since the epoch.

    A load generator that falls behind its plan asks later than it meant to, and times that begin
    with the asking look better than they are ("coordinated omission"). None for what is no such
    time, or lies ahead: then the two machines' clocks disagree.
    """
    value = x_request_timestamp or b""
    if not _UNIX_TIME.fullmatch(value):
        return None
    lag = round(started - float(value), 6)
    return lag if 0 <= lag <= _LONGEST_LAG else None
