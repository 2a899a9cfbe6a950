"""Finished exchanges: made to order, and at random."""

from collections.abc import Iterable
from decimal import Decimal
from math import prod
from typing import Any

from hypothesis import strategies as st

from ape_cerebras.config.prices import PriceTable
from ape_cerebras.errors import ClientGone, IdleTimeout, InternalError, Overloaded, Unauthorized
from ape_cerebras.http1.messages import Request
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo, Usage
from ape_cerebras.telemetry.timings import Timings

__all__ = (
    "CHAT",
    "RETRIED",
    "assembled_exchange",
    "chat_exchange",
    "ended_exchanges",
    "plain_exchange",
    "stream_exchange",
    "with_timings",
)

CHAT = "/v1/chat/completions"
_PRICES = PriceTable.built_in()
_REQUEST = Request("POST", b"/v1/chat/completions", b"1.1", ((b"host", b"a"),))
RETRIED: dict[str, Any] = {
    "request": Request("POST", b"/", b"1.1", ((b"x-stainless-retry-count", b"1"),)),
    "attempts": 2,
    "retry_seconds": 0.001,
    "retry_reasons": ("connect",),
    "retry_suppressed": "attempts",
    "malformed_retry_after": 1,
}
"""Fields of an exchange that the client had retried, and that was retried here."""
_MOMENTS = (
    *("started_at", "received_at", "sent_at", "head_at", "first_token_at", "first_token_sent_at"),
    *("first_output_at", "first_output_sent_at", "last_token_at", "last_body_at", "finished_at"),
)
_SENT = ("first_token_sent_at", "first_output_sent_at")
_TOKENS = (*_SENT, "first_token_at", "first_output_at", "last_token_at")
_ERRORS = (ClientGone, IdleTimeout, InternalError, Overloaded, Unauthorized)


def chat_exchange(**fields: Any) -> Exchange:
    """A chat exchange from 100.0 to 102.0 seconds on the clock, with status 200."""
    defaults: dict[str, Any] = {
        "started_at": 99.5,
        "request": _REQUEST,
        "request_id": "request-1",
        "trace_id": "trace-1",
        "span_id": "00f067aa0ba902b7",
        "traceparent": b"00-4bf92f3577b34da6a3ce929d0e0e4736-b7ad6b7169203331-01",
        "route": CHAT,
        "received_at": 100.0,
        "status": 200,
        "model": "gpt-oss-120b",
        "requested_model": "gpt-oss-120b",
        "stream": False,
        "connection": "reused",
        "sent_at": 100.001,
        "head_at": 100.1,
        "upstream_status": 200,
        "finished_at": 102.0,
    }
    return Exchange(**{**defaults, **fields})


def stream_exchange(**fields: Any) -> Exchange:
    """A stream of 5 tokens: the first at 100.2, the last at 100.6, one of reasoning before."""
    defaults: dict[str, Any] = {
        "stream": True,
        "first_token_at": 100.2,
        "first_token_sent_at": 100.203,
        "first_output_at": 100.3,
        "first_output_sent_at": 100.303,
        "last_token_at": 100.6,
        "token_events": 4,
        "token_reads": 2,
        "gap_counts": [0] * 9 + [1] + [0] * 6,
        "last_body_at": 100.7,
        "has_reasoning": True,
        "done_seen": True,
        "usage": Usage(10, 5, 15, 4, 1),
        "time_info": TimeInfo(0.05, 0.06, 0.4),
        "cost": Decimal("0.00000725"),
    }
    return chat_exchange(**{**defaults, **fields})


def plain_exchange(**fields: Any) -> Exchange:
    """A plain reply that arrived whole at 101.0; its tokens took 0.4 s."""
    defaults: dict[str, Any] = {
        "last_body_at": 101.0,
        "usage": Usage(10, 5, 15, 4, 1),
        "time_info": TimeInfo(0.05, 0.06, 0.4),
        "cost": Decimal("0.00000725"),
        "finished_at": 101.002,
    }
    return chat_exchange(**{**defaults, **fields})


def assembled_exchange(**fields: Any) -> Exchange:
    """A plain reply reassembled from that stream, and sent 2 ms after its end."""
    not_sent = dict.fromkeys(_SENT)
    return stream_exchange(**{**not_sent, "stream": False, "finished_at": 100.702, **fields})


def with_timings(exchange: Exchange) -> tuple[Exchange, Timings]:
    """The arguments of the observers of a finished exchange."""
    return exchange, Timings.of(exchange)


_counts = st.integers(0, 200_000)
_parts = st.integers(1, 200_000)
_steps = st.floats(0, 100, allow_nan=False)
_waits = st.floats(0, 1).map(lambda seconds: round(seconds, 6))
_WAITS = ("admission_wait_seconds", "pool_wait_seconds", "connect_seconds", "tls_seconds")
_IS = (False, True)
_OPTIONS: tuple[dict[Any, tuple[Any, ...]], ...] = (
    {
        "route": (CHAT, CHAT, "/v1/models", "/health", "none"),
        "status": (0, 200, 400, 429, 500, 502),
        "upstream_status": (None, 200, 400, 429, 500),
        "error": (*[None] * len(_ERRORS), *_ERRORS),
        "client": (None, "alice", "bob"),
        "model": ("gpt-oss-120b", "zai-glm-4.7", "unpriced", "own\u2028model", None),
        "connection": (None, "new", "reused", "warm"),
        "response_timestamped": (None, None, *_IS),
    },
    {
        **dict.fromkeys(("stream", "has_reasoning", "stream_failed"), _IS),
        **dict.fromkeys(("response_backlogged", "request_timestamped"), _IS),
        "without": (0, 1, 2),
        "has_time_info": _IS,
        **dict.fromkeys(range(3), _IS),
        **dict.fromkeys(_WAITS, _IS),
    },
    {
        **dict.fromkeys(("usage", "estimated_usage"), _IS),
        **dict.fromkeys(range(6), _IS),
    },
)
"""What is drawn by one number for each of these: a draw of its own for every field took twice as
long, and there are thousands of exchanges."""


def _chosen(draw: st.DrawFn, options: dict[Any, tuple[Any, ...]]) -> dict[Any, Any]:
    """One of the options of each."""
    number = draw(st.integers(0, prod(map(len, options.values())) - 1))
    chosen = {}
    for name, values in options.items():
        number, place = divmod(number, len(values))
        chosen[name] = values[place]
    return chosen


def _usage(draw: st.DrawFn, parts: Iterable[bool]) -> Usage:
    counts = [draw(_counts) for _ in range(5)]
    return Usage(*counts, *[draw(_parts) if given else None for given in parts])


def _cost(model: str | None, usage: Usage | None) -> Decimal | None:
    if model is None or usage is None:
        return None
    prompt, completion, _, cached, *_ = usage
    return _PRICES.cost(model, prompt, completion, cached)


@st.composite
def ended_exchanges(draw: st.DrawFn) -> Exchange:
    """Any exchange whose times are in the order of its events."""
    moments = [draw(st.floats(-1000, 1e6))]
    for _ in _MOMENTS[1:]:
        moments.append(moments[-1] + draw(_steps))
    fields: dict[str, Any] = dict(zip(_MOMENTS, moments, strict=True))
    first, second, third = (_chosen(draw, options) for options in _OPTIONS)
    usages = [
        _usage(draw, (third[number] for number in parts)) if third[name] else None
        for name, parts in (("usage", range(3)), ("estimated_usage", range(3, 6)))
    ]
    usage, estimated = usages
    model, error, stream = first["model"], first.pop("error"), second["stream"]
    # Of a plain reply that was reassembled no token was sent by itself.
    for name in (_TOKENS, _SENT, () if stream else _SENT)[second.pop("without")]:
        fields[name] = None
    has_time_info, has = second.pop("has_time_info"), [second.pop(number) for number in range(3)]
    phases = [draw(_steps) if has_time_info and each else None for each in has]
    waits = {name: draw(_waits) for name in _WAITS if second.pop(name)}
    return chat_exchange(
        **fields,
        **first,
        **second,
        **waits,
        error=error and error(),
        usage=usage,
        estimated_usage=estimated,
        time_info=TimeInfo(*phases) if has_time_info else None,
        cost=_cost(model, estimated or usage),
        client_blocked_seconds=draw(_steps),
        send_seconds=draw(_steps),
        arrival_seconds=draw(_steps),
        token_send_seconds=draw(_steps),
        upstream_wait_seconds=draw(_steps),
    )
