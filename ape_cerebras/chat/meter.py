"""Metering of a response as it passes: first and last token, usage, ``time_info``, the end marker.

A meter gets every chunk after it has been sent, so that looking never delays a byte and never is
part of a measured time; chunks of a reply that is reassembled it gets as they arrive. It writes its
findings into the exchange.

The first token is the first event whose ``delta`` has a non-empty ``content``, ``refusal``,
``reasoning`` (or ``reasoning_content``) or a tool call, be it text, an object with text or a list
of such parts; an event that only names the role has none. Few events of a stream have to be parsed:
those up to the first token, up to the first output token where a model reasons first, those with
usage, timings or an error, and those without a token. In the others a pattern finds whether they
carry a token (``sse``), or they differ from the one before in the text of a token only.

Parsing holds the event loop, so large content is not parsed whole: the meter searches the beginning
of a large event for tokens and reads its end, and reads the end of a large plain response, where
the API puts usage and timings.
"""

import json
import math
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import orjson

from ..http1.body import ContentDecoder
from ..net.event_loop import yield_shielded
from ..telemetry.exchange import Exchange, TimeInfo, Usage
from .sse import (
    END_MARKER,
    END_OF_BODY,
    ERROR_FIRST,
    OUTPUT_TOKEN,
    REASONING_TOKEN,
    TOKEN,
    EventReader,
    TokenEvents,
    finished_in,
    is_failure,
    is_notable,
    may_have_output,
    parts,
    tokens_in,
)

__all__ = (
    "Meter",
    "PlainMeter",
    "StreamMeter",
    "look_into",
    "meter_for",
    "read_json",
    "text_of",
)

_TOTAL = re.compile(rb'(?<!\\)"(?:usage|time_info|model)"\s*:')
_BATCH = 8  # events
_MAX_PARSED_EVENT = 64 * 1024  # bytes
_MAX_PARSED_REPLY = 256 * 1024  # bytes; a reply of 60,000 tokens of text
_END_BYTES = 16 * 1024  # usage, timings and all else at the end have less than 2
_MAX_TOTALS = 8  # names that are tried
_MAX_LENIENT = 256 * 1024  # bytes; more of them would hold the event loop

_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
_SERVICE_TIERS = ("auto", "default", "flex", "priority")


class PlainMeter:
    """Reads a JSON reply once it is whole, or its end. One that is not readable is only timed."""

    can_take_event = False
    complete = True  # the framing ends it

    def __init__(self, exchange: Exchange, *, readable: bool) -> None:
        self._exchange = exchange
        self._readable = readable
        self._chunks: deque[bytes] = deque()  # the last ones
        self._size = self._dropped = 0  # bytes

    def may_hold(self, chunk: bytes) -> bool:
        return True

    def feed(self, chunk: bytes, arrived_at: float, sent_at: float | None) -> None:
        self._exchange.last_body_at = arrived_at
        self._exchange.plain_bytes += len(chunk)
        if self._readable:
            self._chunks.append(chunk)
            self._size += len(chunk)
            while self._size - self._dropped - len(self._chunks[0]) >= _MAX_PARSED_REPLY:
                self._dropped += len(self._chunks.popleft())

    def end_of_body(self, sent_at: float | None, *, framed: bool) -> None:
        """Do nothing: the framing ends the reply."""

    def end(self) -> None:
        """Read what has come, also of a reply that was cut."""
        if self._readable:
            text = b"".join(self._chunks)
            whole = self._size <= _MAX_PARSED_REPLY
            _read_totals(self._exchange, read_json(text) if whole else _read_end(text))
        self._chunks.clear()


class StreamMeter:
    """Reads a stream of events as they pass. Bytes after the end marker do not count: the SDKs do
    not read them.

    The gaps between reads that brought tokens are counted by size: at most the first of
    ``gap_bounds`` (rising seconds), at most the second, …, more than the last. The end of the body
    ends the stream where so many ``choices`` have finished; None: only the end marker does.
    """

    def __init__(
        self, exchange: Exchange, gap_bounds: Sequence[float] = (), choices: int | None = 1
    ) -> None:
        exchange.streamed = True
        exchange.gap_counts = [0] * (len(gap_bounds) + 1)
        self._exchange = exchange
        self._events = EventReader()
        self._token_events = TokenEvents()
        self._gap_bounds = gap_bounds
        self._choices = math.inf if choices is None else choices
        self._finished: set[int] = set()  # choices that have had their finish_reason
        self._ended_finished = self._ended_inside = False

    def may_hold(self, chunk: bytes) -> bool:
        """Whether the next chunk may be held until upstream has nothing more to read: not if the
        moment when it is written can matter."""
        if self._exchange.first_output_at is not None:
            return True
        if self._exchange.first_token_at is None or not self._events.at_boundary:
            return False
        return not may_have_output(chunk)

    @property
    def can_take_event(self) -> bool:
        """Whether a final error event fits behind the bytes so far: the SDKs raise on one, and take
        a stream without the end marker for complete."""
        return self._events.at_boundary and not (self._ended_inside or self.complete)

    @property
    def complete(self) -> bool:
        """Whether the content has ended. Without the marker an error event may end it, and the end
        of the body once every choice has its ``finish_reason``: some servers send no marker."""
        exchange = self._exchange
        return exchange.done_seen or exchange.stream_failed or self._ended_finished

    def feed(self, chunk: bytes, arrived_at: float, sent_at: float | None) -> None:
        """Look at a chunk that arrived, and was written to the client, at these moments;
        ``sent_at`` is None if it was not: the client has gone, or gets it in another form."""
        exchange = self._exchange
        if exchange.done_seen:
            return
        exchange.last_body_at = arrived_at
        previous_at = exchange.last_token_at
        tokens = self._token_events.count_in(chunk) if self._events.at_boundary else 0
        if tokens:
            exchange.last_token_at = arrived_at
            exchange.token_events += tokens
        else:
            self._take_events(self._events.feed(chunk), arrived_at, sent_at)
        if exchange.last_token_at != previous_at:
            exchange.token_reads += 1
            if previous_at is not None:
                gap = arrived_at - previous_at
                exchange.gap_counts[bisect_left(self._gap_bounds, gap)] += 1
                if gap > exchange.longest_gap:
                    exchange.longest_gap = gap

    def end_of_body(self, sent_at: float | None, *, framed: bool) -> None:
        """Note the end of the body, whose last chunk was written to the client at ``sent_at``.
        ``framed``: whether its framing announced it; else it may be a cut."""
        self._ended_inside = not self._events.at_boundary
        if self._ended_inside and (arrived_at := self._exchange.last_body_at) is not None:
            self.feed(END_OF_BODY, arrived_at, sent_at)
        self._ended_finished = framed and len(self._finished) >= self._choices

    def end(self) -> None:
        """Do nothing more: all events have been looked at."""

    def _take_events(self, events: list[bytes], arrived_at: float, sent_at: float | None) -> None:
        if len(events) < _BATCH:
            self._take(events, arrived_at, sent_at)
        else:
            self._take_batches(events, arrived_at, sent_at)
        if events and self._token_events.learns:
            last = events[-1]
            if TOKEN.search(last) and not self._may_hold_more(last):
                self._token_events.learn(last)

    def _may_hold_more(self, event: bytes) -> bool:
        """Whether an event may hold more than a token that only has to be counted."""
        exchange = self._exchange
        return (
            exchange.first_token_at is None
            or (exchange.first_output_at is None and may_have_output(event))
            or is_notable(event)
        )

    def _take_batches(self, events: list[bytes], arrived_at: float, sent_at: float | None) -> None:
        """Take events that mostly are only tokens: together a hundred take two thirds of the time
        that they take one by one."""
        for at in range(0, len(events), _BATCH):
            batch = events[at : at + _BATCH]
            # Until the output has begun, each event may hold a first token.
            if len(batch) < _BATCH or self._exchange.first_output_at is None:
                self._take(batch, arrived_at, sent_at)
            else:
                self._take_batch(batch, arrived_at, sent_at)
            if self._exchange.done_seen:
                break

    def _take_batch(self, events: list[bytes], arrived_at: float, sent_at: float | None) -> None:
        if self._token_events.are_all(events) or self._are_tokens(events):
            self._exchange.last_token_at = arrived_at
            self._exchange.token_events += len(events)
        else:
            self._take(events, arrived_at, sent_at)

    def _are_tokens(self, events: list[bytes]) -> bool:
        """Whether each of these is a token and nothing else, so that others like it are known."""
        text = b"\n".join(events)
        plain = not (is_notable(text) or text.find(END_MARKER) >= 0)
        plain = plain and len(text) <= _MAX_PARSED_EVENT
        if not plain or len([event for event in events if TOKEN.search(event)]) < len(events):
            return False
        if self._token_events.learns:
            self._token_events.learn(events[-1])
        return True

    def _take(self, events: list[bytes], arrived_at: float, sent_at: float | None) -> None:
        exchange = self._exchange
        for event in events:
            if exchange.done_seen:
                break
            if event.startswith(END_MARKER):
                exchange.done_seen = True
            elif len(event) > _MAX_PARSED_EVENT:
                self._look_at_ends(event, arrived_at, sent_at)
            elif self._may_hold_more(event):
                self._look_into(read_json(event), arrived_at, sent_at)
            elif TOKEN.search(event):
                exchange.last_token_at = arrived_at
                exchange.token_events += 1
            else:
                self._look_into(read_json(event), arrived_at, sent_at)

    def _look_into(self, event: Any, arrived_at: float, sent_at: float | None) -> None:
        if isinstance(event, dict):
            choices = event.get("choices")
            self._note_tokens(*tokens_in(choices), arrived_at, sent_at)
            _read_totals(self._exchange, event)
            if is_failure(event):
                self._exchange.stream_failed = True
            self._finished |= finished_in(choices)

    def _look_at_ends(self, event: bytes, arrived_at: float, sent_at: float | None) -> None:
        """The same for an event that is too large to be parsed."""
        begin = event[:_MAX_PARSED_EVENT]
        output, reasoning = OUTPUT_TOKEN.search(begin), REASONING_TOKEN.search(begin)
        self._note_tokens(bool(output), bool(reasoning), arrived_at, sent_at)
        _read_totals(self._exchange, _read_end(event))
        if ERROR_FIRST.match(begin):
            self._exchange.stream_failed = True

    def _note_tokens(
        self, output: bool, reasoning: bool, arrived_at: float, sent_at: float | None
    ) -> None:
        """Note an event that carries tokens of the output, or of reasoning, or none."""
        if not (output or reasoning):
            return
        exchange = self._exchange
        exchange.last_token_at = arrived_at
        exchange.token_events += 1
        if reasoning and exchange.first_output_at is None:
            exchange.has_reasoning = True
        if exchange.first_token_at is None:
            exchange.first_token_at, exchange.first_token_sent_at = arrived_at, sent_at
        if output and exchange.first_output_at is None:
            exchange.first_output_at, exchange.first_output_sent_at = arrived_at, sent_at


Meter = PlainMeter | StreamMeter


def meter_for(
    exchange: Exchange,
    status: int,
    content_type: bytes,
    gap_bounds: Sequence[float] = (),
    choices: int | None = 1,
) -> Meter:
    """Return the meter that suits a response. ``gap_bounds``, ``choices``: see ``StreamMeter``."""
    if status == 200 and content_type.lower().startswith(b"text/event-stream"):
        return StreamMeter(exchange, gap_bounds, choices)
    return PlainMeter(exchange, readable=status == 200 and b"json" in content_type.lower())


def text_of(chunk: bytes, decoder: ContentDecoder | None, exchange: Exchange) -> bytes:
    """What is to be looked into of a chunk; count what cannot be decoded."""
    if decoder is None:
        return chunk
    exchange.unread_bytes += decoder.blind * len(chunk)
    return decoder.latest


async def look_into(chunk: bytes, meter: Meter, arrived_at: float, sent_at: float | None) -> None:
    """Meter a chunk in parts, between which the event loop goes on."""
    for part in parts(chunk):
        meter.feed(part, arrived_at, sent_at)
        if len(part) < len(chunk):
            await yield_shielded()


def _read_totals(exchange: Exchange, response: Any) -> None:
    """Read usage, timings and model, from wherever they stand; the last to come counts."""
    if isinstance(response, dict):
        usage = Usage.read(response.get("usage"))
        if usage is not None:
            exchange.usage, exchange.usage_events = usage, exchange.token_events
        else:
            prompt, completion = Usage.read_half(response.get("usage"))
            exchange.half_prompt_tokens = prompt or exchange.half_prompt_tokens
            exchange.half_completion_tokens = completion or exchange.half_completion_tokens
        exchange.time_info = TimeInfo.read(response.get("time_info")) or exchange.time_info
        model = response.get("model")
        if isinstance(model, str):
            exchange.response_model = model
        _read_end_reason(exchange, response)


def _read_end_reason(exchange: Exchange, response: dict[str, Any]) -> None:
    """Read why the completion ended, and its service tier, as words of closed lists."""
    choices, tier = response.get("choices"), response.get("service_tier")
    for choice in choices if isinstance(choices, list) else ():
        reason = choice.get("finish_reason") if isinstance(choice, dict) else None
        if reason and isinstance(reason, str):
            exchange.finish_reason = reason if reason in _FINISH_REASONS else "other"
    if tier and isinstance(tier, str):
        exchange.service_tier = tier if tier in _SERVICE_TIERS else "other"


def _read_end(text: bytes) -> Any:
    """Return the last members of an object, from ``_TOTAL`` on; None where there is none of them.

    From any name on, the text is the rest of an object if that name is a member of it. If that is
    an inner one, there is more behind it, and the text from the name on is no JSON.
    """
    end, found = text[-_END_BYTES:], None
    for place in reversed([*_TOTAL.finditer(end)][-_MAX_TOTALS:]):
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(b"{" + end[place.start() :])
    return found


def read_json(text: bytes) -> Any:
    """Parse a response or an event; None where it is no JSON.

    Half of a surrogate pair, as in a text that is cut between two tokens, and bytes that are not
    UTF-8 are read leniently: the usage beside them is no worse for that.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        if len(text) > _MAX_LENIENT:
            return None
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
