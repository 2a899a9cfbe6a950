"""What a passing response tells: first and last token, usage, ``time_info``, the end marker.

A meter is given every chunk after it has been sent on, so that looking never delays a byte and is
never part of what is measured; or as it arrives, where it is not sent on as it is. It writes its
findings into the exchange.

The first token is the first event whose ``delta`` has a non-empty ``content``, ``reasoning`` (or
``reasoning_content``) or a tool call; the event that only names the role is none. Few events of a
stream have to be parsed: those up to the first token, up to the first answer token where a model
reasons first, and those that mention usage, timings or an error. In the others a pattern finds
whether they carry a token; it cannot be fooled by text, in which every quote is escaped.

Parsing holds the event loop, so what is large is not parsed whole. Of a large event the beginning
is searched for tokens and the end is read, of a large plain answer the end: there the API puts
usage and timings.
"""

import json
import math
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import orjson

from ..telemetry.exchange import Exchange, TimeInfo, Usage
from .sse import EventReader

__all__ = (
    "Meter",
    "PlainMeter",
    "StreamMeter",
    "meter_for",
    "read_json",
    "read_time_info",
    "read_usage",
)

_END = b"[DONE]"
_ANSWER = rb'"(?:content|text)"\s*:\s*"[^"]|"tool_calls"\s*:\s*\[\s*\{'
_REASONING = rb'"(?:reasoning|reasoning_content)"\s*:\s*"[^"]'
_TOKEN = re.compile(_ANSWER + rb"|" + _REASONING)
_ANSWER_TOKEN, _REASONING_TOKEN = re.compile(_ANSWER), re.compile(_REASONING)
_ERROR_FIRST = re.compile(rb'\s*\{\s*"error"\s*:\s*[^n\s]')
_TOTAL = re.compile(rb'(?<!\\)"(?:usage|time_info|model)"\s*:')
_TOGETHER = 8  # events
_PARSED_AT_MOST = 64 * 1024  # bytes of an event
_PLAIN_AT_MOST = 256 * 1024  # bytes of a plain answer: one of 60,000 tokens of text
_END_BYTES = 16 * 1024  # usage, timings and what else stands at the end have less than 2
_TRIES = 8
_LENIENTLY_AT_MOST = 256 * 1024  # bytes; more of them would hold the event loop
_MAX_TOKENS = 2**40  # no model's context; what is beyond is nonsense, and no float or log holds it


class Meter(Protocol):
    """What a relay needs of a meter."""

    def may_hold(self, chunk: bytes) -> bool:
        """Whether the chunk that is next may be held back until there is nothing more to read;
        not if the moment when it is written can matter."""

    @property
    def can_take_event(self) -> bool:
        """Whether a final error event fits in here: the SDKs raise on one, and take a stream
        without the end marker for complete."""

    @property
    def complete(self) -> bool:
        """Whether what has passed is a whole answer, as far as its content can tell."""

    def feed(self, chunk: bytes, arrived_at: float, sent_at: float | None) -> None:
        """Look at a chunk that arrived, and was written to the client, at these moments;
        ``sent_at`` is None if it was not: the client left before, or gets it in another form."""

    def end(self) -> None:
        """The response has ended."""


def meter_for(
    exchange: Exchange, status: int, content_type: bytes, gap_bounds: Sequence[float] = ()
) -> Meter:
    """The meter that suits an answer. ``gap_bounds``: see ``StreamMeter``."""
    if status == 200 and content_type.lower().startswith(b"text/event-stream"):
        return StreamMeter(exchange, gap_bounds)
    return PlainMeter(exchange, readable=status == 200 and b"json" in content_type.lower())


class PlainMeter:
    """Reads a JSON reply once it is whole, or its end. One that is not readable is only timed."""

    can_take_event = False
    complete = True  # its length, or its last chunk, has said so

    def __init__(self, exchange: Exchange, *, readable: bool) -> None:
        self._exchange = exchange
        self._readable = readable
        self._chunks: deque[bytes] = deque()  # the last ones
        self._size = self._forgotten = 0

    def may_hold(self, chunk: bytes) -> bool:
        return True

    def feed(self, chunk: bytes, arrived_at: float, sent_at: float | None) -> None:
        self._exchange.last_body_at = arrived_at
        if not self._readable:
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - self._forgotten - len(self._chunks[0]) >= _PLAIN_AT_MOST:
            self._forgotten += len(self._chunks.popleft())

    def end(self) -> None:
        if self._readable:
            text = b"".join(self._chunks)
            whole = self._size <= _PLAIN_AT_MOST
            _read_totals(self._exchange, read_json(text) if whole else _read_end(text))
        self._chunks.clear()


class StreamMeter:
    """Reads a stream of events as they pass. What comes after the end marker is no part of the
    answer: the SDKs do not read it.

    The gaps between reads that brought tokens are counted by size: at most the first of
    ``gap_bounds`` (rising seconds), at most the second, …, more than the last.
    """

    def __init__(self, exchange: Exchange, gap_bounds: Sequence[float] = ()) -> None:
        exchange.gap_counts = [0] * (len(gap_bounds) + 1)
        self._exchange = exchange
        self._events = EventReader()
        self._gap_bounds = gap_bounds

    def may_hold(self, chunk: bytes) -> bool:
        if self._exchange.first_output_at is not None:
            return True
        if self._exchange.first_token_at is None or not self._events.at_boundary:
            return False
        return not _may_answer(chunk)

    @property
    def can_take_event(self) -> bool:
        exchange = self._exchange
        ended = exchange.stream_failed or exchange.done_seen
        return self._events.at_boundary and not ended

    @property
    def complete(self) -> bool:
        """An error event may end a stream without the marker; nothing else may."""
        return self._exchange.done_seen or self._exchange.stream_failed

    def feed(self, chunk: bytes, arrived_at: float, sent_at: float | None) -> None:
        exchange = self._exchange
        if exchange.done_seen:
            return
        exchange.last_body_at = arrived_at
        previous_at = exchange.last_token_at
        events = self._events.feed(chunk)
        for at in range(0, len(events), _TOGETHER):
            if exchange.done_seen:
                break
            several = events[at : at + _TOGETHER]
            if self._need_no_parsing(several):
                self._count([event for event in several if _TOKEN.search(event)], arrived_at)
            else:
                self._take_each(several, arrived_at, sent_at)
        if exchange.last_token_at != previous_at:
            self._note_read(previous_at, arrived_at)

    def _need_no_parsing(self, events: list[bytes]) -> bool:
        """Whether several events need no look at each: a hundred take two thirds of the time so."""
        if len(events) < _TOGETHER or self._exchange.first_output_at is None:
            return False
        text = b"\n".join(events)
        return not (_is_notable(text) or _END in text or len(text) > _PARSED_AT_MOST)

    def _take_each(self, events: list[bytes], arrived_at: float, sent_at: float | None) -> None:
        for event in events:
            if self._exchange.done_seen:
                break
            if event.startswith(_END):
                self._exchange.done_seen = True
            elif len(event) > _PARSED_AT_MOST:
                self._look_at_ends_of(event, arrived_at, sent_at)
            elif self._must_be_parsed(event):
                self._look_into(read_json(event), arrived_at, sent_at)
            elif _TOKEN.search(event):
                self._count([event], arrived_at)

    def _count(self, with_tokens: list[bytes], arrived_at: float) -> None:
        if with_tokens:
            self._exchange.last_token_at = arrived_at
            self._exchange.token_events += len(with_tokens)

    def _note_read(self, previous_at: float | None, arrived_at: float) -> None:
        self._exchange.token_reads += 1
        if previous_at is not None:
            self._exchange.gap_counts[bisect_left(self._gap_bounds, arrived_at - previous_at)] += 1

    def end(self) -> None:
        """Nothing is left to look at."""

    def _must_be_parsed(self, payload: bytes) -> bool:
        exchange = self._exchange
        if exchange.first_token_at is None:
            return True
        if exchange.first_output_at is None and _may_answer(payload):
            return True
        return _is_notable(payload)

    def _look_into(self, event: Any, arrived_at: float, sent_at: float | None) -> None:
        if not isinstance(event, dict):
            return
        exchange = self._exchange
        _read_totals(exchange, event)
        if event.get("error"):
            exchange.stream_failed = True
        self._note_tokens(*_tokens_in(event.get("choices")), arrived_at, sent_at)

    def _look_at_ends_of(self, event: bytes, arrived_at: float, sent_at: float | None) -> None:
        """The same for one that is too large to be parsed."""
        begin = event[:_PARSED_AT_MOST]
        _read_totals(self._exchange, _read_end(event))
        if _ERROR_FIRST.match(begin):
            self._exchange.stream_failed = True
        answers, reasons = _ANSWER_TOKEN.search(begin), _REASONING_TOKEN.search(begin)
        self._note_tokens(bool(answers), bool(reasons), arrived_at, sent_at)

    def _note_tokens(
        self, answers: bool, reasons: bool, arrived_at: float, sent_at: float | None
    ) -> None:
        """Note an event that carries tokens of the answer, or of reasoning, or none."""
        if not (answers or reasons):
            return
        exchange = self._exchange
        exchange.last_token_at = arrived_at
        exchange.token_events += 1
        if reasons and exchange.first_output_at is None:
            exchange.has_reasoning = True
        if exchange.first_token_at is None:
            exchange.first_token_at, exchange.first_token_sent_at = arrived_at, sent_at
        if answers and exchange.first_output_at is None:
            exchange.first_output_at, exchange.first_output_sent_at = arrived_at, sent_at


def _is_notable(text: bytes) -> bool:
    """Whether it may hold more than tokens."""
    return b'"usage"' in text or b'"error"' in text or b'"time_info"' in text


def _may_answer(text: bytes) -> bool:
    """Whether there may be a token in it that is not reasoning."""
    return b'"content"' in text or b'"tool_calls"' in text or b'"text"' in text


def _tokens_in(choices: Any) -> tuple[bool, bool]:
    """Whether an event's choices carry tokens of the answer, and of reasoning."""
    answers = reasons = False
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        calls = delta.get("tool_calls")
        answers = answers or _has_text(delta, "content") or _has_text(choice, "text")
        answers = answers or (isinstance(calls, list) and bool(calls))
        reasons = reasons or _has_text(delta, "reasoning") or _has_text(delta, "reasoning_content")
    return answers, reasons


def _has_text(part: dict[str, Any], name: str) -> bool:
    text = part.get(name)
    return isinstance(text, str) and text != ""


def _read_totals(exchange: Exchange, answer: Any) -> None:
    """Usage, timings and model, from wherever they stand; the last to come counts."""
    if isinstance(answer, dict):
        exchange.usage = read_usage(answer.get("usage")) or exchange.usage
        exchange.time_info = read_time_info(answer.get("time_info")) or exchange.time_info
        model = answer.get("model")
        if isinstance(model, str):
            exchange.response_model = model


def _read_end(text: bytes) -> Any:
    """What the last members of an object say, from ``_TOTAL`` on; None where there is none of them.

    From any name on, what follows is the rest of an object if that name is a member of it. If that
    is an inner one there is more behind it, and what there is from the name on is no JSON.
    """
    end, found = text[-_END_BYTES:], None
    for place in reversed([*_TOTAL.finditer(end)][-_TRIES:]):
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(b"{" + end[place.start() :])
    return found


def read_json(text: bytes) -> Any:
    """What an answer, or an event of one, says; None for what is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _read_leniently(text)


def _read_leniently(text: bytes) -> Any:
    """For an answer whose text holds half of a surrogate pair, as one cut between two tokens
    does, or bytes that are not UTF-8: its usage is no worse for that."""
    if len(text) > _LENIENTLY_AT_MOST:
        return None
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _count(parent: Any, name: str) -> int:
    value = parent.get(name) if isinstance(parent, dict) else None
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else 0


def read_usage(usage: Any) -> Usage | None:
    """The counts in a response's ``usage`` object; None where that is no object, or empty."""
    if not isinstance(usage, dict) or not usage:
        return None
    prompt = _count(usage, "prompt_tokens")
    completion = _count(usage, "completion_tokens")
    return Usage(
        prompt,
        completion,
        _count(usage, "total_tokens") or prompt + completion,
        _count(usage.get("prompt_tokens_details"), "cached_tokens"),
        _count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def read_time_info(info: Any) -> TimeInfo | None:
    """The phases in a response's ``time_info`` object; None where that is no object, or empty."""
    if not isinstance(info, dict) or not info:
        return None

    return TimeInfo(*(_seconds(info.get(f"{phase}_time")) for phase in TimeInfo._fields))


def _seconds(value: Any) -> float | None:
    """None for what is no duration: an infinite one would spoil a sum of them for good."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
