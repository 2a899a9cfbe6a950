"""The mutable record of one exchange (a request and its response).

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
from ..http1.messages import Headers, Request

__all__ = (
    "CHAT_ROUTE",
    "NO_QUOTA",
    "Exchange",
    "Quota",
    "TimeInfo",
    "Usage",
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
        total = total or prompt + completion
        if not (of_prompt or made):
            return cls(prompt, completion, total)
        return cls(
            prompt,
            completion,
            total,
            _count(of_prompt, "cached_tokens") or 0,
            _count(made, "reasoning_tokens") or 0,
            _count(made, "accepted_prediction_tokens") or None,
            _count(made, "rejected_prediction_tokens") or None,
            _count(of_prompt, "image_tokens") or None,
        )

    @staticmethod
    def read_half(usage: Any) -> tuple[int | None, int | None]:
        """The tokens of prompt and completion of a ``usage`` object that ``read`` cannot use; None
        or 0 for what it does not tell."""
        prompt = _count(usage, "prompt_tokens", "input_tokens")
        return prompt, _count(usage, "completion_tokens", "output_tokens")


def _count(parent: Any, *names: str) -> int | None:
    """The largest whole number among these members, also as a float or as text; else None."""
    largest = None
    for name in names if isinstance(parent, dict) else ():
        value = parent.get(name)
        if value is not None and type(value) is not int:
            value = _whole(value)
        if value is not None and (largest or 0) <= value <= _MAX_TOKENS:
            largest = value
    return largest


def _whole(value: Any) -> int | None:
    """A whole number that is written as a float or as text; else None."""
    if isinstance(value, str) and _COUNT.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


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
        return cls(
            _seconds(info.get("queue_time")),
            _seconds(info.get("prompt_time")),
            _seconds(info.get("completion_time")),
        )


def _seconds(value: Any) -> float | None:
    """None for a value that is no duration: an infinite one would spoil their sum for good."""
    if type(value) not in (float, int):
        return None
    return float(value) if 0 <= value <= _MAX_SECONDS else None


class Quota(NamedTuple):
    """The account's quota as far as a response reports it: ``limit`` and ``remaining`` by kind
    (``requests``, ``tokens``) and window (``minute``, ``hour``, ``day``). ``malformed`` counts the
    headers that could not be read, ``unknown`` those with names that are not known."""

    limit: dict[tuple[str, str], float]
    remaining: dict[tuple[str, str], float]
    malformed: int
    unknown: int = 0


NO_QUOTA = Quota({}, {}, 0)


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Exchange:
    """The record of one request: opened when its first byte arrived, closed exactly once.

    It is like no other, and nobody prints it: methods over 74 fields for that would take half of
    the time that the class takes to be made, at each start.
    """

    # proxy
    started_at: float
    address: str | None = None  # of the client's connection, where that is known
    request: Request | None = None

    # telemetry/trace_context
    request_id: str = ""
    trace_id: str = ""
    span_id: str = ""  # of the exchange; that of the request upstream is in ``traceparent``
    parent_span_id: str | None = None  # the client's
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
    response_bytes: int | None = None  # of the body, handed to the client's connection

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
    send_seconds: float = 0.0  # that writing the request took; it left in between
    head_at: float | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None  # the code in the body of an error
    upstream_address: str | None = None  # of the connection
    quota: Quota = NO_QUOTA  # the account's, as the response reports it
    upstream_headers: Headers = ()  # of the response, once it holds no key
    arrival_seconds: float = 0.0  # by which head or first token may have arrived earlier
    response_timestamped: bool | None = None  # the kernel timestamped all of its bytes
    response_backlogged: bool = False  # more of it was unread than the kernel holds
    upstream_wait_seconds: float = 0.0  # for a connection, head, body or shared fetch

    # upstream/retry
    attempts: int | None = None  # started, where there was or was to be more than one
    retry_seconds: float | None = None  # from the first attempt to the last, or the wait for it
    retry_reasons: tuple[str, ...] = ()  # the reason for each retry
    retry_suppressed: str | None = None  # why a retry was not made for which there was a reason
    request_lost: bool = False  # sent whole on a connection that ended; the API may have read it
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
    longest_gap: float = 0.0  # seconds, of those gaps
    has_reasoning: bool = False  # reasoning came before, or with, the first output
    done_seen: bool = False  # the stream's [DONE] was seen
    stream_failed: bool = False  # an error event inside a stream
    usage: Usage | None = None  # as the API reports it
    half_prompt_tokens: int | None = None  # where only these, or only those, are reported
    half_completion_tokens: int | None = None
    usage_events: int = 0  # of the events that brought tokens, those up to that report
    plain_bytes: int = 0  # of a plain body
    time_info: TimeInfo | None = None
    response_model: str | None = None  # the model named in the response
    finish_reason: str | None = None  # of the last choice to end
    service_tier: str | None = None  # as the response names it
    unread_bytes: int = 0  # of a body that nobody could decode, as they came

    # chat/completions
    token_send_seconds: float = 0.0  # that writing took, to the client, with a first token in it
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
    def request_bytes(self) -> int | None:
        """The size of the body, as the client sent it; None where none came, or not all of it."""
        return len(self.body) or None

    @property
    def was_sent(self) -> bool:
        """Whether the API may have got the request: from the last attempt, or from one before."""
        return self.sent_at is not None or self.request_lost

    @property
    def counted_usage(self) -> Usage | None:
        """The tokens that are counted and charged: as reported, else as estimated."""
        return self.estimated_usage or self.usage

    @property
    def aliased_model(self) -> str | None:
        """The model that the client requested, where an alias replaced it."""
        return self.requested_model if self.requested_model != self.model else None
