"""The mutable record of one exchange (a request and its response), and the ways it can end.

Each stage writes what it alone knows; the comment above a group of fields names the one module that
writes them. ``…_at`` are readings of the event loop's monotonic clock in seconds::

    first byte ─► received ─► sent ─► head ─► first token ··· last token ─► last byte
    started_at    received_at sent_at head_at first_token_at  last_token_at finished_at

Durations are bare nouns in seconds, sizes are bytes.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, Self

from ..errors import ProxyError
from ..http1.messages import Request

__all__ = (
    "ALERTED",
    "CAUSES",
    "CHAT_ROUTE",
    "NO_QUOTA",
    "OUTCOMES",
    "SIDES",
    "Exchange",
    "Outcome",
    "Quota",
    "TimeInfo",
    "Usage",
    "outcome_of_status",
)

CHAT_ROUTE = "/v1/chat/completions"

_MAX_TOKENS = 2**40  # no model's context; more is nonsense, and no float or log holds it
_MAX_SECONDS = 1e9  # likewise, of a phase
_COUNT = re.compile(r"[0-9]{1,12}(?:\.0{1,6})?")  # written as text


class Usage(NamedTuple):
    """Tokens of one exchange, as the API reports them or as they are estimated. Cached tokens are
    part of the prompt, reasoning tokens of the completion, as in OpenAI's usage object."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int | None = None  # of these three none is 0
    rejected_prediction_tokens: int | None = None
    image_tokens: int | None = None

    @classmethod
    def read(cls, usage: Any) -> Self | None:
        """Read the ``usage`` object of a response; None where it does not tell the tokens of prompt
        and completion, or tells of none at all. One of the two may follow from the total.

        ``input_tokens`` and ``output_tokens`` are their names in OpenAI's Responses API and in
        Anthropic's. Details differ by model: they may be null or missing; an odd one is 0.
        """
        if not isinstance(usage, dict):
            return None
        prompt = _count(usage, "prompt_tokens", "input_tokens")
        completion = _count(usage, "completion_tokens", "output_tokens")
        total = _count(usage, "total_tokens")
        if total is not None and prompt is None is not completion:
            prompt = max(0, total - completion)
        if total is not None and completion is None is not prompt:
            completion = max(0, total - prompt)
        if prompt is None or completion is None or not prompt + completion:
            return None
        of_prompt = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        made = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
        return cls(
            prompt,
            completion,
            total or prompt + completion,
            _count(of_prompt, "cached_tokens") or 0,
            _count(made, "reasoning_tokens") or 0,
            _count(made, "accepted_prediction_tokens") or None,
            _count(made, "rejected_prediction_tokens") or None,
            _count(of_prompt, "image_tokens") or None,
        )


def _count(parent: Any, *names: str) -> int | None:
    """The largest whole number among these members, also as a float or as text; else None."""
    largest = None
    for name in names if isinstance(parent, dict) else ():
        value = parent.get(name)
        if isinstance(value, str) and _COUNT.fullmatch(value):
            value = float(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is int and (largest or 0) <= value <= _MAX_TOKENS:
            largest = value
    return largest


class TimeInfo(NamedTuple):
    """Cerebras's own account of a request, in seconds; None for what it left out."""

    queue: float | None
    prompt: float | None
    completion: float | None

    @classmethod
    def read(cls, info: Any) -> Self | None:
        """Read the ``time_info`` object of a response; None where that is no object, or empty."""
        if not isinstance(info, dict) or not info:
            return None
        return cls(*(_seconds(info.get(f"{phase}_time")) for phase in cls._fields))


def _seconds(value: Any) -> float | None:
    """None for a value that is no duration: an infinite one would spoil their sum for good."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MAX_SECONDS else None


class Quota(NamedTuple):
    """The account's quota as far as a response reports it: ``limit`` and ``remaining`` by kind
    (``requests``, ``tokens``) and window (``minute``, ``hour``, ``day``). ``malformed`` counts the
    headers that could not be read."""

    limit: dict[tuple[str, str], float]
    remaining: dict[tuple[str, str], float]
    malformed: int


NO_QUOTA = Quota({}, {}, 0)


class Outcome(NamedTuple):
    """One way in which an exchange can end."""

    side: str  # one of SIDES: who has to act
    level: str  # of the exchange's log line
    failed: bool  # counts in errors_total
    degrades: bool  # counts as a failure of the service, not of its client
    meaning: str  # for the documentation


SIDES = {
    "ok": "nothing failed",
    "client": "the client, or what it sent",
    "limit": "a limit set in this proxy",
    "upstream": "the API, or the network between",
    "account": "the account at Cerebras: its key, its payment, its quota",
    "service": "this proxy",
}
"""Whose side an outcome is on, the label ``class`` of ``outcomes_total``: an alert on ``service``,
``upstream`` and ``account`` does not page for a stranger with a wrong key."""

# Side, level, failed, degrades.
_FINE, _REFUSED = ("ok", "info", False, False), ("client", "warning", True, False)
_LIMITED, _DRAINED = ("limit", "warning", True, False), ("service", "warning", True, False)
_OVERLOAD, _DEFECT = ("service", "warning", True, True), ("service", "error", True, True)
_REJECTED, _BROKEN = ("client", "error", True, False), ("upstream", "error", True, True)
_ACCOUNT = ("account", "error", True, True)

OUTCOMES = {
    "completed": Outcome(*_FINE, "relayed completely"),
    "client_disconnected": Outcome(*_FINE, "the client disconnected before the end"),
    "client_stalled": Outcome(*_REFUSED, "the client took no bytes for `CLIENT_WRITE_TIMEOUT`"),
    "refused": Outcome(
        *_REFUSED,
        "a request that is not served: malformed, too large, not complete in time, or with an "
        "unknown path or method",
    ),
    "unauthorized": Outcome(*_REFUSED, "no API key, or a wrong one"),
    "rate_limited": Outcome(
        *_LIMITED, "more requests per minute than `RATE_LIMIT_PER_MINUTE`, or than the key allows"
    ),
    "budget_exceeded": Outcome(
        *_LIMITED,
        "the key's budget of US dollars for the day is spent, or has no room for what the request "
        "may cost",
    ),
    "overloaded": Outcome(*_OVERLOAD, "no slot or upstream connection became free in time"),
    "draining": Outcome(*_DRAINED, "refused because the proxy is shutting down"),
    "shut_down": Outcome(*_DRAINED, "cut short by the end of the shutdown"),
    "upstream_rejected": Outcome(
        *_REJECTED, "the API responded with a 4xx, but no 401, 402, 403 or 429"
    ),
    "upstream_key_refused": Outcome(
        *_ACCOUNT, "the API refuses the account's key (401), or what it asks for (403)"
    ),
    "upstream_payment_required": Outcome(*_ACCOUNT, "the API wants the account paid for (402)"),
    "upstream_rate_limited": Outcome(*_ACCOUNT, "the API responded with a 429"),
    "upstream_failed": Outcome(*_BROKEN, "the API responded with a 5xx"),
    "upstream_stream_error": Outcome(*_BROKEN, "the API sent an error event inside its stream"),
    "upstream_unavailable": Outcome(*_BROKEN, "not sent: the circuit is open"),
    "upstream_connect_failed": Outcome(*_BROKEN, "connection refused, or the API's name not found"),
    "upstream_connect_timeout": Outcome(*_BROKEN, "no connection to the API in time"),
    "upstream_tls_failed": Outcome(*_BROKEN, "the TLS handshake with the API failed"),
    "upstream_invalid": Outcome(
        *_BROKEN, "the API's response is not valid, or quotes the account's key"
    ),
    "upstream_timeout": Outcome(*_BROKEN, "no response head from the API in time"),
    "upstream_stalled": Outcome(*_BROKEN, "the response paused for longer than allowed"),
    "upstream_truncated": Outcome(*_BROKEN, "the connection to the API ended in mid-response"),
    "exchange_timeout": Outcome(*_BROKEN, "took longer than `REQUEST_TIMEOUT`"),
    "internal_error": Outcome(*_DEFECT, "a defect of this proxy"),
}
"""What the API refuses the account (its key, its payment, its quota) fails for all agents, so it
counts as a failure of the service; any other 4xx is the fault of the request itself and does
not."""

ALERTED = {
    "upstream_truncated": 200,
    "upstream_stalled": 200,
    "upstream_key_refused": 502,
    "upstream_payment_required": 402,
    "budget_exceeded": 429,
    "overloaded": 503,
}
"""Outcomes whose first occurrence an alert must not miss, with the status that the client gets."""


CAUSES = {
    # Names, as getaddrinfo's errors are called.
    "EAI_NONAME": "the resolver does not know the name",
    "EAI_AGAIN": "no resolver responded",
    "EAI_FAIL": "the resolver failed",
    "EAI_OTHER": "another failure of the look-up",
    "lookup_timeout": "the look-up of the name took too long",
    # TCP, as the system's errors are called.
    "ECONNREFUSED": "nothing listens at the address",
    "ECONNRESET": "the peer reset the connection",
    "ENETUNREACH": "no route to the network",
    "EHOSTUNREACH": "no route to the host",
    "ETIMEDOUT": "the host did not respond",
    "EPERM": "the system, or a firewall on it, forbids the connection",
    "EADDRNOTAVAIL": "no local address or port is left",
    "EMFILE": "out of file descriptors, memory or threads",
    "E_OTHER": "another error of the system",
    "tcp_timeout": "connecting took too long",
    # The proxy on the way, UPSTREAM_PROXY.
    "proxy_refused": "the proxy on the way does not connect there",
    "proxy_auth": "the proxy on the way wants another user or password (407)",
    "proxy_unreachable": "the proxy on the way cannot reach the API",
    "proxy_invalid": "what is at the address of the proxy on the way is none",
    # TLS, as OpenSSL calls reasons, and what verifying found.
    "hostname_mismatch": "the certificate is another name's",
    "expired": "the certificate has expired",
    "not_yet_valid": "the certificate is not yet valid, or this machine's clock is wrong",
    "self_signed": "the certificate, or one above it, is signed by nobody who is trusted",
    "unknown_issuer": "the certificate's issuer is not among the trusted ones",
    "CERTIFICATE_VERIFY_FAILED": "the certificate is invalid in another way",
    "WRONG_VERSION_NUMBER": "no TLS is spoken at that port",
    "tls_alert": "the peer ended the handshake with an alert",
    "tls_closed": "the peer closed the connection in the handshake",
    "tls_timeout": "the handshake took too long",
    "tls_other": "another failure of the handshake",
    # The response.
    "closed": "the connection was closed",
    "head_cut": "the connection ended in the head of the response",
    "malformed_head": "the head of the response breaks a rule of HTTP, or is too large",
    "malformed_body": "the framing of the body breaks a rule of HTTP",
    "redirect": "a redirect, which is not followed",
    "too_large": "the response is larger than it may be",
    "unusable": "the response is HTTP, and not what was requested",
    "key_quoted": "the response quotes the account's key",
    "unreadable": "an error's body is compressed so that nobody can look for the key in it",
    "key_refused": "the API refuses the account's key",
    "silent": "nothing came in time",
}
"""Why a request failed on its way to the API: the words of ``cause``, each with its meaning. They
are ours, of a closed list; no text of a foreign exception is among them."""

_OUTCOME_OF_STATUS = {
    401: "upstream_key_refused",
    402: "upstream_payment_required",
    403: "upstream_key_refused",
    429: "upstream_rate_limited",
}


def outcome_of_status(status: int) -> str:
    """The outcome of an exchange that relayed a response of the API completely."""
    if status < 400:
        return "completed"
    outcome = "upstream_rejected" if status < 500 else "upstream_failed"
    return _OUTCOME_OF_STATUS.get(status, outcome)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """The record of one request: opened when its first byte arrived, closed exactly once."""

    # proxy
    started_at: float
    request: Request | None = None

    # telemetry/trace_context
    request_id: str = ""
    trace_id: str = ""
    traceparent: bytes = b""
    tracestate: bytes = b""
    intended_start_lag_seconds: float | None = None  # it began later than the client planned

    # proxy
    route: str = "none"  # the path's template, never the path
    client: str | None = None  # the name of the key presented
    received_at: float | None = None  # the request was complete
    request_timestamped: bool = False  # the kernel timestamped all of its bytes
    body: bytes = b""

    # downstream/connection
    status: int = 0  # sent to the client; 0 if none was

    # proxy
    client_blocked_seconds: float = 0.0

    # chat/completions
    model: str | None = None  # requested upstream; of a binary body the one in the response
    requested_model: str | None = None
    stream: bool | None = None
    reserved_tokens: int | None = None  # what the API reserves for it, as estimated
    reserved_cost: Decimal | None = None  # US dollars that it may cost; where there is a price

    # limits/fair_queue
    admission_wait_seconds: float | None = None  # in the queue, if there was a wait

    # upstream/client
    connection: str | None = None  # warm (made in advance), reused or new
    pool_wait_seconds: float | None = None  # for a connection, if there was a wait
    connect_seconds: float | None = None  # TCP, of a new connection
    tls_seconds: float | None = None  # TLS handshake, of a new connection
    sent_at: float | None = None
    head_at: float | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None  # the code in the body of an error
    upstream_address: str | None = None  # of the connection
    quota: Quota = NO_QUOTA  # the account's, as the response reports it
    response_timestamped: bool | None = None  # the kernel timestamped all of its bytes
    response_backlogged: bool = False  # more of it was unread than the kernel holds
    upstream_wait_seconds: float = 0.0  # for a connection, head, body or shared fetch

    # upstream/retry
    attempts: int | None = None  # started, where there was or was to be more than one
    retry_seconds: float | None = None  # from the first attempt to the last, or the wait for it
    retry_reasons: tuple[str, ...] = ()  # the reason for each retry
    retry_suppressed: str | None = None  # why a retry was not made for which there was a reason
    malformed_retry_after: int = 0

    # chat/meter
    first_token_at: float | None = None  # arrived
    first_token_sent_at: float | None = None  # written to the client
    first_output_at: float | None = None  # the same of the first token that is not reasoning
    first_output_sent_at: float | None = None
    last_token_at: float | None = None
    last_body_at: float | None = None  # the last bytes of the response arrived
    streamed: bool = False  # the response is a stream of events
    token_events: int = 0  # events that brought tokens
    token_reads: int = 0  # reads that brought such events
    gap_counts: list[int] = field(default_factory=list)  # gaps between those, by bucket
    has_reasoning: bool = False  # reasoning came before, or with, the first output
    done_seen: bool = False  # the stream's [DONE] was seen
    stream_failed: bool = False  # an error event inside a stream
    usage: Usage | None = None  # as the API reports it
    usage_events: int = 0  # of the events that brought tokens, those up to that report
    response_bytes: int = 0  # of a plain body
    time_info: TimeInfo | None = None
    response_model: str | None = None  # the model named in the response
    finish_reason: str | None = None  # of the last choice to end
    service_tier: str | None = None  # as the response names it

    # chat/completions
    estimated_usage: Usage | None = None  # where the API did the work and did not report all of it
    cost: Decimal | None = None  # of the usage that counts

    # proxy
    error: ProxyError | None = None
    finished_at: float = 0.0

    @property
    def is_chat(self) -> bool:
        return self.route == CHAT_ROUTE

    @property
    def method(self) -> str | None:
        return None if self.request is None else self.request.method

    @property
    def counted_usage(self) -> Usage | None:
        """The tokens that are counted and charged: as reported, else as estimated."""
        return self.estimated_usage or self.usage

    @property
    def aliased_model(self) -> str | None:
        """The model that the client requested, where an alias replaced it."""
        return self.requested_model if self.requested_model != self.model else None
