"""Every value derived from an exchange that has ended, computed once.

Nothing is derived anywhere else, so a log line and a metric cannot disagree. Durations are seconds,
rounded to the microsecond; a value that does not apply is None.
"""

from typing import NamedTuple

from ..net.timestamps import CERTAIN_SECONDS
from .exchange import Exchange, Usage
from .outcomes import OUTCOME_OF_STATUS, OUTCOMES, Outcome

__all__ = ("Timings", "outcome_of_status")


class Timings(NamedTuple):
    """The derived values of one exchange; immutable. ``LOG_FIELDS`` gives the meaning of each.

    They stand in the order in which ``of`` derives them, group by group.
    """

    # _ending_of
    outcome: str
    traits: Outcome
    is_chat: bool
    error_code: str | None
    cause: str | None  # of a failure on the way upstream
    failed_at: str | None  # the address of that
    # _sources_of
    usage: Usage | None  # the tokens that count: as estimated, else as reported
    usage_source: str | None  # of these: "upstream" or "estimated"
    timestamp_source: str | None  # "kernel" only where that is so of every arrival on both sides
    # _ttft_of
    ttft_source: str | None  # "measured" where a token was seen to arrive and to go on
    ttft_seconds: float | None
    upstream_ttft_seconds: float | None
    # _proxy_parts_of
    proxy_ttft_seconds: float | None  # the difference of the two, so that they always add up
    wait_seconds: float | None
    proxy_own_seconds: float | None
    # one by one
    ttfb_seconds: float | None
    ttfo_seconds: float | None  # only of models that reason
    uncertainty_seconds: float | None  # by which the times above may be off; only where it matters
    # _totals_of
    total_time_seconds: float  # from the first byte, if the request never was complete
    overhead_seconds: float | None  # None if it never was: most of that is waiting for the client
    client_blocked_seconds: float | None
    # _generation_of
    generation_seconds: float | None  # None where a slow client may have made upstream wait
    max_chunk_gap_seconds: float | None  # likewise
    # _speed_of
    speed_source: str | None  # of the next two; "derived" from ``completion_time``
    tpot_seconds: float | None  # of several choices, the tokens of all of them count
    tokens_per_second: float | None
    # _grouping_of
    tokens_per_event: float | None  # so time between events is not time per token
    events_per_read: float | None  # more where the network coalesces, or the loop is busy
    # _upstream_parts_of
    queue_seconds: float | None
    prompt_seconds: float | None
    completion_seconds: float | None
    network_seconds: float | None

    @classmethod
    def of(cls, exchange: Exchange) -> "Timings":
        """Derive all values of an exchange that has ended.

        ``_make`` takes them by place, for a fifth of the instructions that 32 keywords take.
        """
        ttft_source, ttft, upstream_ttft = _ttft_of(exchange)
        generation, longest_gap = _generation_of(exchange)
        return cls._make(
            (
                *_ending_of(exchange),
                *_sources_of(exchange),
                *(ttft_source, ttft, upstream_ttft),
                *_proxy_parts_of(exchange, _span(upstream_ttft, ttft)),
                _span(exchange.sent_at, exchange.head_at),
                _ttfo_of(exchange),
                _uncertainty_of(exchange),
                *_totals_of(exchange),
                *(generation, longest_gap),
                *_speed_of(exchange, generation, ttft_source),
                *_grouping_of(exchange),
                *_upstream_parts_of(exchange, upstream_ttft),
            )
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _span(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 6)


def _ending_of(
    exchange: Exchange,
) -> tuple[str, Outcome, bool, str | None, str | None, str | None]:
    """Outcome, error code, and the cause of a failure on the way upstream. An error event ends a
    response, whatever comes after it: the SDKs disconnect on reading one."""
    outcome, error, is_chat = "completed", exchange.error, exchange.is_chat
    if exchange.stream_failed:
        outcome, error = "upstream_stream_error", None
    elif error is not None:
        outcome = error.outcome
    elif is_chat and exchange.upstream_status is not None:
        outcome = outcome_of_status(exchange.upstream_status)
    traits = OUTCOMES[outcome]
    if error is None:
        return outcome, traits, is_chat, outcome if traits.failed else None, None, None
    address = error.address or exchange.upstream_address
    return outcome, traits, is_chat, error.code, error.cause, address if error.cause else None


def outcome_of_status(status: int) -> str:
    """The outcome of an exchange that relayed a response of the API completely."""
    if status < 400:
        return "completed"
    outcome = "upstream_rejected" if status < 500 else "upstream_failed"
    return OUTCOME_OF_STATUS.get(status, outcome)


def _sources_of(exchange: Exchange) -> tuple[Usage | None, str | None, str | None]:
    """The tokens that count, their source, and that of timestamps."""
    usage = timestamps = None
    if exchange.estimated_usage is not None:
        usage = "estimated"
    elif exchange.usage is not None:
        usage = "upstream"
    if exchange.received_at is not None:
        by_kernel = exchange.request_timestamped and exchange.response_timestamped is not False
        timestamps = "kernel" if by_kernel else "read"
    return exchange.estimated_usage or exchange.usage, usage, timestamps


def _ttft_of(exchange: Exchange) -> tuple[str | None, float | None, float | None]:
    """Source, TTFT and upstream TTFT; all None where the client never had a token."""
    source, arrived_at = "measured", exchange.first_token_at
    passed_at = exchange.first_token_sent_at
    if passed_at is None:
        passed_at = _passed_at(exchange, arrived_at)
    if passed_at is None:
        source, arrived_at = "derived", _derived_first_token_at(exchange)
        passed_at = _passed_at(exchange, arrived_at)
    if passed_at is None:
        return None, None, None
    return source, _span(exchange.received_at, passed_at), _span(exchange.sent_at, arrived_at)


def _passed_at(exchange: Exchange, arrived_at: float | None) -> float | None:
    """The moment at which the client of a plain response would have had a token of it: passing the
    token on would have taken as long as passing on the response did."""
    if exchange.stream or exchange.error is not None or exchange.stream_failed:
        return None
    if arrived_at is None or exchange.last_body_at is None:
        return None
    return arrived_at + exchange.finished_at - exchange.last_body_at


def _derived_first_token_at(exchange: Exchange) -> float | None:
    """The API made the tokens of a plain response in the ``completion_time`` before it sent that.
    None where the time is unknown, or cannot be true."""
    if exchange.first_token_at is not None or exchange.last_body_at is None:
        return None
    if exchange.time_info is None or exchange.time_info.completion is None:
        return None
    if exchange.usage is not None and not exchange.usage.completion_tokens:
        return None  # there was no token
    derived = exchange.last_body_at - exchange.time_info.completion
    return derived if exchange.sent_at is not None and derived >= exchange.sent_at else None


def _ttfo_of(exchange: Exchange) -> float | None:
    if not exchange.has_reasoning:
        return None
    passed_at = exchange.first_output_sent_at
    if passed_at is None:
        passed_at = _passed_at(exchange, exchange.first_output_at)
    return _span(exchange.received_at, passed_at)


def _uncertainty_of(exchange: Exchange) -> float | None:
    """Seconds by which TTFTs and TTFB may be off, because this process was preempted: while it
    wrote the request or the first token, or before it read that. The sum, because a difference of
    two moments is off by both."""
    parts = (exchange.send_seconds, exchange.arrival_seconds, exchange.token_send_seconds)
    if max(parts) <= CERTAIN_SECONDS:
        return None
    return round(sum(seconds for seconds in parts if seconds > CERTAIN_SECONDS), 6)


def _generation_of(exchange: Exchange) -> tuple[float | None, float | None]:
    """Generation time, and the longest gap between reads in it."""
    if exchange.client_blocked_seconds and exchange.response_backlogged:
        return None, None
    seconds = _span(exchange.first_token_at, exchange.last_token_at)
    return seconds, _rounded(exchange.longest_gap or None)


def _speed_of(
    exchange: Exchange, generation: float | None, ttft_source: str | None
) -> tuple[str | None, float | None, float | None]:
    """Source, time per output token, tokens per second. Where the first token's time is derived
    from Cerebras's own ``completion_time``, that is also the time of the generation."""
    source, seconds = "measured", generation
    if exchange.time_info is not None and ttft_source == "derived":
        source, seconds = "derived", _rounded(exchange.time_info.completion)
    tokens = _reported_tokens(exchange) if seconds else 0
    if not seconds or not tokens:
        return None, None, None
    tpot = round(seconds / (tokens - 1), 6) if tokens > 1 else None
    return source, tpot, round(tokens / seconds, 3)


def _proxy_parts_of(
    exchange: Exchange, proxy_ttft: float | None
) -> tuple[float | None, float | None, float | None]:
    """The proxy's TTFT, time of waiting, and the proxy's own part of that TTFT."""
    admission, connection = exchange.admission_wait_seconds, exchange.pool_wait_seconds
    if admission is None and connection is None:
        wait = None
    else:
        wait = round((admission or 0.0) + (connection or 0.0), 6)
    if proxy_ttft is None:
        return None, wait, None
    parts = (exchange.retry_seconds, wait, exchange.connect_seconds, exchange.tls_seconds)
    if not any(parts):
        return proxy_ttft, wait, proxy_ttft
    return proxy_ttft, wait, round(proxy_ttft - sum(part or 0.0 for part in parts), 6)


def _totals_of(exchange: Exchange) -> tuple[float, float | None, float | None]:
    """Total time, overhead, and the time that a slow client took of a stream."""
    blocked = exchange.client_blocked_seconds
    blocked_stream = round(blocked, 6) if exchange.stream else None
    if exchange.received_at is None:
        total = round(exchange.finished_at - exchange.started_at, 6)
        return total, None, blocked_stream
    total = round(exchange.finished_at - exchange.received_at, 6)
    waited = exchange.upstream_wait_seconds + blocked + (exchange.admission_wait_seconds or 0.0)
    return total, round(max(0.0, total - waited), 6), blocked_stream


def _grouping_of(exchange: Exchange) -> tuple[float | None, float | None]:
    """Tokens per event and events per read."""
    events, reads = exchange.token_events, exchange.token_reads
    if not events or not reads:
        return None, None
    tokens = _reported_tokens(exchange)
    return round(tokens / events, 3) if tokens else None, round(events / reads, 3)


def _reported_tokens(exchange: Exchange) -> int:
    """Completion tokens; 0 where they are estimated: a speed made of those would be no measure."""
    if exchange.usage is None or exchange.estimated_usage is not None:
        return 0
    return exchange.usage.completion_tokens


def _upstream_parts_of(
    exchange: Exchange, upstream_ttft: float | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """Cerebras's times of queue, prompt and completion, and what of upstream TTFT is left for the
    network."""
    if exchange.time_info is None:
        return None, None, None, None
    queue, prompt, completion = map(_rounded, exchange.time_info)
    if upstream_ttft is None or queue is None or prompt is None:
        return queue, prompt, completion, None
    rest = round(upstream_ttft - queue - prompt, 6)
    return queue, prompt, completion, rest if rest >= 0 else None
