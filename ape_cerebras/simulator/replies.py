"""Responses of the Cerebras API that need no generation: errors, models, common headers.

Bodies keep the key order and the compact spacing of recordings of the real API (2026). Where a
body was never recorded, the docstring or comment says that it is a guess.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ..config.prices import PriceTable

__all__ = (
    "ERRORS",
    "MODELS",
    "ErrorReply",
    "Rejected",
    "error_named",
    "model_list",
    "one_model",
    "over_quota",
    "reply_headers",
    "stream_error",
    "wrong_format",
)

_JSON = (b"content-type", b"application/json")

MODELS = PriceTable.built_in().prices
"""The models of the simulator: those of the built-in price table."""


class ErrorReply(NamedTuple):
    """An HTTP error response of the API."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class Rejected(Exception):
    """A request that the API would reject with ``reply``."""

    def __init__(self, reply: ErrorReply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def _flat(
    status: int, message: str, type: str, param: str, code: str, *more: tuple[bytes, bytes]
) -> ErrorReply:
    """The shape of a 4xx: a flat object."""
    body = {"message": message, "type": type, "param": param, "code": code}
    return ErrorReply(status, orjson.dumps(body), (_JSON, *more))


def _wrapped(status: int, message: str) -> ErrorReply:
    """The shape of a 5xx and of an error event: ``error``, and the status beside it."""
    error = {"message": message, "type": "server_error", "param": "", "code": "", "id": ""}
    return ErrorReply(status, orjson.dumps({"status_code": status, "error": error}))


def wrong_format(message: str) -> ErrorReply:
    """400, as for a body that breaks the schema."""
    return _flat(400, message, "invalid_request_error", "validation_error", "wrong_api_format")


_PROCESSED = {"requests": "sent", "tokens": "processed"}


def over_quota(what: str, window: str, retry_after: int = 1) -> ErrorReply:
    """429 for the account's ``requests`` or ``tokens`` in a ``window``. Recorded for the minute; a
    guess for the others."""
    return _flat(
        429,
        f"{what.capitalize()} per {window} limit exceeded - too many {what} {_PROCESSED[what]}.",
        f"too_many_{what}_error",
        "quota",
        f"{what.removesuffix('s')}_quota_exceeded",
        (b"retry-after", b"%d" % retry_after),
    )


ERRORS: Mapping[str, ErrorReply] = {
    "unknown_field": wrong_format("body.store: property 'body.store' is unsupported"),
    "mixed_strict": _flat(
        400,
        "Tools with mixed values for 'strict' are not allowed. "
        "Please set all tools to 'strict: true' or 'strict: false'",
        "invalid_request_error",
        "tools",
        "wrong_api_format",
    ),
    "wrong_api_key": _flat(
        401, "Wrong API Key", "invalid_request_error", "api_key", "wrong_api_key"
    ),
    "payment_required": _flat(
        402,
        "Payment required to access this resource. Visit your billing tab.",
        "payment_required_error",
        "quota",
        "payment_required",
    ),
    "unauthenticated": ErrorReply(403, b'{"detail":"Not authenticated"}'),
    "model_not_found": _flat(
        404,
        "Model does not exist or you do not have access to it.",
        "not_found_error",
        "model",
        "model_not_found",
    ),
    "route_not_found": ErrorReply(404, b"", ((b"content-type", b"text/plain"),)),
    "requests": over_quota("requests", "minute"),
    "tokens": over_quota("tokens", "minute"),
    "queue": _flat(
        429,
        "We're experiencing high traffic right now! Please try again soon.",
        "too_many_requests_error",
        "queue",
        "queue_exceeded",
        (b"retry-after", b"1"),  # usual on a 429, and short enough to test
    ),
    "server_error": _wrapped(500, "Encountered a server error, please try again."),
    # In the API's documentation; the body was never recorded, and the shape of the 500 is a guess.
    "unavailable": _wrapped(503, "The service is unavailable, please try again."),
}
"""Every error by name."""


def error_named(name: str) -> ErrorReply | None:
    """The error of that name, or the first one with that status: ``queue``, ``429``."""
    if name in ERRORS:
        return ERRORS[name]
    return next((reply for reply in ERRORS.values() if str(reply.status) == name), None)


def stream_error() -> bytes:
    """The error event that ends a stream in place of ``[DONE]``.

    Its message has no full stop; that of the HTTP error has one.
    """
    return b"data: %s\n\n" % _wrapped(500, "Encountered a server error, please try again").body


# Models


_PUBLIC_LIMITS = {
    "max_context_length": 131_072,
    "max_completion_tokens": 40_960,
    "requests_per_minute": None,
    "tokens_per_minute": None,
}


def _entry(model: str, *, public: bool) -> dict[str, Any]:
    """An entry of a list of models. In the public one, prices are the built-in ones, all else is
    as for gpt-oss-120b, and lists of capabilities are omitted."""
    created = 1754438400 if public else 0
    entry = {"id": model, "object": "model", "created": created, "owned_by": "Cerebras"}
    if not public:
        return entry
    price = MODELS[model]
    dollars = {"prompt": price.input, "completion": price.output}  # per million tokens
    return {
        **entry,
        "name": model,
        "pricing": {kind: f"{(of / 1_000_000).normalize():f}" for kind, of in dollars.items()},
        "limits": _PUBLIC_LIMITS,
        "datacenter_locations": [],
        "deprecated": False,
        "preview": False,
        "quantization": None,
    }


def model_list(*, public: bool = False) -> bytes:
    """``GET /v1/models``, or ``GET /public/v1/models``: every model that has a built-in price."""
    data = [_entry(model, public=public) for model in MODELS]
    return orjson.dumps({"object": "list", "data": data})


def one_model(model: str, *, public: bool = False) -> bytes:
    """The entry for one model in the same list. Raises Rejected if there is no such model."""
    if model not in MODELS:
        raise Rejected(ERRORS["model_not_found"])
    return orjson.dumps(_entry(model, public=public))


# Headers


def reply_headers(ray: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Cloudflare's headers, present on every response. ``ray`` is its id of the request."""
    return (
        (b"server", b"cloudflare"),
        (b"cf-ray", ray),
        (b"cf-cache-status", b"DYNAMIC"),
        (b"alt-svc", b'h3=":443"; ma=86400'),
        (b"strict-transport-security", b"max-age=15552000; includeSubDomains"),
        (b"set-cookie", b"__cf_bm=%s; path=/; HttpOnly; Secure; SameSite=None" % ray),
        (b"referrer-policy", b"strict-origin-when-cross-origin"),
        (b"x-content-type-options", b"nosniff"),
    )
