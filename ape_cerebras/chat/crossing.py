"""The header fields that cross from one connection to the other."""

from ..http1.messages import Headers, Request

__all__ = ("headers_down", "headers_up", "plain_headers")

_JSON = (b"content-type", b"application/json")

# What concerns one connection only (RFC 9110 section 7.6.1), or no longer holds on the other one.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",  # never standard, still sent
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Upstream's edge speaks of itself in these, not of the answer.
_NOT_DOWN = _HOP_BY_HOP | {b"alt-svc", b"server", b"set-cookie", b"strict-transport-security"}
# Ours take the place of these.
_NOT_DOWN |= {b"x-request-id", b"x-trace-id"}

# What a client may tell the API: its own parameters in headers, and who asks. An allow-list,
# because whatever else agents and gateways send (cookies, addresses, keys) is not its business.
_UP = frozenset(
    (
        b"accept",
        b"cf-ray",
        b"content-encoding",
        b"content-type",
        b"idempotency-key",
        b"queue_threshold",
        b"tracestate",
        b"user-agent",
        b"x-amz-cf-id",
        b"x-delay-time",
        b"x-simulate",  # faults and times of the simulator; the real API reads over it
    )
)
_UP_PREFIXES = (b"x-cerebras-", b"x-stainless-")


def _listed_in_connection(headers: Headers) -> set[bytes]:
    """Fields that the sender declared hop-by-hop itself."""
    return {
        name.strip().lower()
        for field, value in headers
        if field == b"connection"
        for name in value.split(b",")
    }


def headers_up(request: Request) -> Headers:
    """The client's headers that go upstream."""
    listed = _listed_in_connection(request.headers) - {b"content-type", b"content-encoding"}
    return tuple(
        (name, value)
        for name, value in request.headers
        if (name in _UP or name.startswith(_UP_PREFIXES)) and name not in listed
    )


def headers_down(headers: Headers, *, stream: bool) -> Headers:
    """Upstream's headers that go to the client. A stream has no length, so that an error event can
    be put behind a part of it."""
    dropped = _NOT_DOWN | _listed_in_connection(headers)
    if stream:
        dropped |= {b"content-length"}
    return tuple((name, value) for name, value in headers if name not in dropped)


def plain_headers(headers: Headers) -> Headers:
    """What of a stream's headers goes down with a plain reply in its place."""
    kept = headers_down(headers, stream=True)
    return (_JSON, *(field for field in kept if field[0] != _JSON[0]))
