"""Every way an exchange can fail, as a class.

A failure carries all that anyone is told about it: the status and error code for the client, the
outcome for log and metrics, and a constant text. Nothing here ever holds a foreign exception's
message, which can quote a header and with it a key.

::

    ProxyError
    ├── RequestRefused            the client's fault; nothing went upstream
    │   ├── BadRequest            400  malformed head, framing or body
    │   ├── Unauthorized          401  no key, or a wrong one
    │   ├── NotFound              404  ├── DoubledPrefix  └── ModelNotFound
    │   ├── MethodNotAllowed      405
    │   ├── RequestTimeout        408  head or body did not arrive in time
    │   ├── BodyTooLarge          413
    │   ├── TargetTooLong         414
    │   ├── UnsupportedMedia      415
    │   ├── HeadersTooLarge       431
    │   ├── MethodUnknown         501
    │   ├── CodingUnknown         501
    │   └── VersionUnsupported    505
    ├── Overloaded                503  no upstream connection came free in time
    │   ├── NoTurn                503  too many are under way, too many wait, or for too long
    │   └── LimitsUnknown         503  their store does not answer, and was to be asked
    ├── RateLimited               429  more requests per minute than are allowed
    ├── BudgetSpent               429  the key's US dollars of the day
    ├── Draining                  503  shutting down
    │   └── ShutDown              503  cut short by that
    ├── UpstreamUnavailable       503  the circuit is open
    ├── UpstreamFailed            the API's fault, or that of the way to it
    │   ├── ConnectFailed         502  refused, unreachable, name not found
    │   ├── TlsFailed             502  certificate or handshake
    │   ├── InvalidAnswer         502  not HTTP, closed without an answer, or not what was asked
    │   ├── AnswerWithheld        502  it quotes the account's key
    │   ├── KeyRefused            502  upstream's own 401
    │   ├── Truncated             502  the answer ended before its end
    │   ├── ConnectTimeout        504
    │   ├── FirstByteTimeout      504
    │   └── IdleTimeout           504  stalled inside the answer
    ├── ExchangeTimeout           504  the whole exchange took longer than allowed
    ├── ClientGone                no answer possible: the client left
    ├── ClientStalled             no answer possible: the client takes no bytes
    └── InternalError             500  a defect of ours

A failure's status is used while no byte of the response has gone out; after that the client's
connection is cut, because a clean end would read as success (RFC 9112 section 8).
"""

from typing import ClassVar

__all__ = (
    "BadRequest",
    "BodyTooLarge",
    "ClientGone",
    "ClientStalled",
    "CodingUnknown",
    "DoubledPrefix",
    "Draining",
    "ExchangeTimeout",
    "HeadersTooLarge",
    "InternalError",
    "MethodNotAllowed",
    "MethodUnknown",
    "ModelNotFound",
    "NotFound",
    "Overloaded",
    "ProxyError",
    "RequestRefused",
    "RequestTimeout",
    "ShutDown",
    "TargetTooLong",
    "Unauthorized",
    "UnsupportedMedia",
    "VersionUnsupported",
)


class ProxyError(Exception):
    """A failure, with everything that is told of it.

    ``status``: what the client is told while that is possible; 0 where it never is.
    ``type`` and ``code``: as in the OpenAI error object; ``code`` is also the log's ``error``.
    ``outcome``: a key of ``outcomes.OUTCOMES``.
    ``keeps``: whether the client's connection may serve another request after this one.
    """

    status: ClassVar[int] = 0
    type: ClassVar[str] = "api_error"
    code: ClassVar[str] = "internal_error"
    outcome: ClassVar[str] = "internal_error"
    keeps: bool = True
    message: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init_subclass__(
        cls,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        outcome: str | None = None,
        keeps: bool | None = None,
    ) -> None:
        """Let a class say its row of the table in its first line; the rest is inherited."""
        super().__init_subclass__()
        cls.status = cls.status if status is None else status
        cls.type = type or cls.type
        cls.code = code or cls.code
        cls.outcome = outcome or cls.outcome
        cls.keeps = cls.keeps if keeps is None else keeps


class RequestRefused(ProxyError, type="invalid_request_error", outcome="refused"):
    pass


class BadRequest(RequestRefused, status=400, code="bad_request"):
    """``reason`` is one of our own constant texts; ``keeps`` is false where framing is unsure."""

    def __init__(self, reason: str, *, keeps: bool = True) -> None:
        super().__init__(reason)
        self.message = reason
        self.keeps = keeps


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
    """With the ``Allow`` header that RFC 9110 section 15.5.6 asks for."""

    message = "This path does not support this method."

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        self.headers = ((b"allow", ", ".join(allowed).encode()),)


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


class ShutDown(Draining, code="shut_down", outcome="shut_down"):
    message = "This proxy was shut down before the answer was complete."
    headers = ((b"x-should-retry", b"false"),)  # it may have been carried out


class InternalError(ProxyError, status=500, keeps=False):
    message = "An error inside the proxy."
