"""What a request's headers say of itself: its ids, and when it was meant to begin."""

import time

from ..downstream.connection import Downstream
from .exchange import Exchange
from .trace_context import intended_start_lag, request_id, trace_context

__all__ = ("identify",)


def identify(exchange: Exchange, downstream: Downstream) -> None:
    """Note that, and tell the client; new ids where the headers, or the request, say none."""

    def header(name: bytes) -> bytes | None:
        return exchange.request.header(name) if exchange.request else None

    exchange.trace_id, exchange.traceparent = trace_context(
        header(b"x-trace-id"), header(b"traceparent")
    )
    exchange.request_id = request_id(header(b"x-request-id"))
    started = time.time() - (downstream.stream.now() - exchange.started_at)
    exchange.intended_start_lag_seconds = intended_start_lag(
        header(b"x-request-timestamp"), started
    )
    downstream.common_headers = (
        (b"x-request-id", exchange.request_id.encode()),
        (b"x-trace-id", exchange.trace_id.encode()),
    )
