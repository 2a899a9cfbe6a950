"""What is written down of one request while it is under way.

Each stage writes down what it alone knows; the comment above a group of fields names the one module
that writes them. ``…_at`` are readings of the event loop's monotonic clock in seconds::

    first byte ─► received ─► sent ─► head ─► first token ··· last token ─► last byte
    started_at    received_at sent_at head_at first_token_at  last_token_at finished_at
"""

from dataclasses import dataclass, field
from decimal import Decimal

from ..config.prices import TimeInfo, Usage
from ..errors import ProxyError
from ..http1.body_parts import Body
from ..http1.messages import Headers, Request

__all__ = ("Record",)


@dataclass(slots=True, kw_only=True)
class Record:
    """See the module's docstring."""

    # proxy
    started_at: float
    request: Request | None = None

    # telemetry/identity
    request_id: str = ""
    trace_id: str = ""
    traceparent: bytes = b""

    # routes
    route: str = "none"  # the path's template, never the path
    client: str | None = None  # the name of the key presented

    # telemetry/identity
    intended_start_lag_seconds: float | None = None  # it began later than it was meant to

    # routes
    received_at: float | None = None  # the request was complete
    request_timestamped: bool = False  # the kernel said when all of it came
    body: Body = field(default_factory=Body)

    # downstream/connection
    status: int = 0  # what the client was told; 0 if nothing

    # proxy
    client_blocked_seconds: float = 0.0

    # chat/completions
    model: str | None = None  # asked of upstream; for opaque bodies what the answer says
    requested_model: str | None = None
    stream: bool | None = None
    completion_limit: int | None = None  # tokens of the answer at most, as upstream is told
    reserved_tokens: int | None = None  # what the API sets aside for it, as estimated

    # limits/queueing
    admission_wait_seconds: float | None = None  # for its turn, if there was a wait

    # upstream/client
    connection: str | None = None  # warm (made ahead), reused or new
    pool_wait_seconds: float | None = None  # for a connection, if there was a wait
    connect_seconds: float | None = None  # of a new connection
    tls_seconds: float | None = None  # the same
    sent_at: float | None = None
    head_at: float | None = None
    upstream_status: int | None = None
    upstream_code: str | None = None  # the code in the body of an error
    upstream_headers: Headers = ()  # the x-ratelimit-* of the answer
    response_timestamped: bool | None = None  # the kernel said when all of it came
    response_backlogged: bool = False  # more of it waited to be read than the kernel holds
    upstream_wait_seconds: float = 0.0  # for a connection, head, body, another's answer

    # upstream/tries
    attempts: int | None = None  # begun, where there was, or was to be, more than one
    retry_seconds: float | None = None  # from the first to the last, or the wait for it
    retry_reasons: tuple[str, ...] = ()  # why each after the first was to be made
    retry_suppressed: str | None = None  # why one more was not, though there was a reason
    malformed_retry_after: int = 0

    # chat/meter
    first_token_at: float | None = None  # arrived
    first_token_sent_at: float | None = None  # written to the client
    first_output_at: float | None = None  # the same for the first that is not reasoning
    first_output_sent_at: float | None = None
    last_token_at: float | None = None
    last_body_at: float | None = None  # the last bytes of the answer arrived
    token_events: int = 0  # events that brought tokens
    token_reads: int = 0  # reads that brought such events
    gap_counts: list[int] = field(default_factory=list)  # gaps between those, by bucket
    has_reasoning: bool = False  # reasoning came first, or with the first of the answer
    done_seen: bool = False  # the stream's [DONE] was seen
    stream_failed: bool = False  # an error event inside a stream
    usage: Usage | None = None
    time_info: TimeInfo | None = None
    response_model: str | None = None  # the model named in the answer

    # chat/completions
    cost: Decimal | None = None

    # proxy
    error: ProxyError | None = None
    finished_at: float = 0.0

    # telemetry/settlement
    ended_wall_time: float | None = None  # seconds since the epoch, at its end
