"""Every way in which an exchange can fail: one class each.

A failure carries the status and error code for the client, the outcome for log and metrics, and a
constant text: never a foreign exception's, which may quote a header and with it a key.

::

    ProxyError
    ├── RequestRefused            the client's fault; nothing was sent upstream
    │   ├── BadRequest 400, Unauthorized 401, MethodNotAllowed 405, UnsupportedMedia 415
    │   ├── NotFound              404  ├── DoubledPrefix  └── ModelNotFound
    │   ├── RequestTimeout        408  head or body did not arrive in time
    │   ├── BodyTooLarge 413, TargetTooLong 414, HeadersTooLarge 431
    │   └── MethodUnknown 501, CodingUnknown 501, VersionUnsupported 505
    ├── Overloaded                503  no upstream connection came free in time
    │   ├── NotAdmitted           503  too many in flight; the queue was full, or the wait too long
    │   └── LimitStoreUnavailable 503  LIMITS_STORE_OUTAGE is closed, and the store is down
    ├── RateLimited               429  this proxy's own limit of requests per minute
    ├── BudgetSpent               429  the key's US dollars per day
    │   └── BudgetReserved        429  the request may cost more than is left of them
    ├── Draining                  503  shutting down
    │   └── ShutDown              503  cut short by the shutdown
    ├── UpstreamUnavailable       503  the circuit is open
    ├── UpstreamFailed            the fault of the API, or of the network between
    │   ├── ConnectFailed 502, TlsFailed 502, ConnectTimeout 504
    │   ├── InvalidResponse       502  not HTTP, closed without a response, or not as requested
    │   ├── ResponseWithheld      502  it quotes the account's key, or may and cannot be read
    │   ├── KeyRefused            502  upstream's own 401
    │   ├── Truncated             502  the response ended before its end
    │   └── FirstByteTimeout 504, IdleTimeout 504
    ├── ExchangeTimeout           504  the whole exchange took longer than allowed
    ├── ClientGone, ClientStalled no response possible: disconnected, or does not read
    └── InternalError             500  a defect of this proxy

A failure's status is sent while no byte of the response has gone out. After that the proxy cuts
the client's connection, because a clean end would read as success (RFC 9112 section 8).
"""

import math
from typing import ClassVar

__all__ = (
    "BadRequest",
    "BodyTooLarge",
    "BudgetReserved",
    "BudgetSpent",
    "ClientGone",
    "ClientStalled",
    "CodingUnknown",
    "ConnectFailed",
    "ConnectTimeout",
    "DoubledPrefix",
    "Draining",
    "ExchangeTimeout",
    "FirstByteTimeout",
    "HeadersTooLarge",
    "IdleTimeout",
    "InternalError",
    "InvalidResponse",
    "KeyRefused",
    "LimitStoreUnavailable",
    "MethodNotAllowed",
    "MethodUnknown",
    "ModelNotFound",
    "NotAdmitted",
    "NotFound",
    "Overloaded",
    "ProxyError",
    "RateLimited",
    "RequestRefused",
    "RequestTimeout",
    "ResponseWithheld",
    "ShutDown",
    "TargetTooLong",
    "TlsFailed",
    "Truncated",
    "Unauthorized",
    "UnsupportedMedia",
    "UpstreamFailed",
    "UpstreamUnavailable",
    "VersionUnsupported",
)

_RETRY_AFTER_AT_MOST = 60  # seconds; SDKs ignore a longer Retry-After, and retry at once
_Headers = tuple[tuple[bytes, bytes], ...]


def _retry_after(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", b"%d" % min(_RETRY_AFTER_AT_MOST, max(1, math.ceil(seconds)))


class ProxyError(Exception):
    """A failure, with everything that client, log and metrics get of it.

    ``status``: the response's status; 0 where no response is possible.
    ``type`` and ``code``: as in the OpenAI error object; ``code`` is also the log's ``error``.
    ``outcome``: a key of ``OUTCOMES``, the table of outcomes.
    ``cause``: of a failure on the way upstream, a key of ``CAUSES``; ``address``: the one tried.
    ``keeps``: whether the client's connection may serve another request.
    """

    status: ClassVar[int] = 0
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    outcome: ClassVar[str] = "internal_error"
    keeps: bool = True
    cause: str | None = None
    address: str | None = None
    message: str = ""
    headers: _Headers = ()

    def __init_subclass__(
        cls,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        outcome: str | None = None,
        keeps: bool | None = None,
    ) -> None:
        """Take a class's row of the table from its first line; inherit the rest."""
        super().__init_subclass__()
        cls.status = cls.status if status is None else status
        cls.type = type or cls.type
        cls.code = code or cls.code
        cls.outcome = outcome or cls.outcome
        cls.keeps = cls.keeps if keeps is None else keeps

    def drop_traceback(self) -> None:
        """Clear the traceback of a handled exception, and its context and cause. Their frames
        reference the exchange and the request body, and would keep both alive until the next
        garbage collection."""
        self.__traceback__ = self.__context__ = self.__cause__ = None


class RequestRefused(ProxyError, type="invalid_request_error", outcome="refused"):
    """``message``: one of our own texts. ``keeps``: false where framing is uncertain."""

    def __init__(self, *message: str, keeps: bool | None = None) -> None:
        super().__init__(*message)
        if message:
            (self.message,) = message
        if keeps is not None:
            self.keeps = keeps


class BadRequest(RequestRefused, status=400, code="bad_request"):
    pass


class Unauthorized(
    RequestRefused,
    status=401,
    type="authentication_error",
    code="invalid_api_key",
    outcome="unauthorized",
):
    message = "Missing or wrong API key. Send it as 'Authorization: Bearer <key>'."
    headers = ((b"www-authenticate", b"Bearer"),)


class NotFound(RequestRefused, status=404, code="not_found"):
    message = "There is nothing at this path."


class DoubledPrefix(NotFound):
    message = (
        "This path begins with /v1/v1: this client adds /v1 by itself, "
        "so its base URL must not end in /v1."
    )


class ModelNotFound(NotFound, type="not_found_error", code="model_not_found"):
    message = "Model does not exist or you do not have access to it."


class MethodNotAllowed(RequestRefused, status=405, code="method_not_allowed"):
    message = "This path does not support this method."

    def __init__(self, *allowed: str, keeps: bool = True) -> None:
        super().__init__(keeps=keeps)
        self.headers = ((b"allow", ", ".join(allowed).encode()),)  # RFC 9110 section 15.5.6


class RequestTimeout(RequestRefused, status=408, code="request_timeout", keeps=False):
    message = "The request did not arrive in time."


class BodyTooLarge(RequestRefused, status=413, code="body_too_large", keeps=False):
    message = "The request body is larger than this proxy accepts."


class TargetTooLong(RequestRefused, status=414, code="target_too_long", keeps=False):
    message = "The request target is longer than this proxy accepts."


class UnsupportedMedia(RequestRefused, status=415, code="unsupported_media_type"):
    message = "Send application/json or application/msgpack, plain or with Content-Encoding: gzip."


class HeadersTooLarge(RequestRefused, status=431, code="headers_too_large", keeps=False):
    message = "The request has more, or larger, header fields than this proxy accepts."


class MethodUnknown(RequestRefused, status=501, code="method_unknown"):
    message = "This method is not known here."


class CodingUnknown(RequestRefused, status=501, code="transfer_coding_unknown", keeps=False):
    message = "The only transfer coding known here is chunked."


class VersionUnsupported(RequestRefused, status=505, code="http_version_unsupported", keeps=False):
    message = "This server speaks HTTP/1.1."


class Overloaded(
    ProxyError, status=503, type="overloaded_error", code="overloaded", outcome="overloaded"
):
    message = "All upstream connections are in use."
    headers = ((b"retry-after", b"1"),)


class NotAdmitted(Overloaded):
    """``seconds``: the time that a request of the same client arriving now would wait."""

    message = "This proxy handles as many requests as it may, and its queue is full."

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.headers = (_retry_after(seconds),)


class LimitStoreUnavailable(Overloaded):
    message = "The store of the limits does not respond at the moment."


class RateLimited(
    ProxyError,
    status=429,
    type="too_many_requests_error",
    code="rate_limit_exceeded",
    outcome="rate_limited",
):
    """``capacity`` and ``left``: requests of the limit that was hit; ``wait``: seconds until there
    is one left. The headers are named as those of the API's own limits, window included."""

    message = "Requests per minute limit of this proxy exceeded."

    def __init__(self, capacity: float, left: float, wait: float) -> None:
        super().__init__()
        self.headers = (
            _retry_after(wait),
            (b"x-ratelimit-limit-requests-minute", b"%d" % math.floor(capacity)),
            (b"x-ratelimit-remaining-requests-minute", b"%d" % math.floor(left)),
            (b"x-ratelimit-reset-requests-minute", b"%.3f" % wait),
        )


class BudgetSpent(
    ProxyError,
    status=429,
    type="too_many_requests_error",
    code="budget_exceeded",
    outcome="budget_exceeded",
):
    """``seconds``: until midnight UTC, which is too long for an SDK to ``retry``."""

    message = "This key's budget for the day is spent; the next day begins at midnight UTC."

    def __init__(self, seconds: float, *, retry: bool = False) -> None:
        super().__init__()
        self.headers = (_retry_after(seconds), (b"x-should-retry", b"true" if retry else b"false"))


class BudgetReserved(BudgetSpent, code="budget_reserved"):
    message = (
        "This request may cost more than is left of this key's budget for the day beside requests "
        "in flight. A lower max_completion_tokens reserves less."
    )


class Draining(
    ProxyError,
    status=503,
    type="overloaded_error",
    code="draining",
    outcome="draining",
    keeps=False,
):
    message = "This proxy is shutting down."
    headers = ((b"retry-after", b"1"),)


class ShutDown(Draining, code="shut_down", outcome="shut_down"):
    message = "This proxy was shut down before the response was complete."
    headers = ((b"x-should-retry", b"false"),)  # the API may have carried it out


class UpstreamUnavailable(
    ProxyError,
    status=503,
    type="upstream_error",
    code="upstream_unavailable",
    outcome="upstream_unavailable",
):
    """Nothing was sent. ``retry_after``: seconds."""

    message = "The upstream API failed several times in a row, so no request is sent for a moment."

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__()
        self.headers = ((b"retry-after", b"%d" % retry_after),)


class UpstreamFailed(ProxyError, status=502, type="upstream_error", outcome="upstream_failed"):
    """The API may have carried out the request, so that a client must not repeat it blindly.

    The OpenAI and Cerebras SDKs obey ``x-should-retry`` before their own rules.
    """

    headers: _Headers = ((b"x-should-retry", b"false"),)

    def __init__(self, cause: str | None = None, address: str | None = None) -> None:
        super().__init__()
        self.cause, self.address = cause or self.cause, address


class ConnectFailed(UpstreamFailed, code="connect_error", outcome="upstream_connect_failed"):
    message = "Could not connect to the upstream API."
    headers = ()


class TlsFailed(UpstreamFailed, code="tls_error", outcome="upstream_tls_failed"):
    message = "Could not establish a trusted TLS connection to the upstream API."
    headers = ()


class InvalidResponse(UpstreamFailed, code="invalid_response", outcome="upstream_invalid"):
    message = "The upstream API gave no valid response."
    cause = "unusable"


class ResponseWithheld(UpstreamFailed, code="answer_withheld", outcome="upstream_invalid"):
    message = "The upstream API's response holds, or may hold, text that must not be passed on."
    cause = "key_quoted"


class KeyRefused(UpstreamFailed, code="upstream_key_refused", outcome="upstream_key_refused"):
    # Passed on, the 401 would blame the client, and its text often quotes the key in part.
    message = "The upstream API did not accept this proxy's own API key."
    cause = "key_refused"


class Truncated(UpstreamFailed, code="stream_truncated", outcome="upstream_truncated"):
    message = "The upstream API's response ended before it was complete."
    cause = "closed"


class ConnectTimeout(
    UpstreamFailed, status=504, code="connect_timeout", outcome="upstream_connect_timeout"
):
    message = "Connecting to the upstream API took too long."
    headers = ()


class FirstByteTimeout(
    UpstreamFailed, status=504, code="first_byte_timeout", outcome="upstream_timeout"
):
    message = "The upstream API did not respond in time."
    cause = "silent"


class IdleTimeout(UpstreamFailed, status=504, code="stream_timeout", outcome="upstream_stalled"):
    message = "The upstream API stopped in the middle of its response."
    cause = "silent"


class ExchangeTimeout(
    ProxyError,
    status=504,
    type="timeout_error",
    code="exchange_timeout",
    outcome="exchange_timeout",
):
    message = "The exchange took longer than this proxy allows."
    headers = ((b"x-should-retry", b"false"),)


class ClientGone(
    ProxyError, code="client_disconnected", outcome="client_disconnected", keeps=False
):
    pass


class ClientStalled(ProxyError, code="client_stalled", outcome="client_stalled", keeps=False):
    pass


class InternalError(ProxyError, status=500, keeps=False):
    message = "An error inside the proxy."
