"""What is written down of one request while it is under way.

Each stage writes down what it alone knows; the comment at a field names the one module that writes
it. ``…_at`` are readings of the event loop's monotonic clock in seconds::

    first byte ─► received ─► sent ─► head ─► first token ··· last token ─► last byte
    started_at    received_at sent_at head_at first_token_at  last_token_at finished_at
"""

from dataclasses import dataclass, field
from decimal import Decimal

from .body import Body
from .errors import ProxyError
from .request import Headers, Request
from .usage import TimeInfo, Usage

__all__ = ("Record",)


@dataclass(slots=True, kw_only=True)
class Record:
    """See the module's docstring."""

    started_at: float  # proxy
    request: Request | None = None  # proxy
    request_id: str = ""  # identity
    trace_id: str = ""  # identity
    traceparent: bytes = b""  # identity
    route: str = "none"  # routes: the path's template, never the path
    client: str | None = None  # routes: the name of the key presented

    intended_start_lag_seconds: float | None = None  # identity: it began later than it was meant to
    received_at: float | None = None  # routes: the request was complete
    request_stamped: bool = False  # routes: the kernel said when all of it came
    body: Body = field(default_factory=Body)  # routes
    status: int = 0  # downstream: what the client was told; 0 if nothing
    client_blocked_seconds: float = 0.0  # proxy

    model: str | None = None  # relay: asked of upstream; for opaque bodies what the answer says
    requested_model: str | None = None  # relay
    stream: bool | None = None  # relay
    completion_limit: int | None = None  # relay: tokens of the answer at most, as upstream is told
    reserved_tokens: int | None = None  # relay: what the API sets aside for it, as estimated

    admission_wait_seconds: float | None = None  # queueing: for its turn, if there was a wait

    connection: str | None = None  # upstream: warm (made ahead), reused or new
    pool_wait_seconds: float | None = None  # upstream: for a connection, if there was a wait
    connect_seconds: float | None = None  # upstream: of a new connection
    tls_seconds: float | None = None  # upstream: the same
    sent_at: float | None = None  # upstream
    head_at: float | None = None  # upstream
    upstream_status: int | None = None  # upstream
    upstream_code: str | None = None  # upstream: the code in the body of an error
    upstream_headers: Headers = ()  # upstream: the x-ratelimit-* of the answer
    answer_stamped: bool | None = None  # upstream: the kernel said when all of it came
    answer_piled_up: bool = False  # upstream: more of it waited to be read than the kernel holds
    upstream_wait_seconds: float = 0.0  # upstream: for a connection, head, body, another's answer

    tries: int | None = None  # tries: begun, where there was, or was to be, more than one
    retry_seconds: float | None = None  # tries: from the first to the last, or the wait for it
    retry_reasons: tuple[str, ...] = ()  # tries: why each after the first was to be made
    retry_forgone: str | None = None  # tries: why one more was not, though there was a reason
    malformed_retry_after: int = 0  # tries

    first_token_at: float | None = None  # meter: arrived
    first_token_sent_at: float | None = None  # meter: written to the client
    first_answer_at: float | None = None  # meter: the same for the first that is not reasoning
    first_answer_sent_at: float | None = None  # meter
    last_token_at: float | None = None  # meter
    last_body_at: float | None = None  # meter: the last bytes of the answer arrived
    token_events: int = 0  # meter: events that brought tokens
    token_reads: int = 0  # meter: reads that brought such events
    gap_counts: list[int] = field(default_factory=list)  # meter: gaps between those, by bucket
    reasons: bool = False  # meter: reasoning came first, or with the first of the answer
    ended: bool = False  # meter: the stream's [DONE] was seen
    stream_failed: bool = False  # meter: an error event inside a stream
    usage: Usage | None = None  # meter
    time_info: TimeInfo | None = None  # meter
    answered_model: str | None = None  # meter: the model named in the answer

    cost: Decimal | None = None  # relay
    error: ProxyError | None = None  # proxy
    finished_at: float = 0.0  # proxy
    ended_wall_time: float | None = None  # settlement: seconds since the epoch, at its end
