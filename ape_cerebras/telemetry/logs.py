"""JSON log lines, one for an exchange or an event, and the writer that never blocks the loop.

A line is made from an allow-list of values, none of which can hold a header, a body or a foreign
exception's text, so there is nothing to redact. What came from outside (a method, a model's name)
is reduced to ASCII and cut; JSON escapes the rest.
"""

import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import orjson

from .timings import Exchange

__all__ = ("LineWriter", "Logs")

_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_MAX_TEXT = 256  # characters of anything that came from outside, escaped
_MAX_WAITING = 10_000  # lines
_BATCH_EVERY = 0.02  # seconds; waking a thread for each line would cost more than the line
_PIPE_TAKES = select.PIPE_BUF - 1  # bytes at once; one may have to end a line that was cut
_FINISH_WITHIN = 1.0  # seconds, for what is waiting when the writer ends

_OUTSIDE = ("method", "model", "requested_model", "closest_model")
_Read = Callable[[object], dict[str, Any]]


def _reader(*names: str, **renamed: str) -> _Read:
    """What reads a part of a line off an object: keys and attributes are called ``names``, unless
    an attribute is ``renamed`` for its key. None is left out."""
    read = attrgetter(*(renamed.get(name, name) for name in names))
    return lambda source: {
        name: value for name, value in zip(names, read(source), strict=True) if value is not None
    }


_request = _reader(
    "request_id",
    "route",
    "method",
    "status_code",
    "outcome",
    "client",
    "model",
    "requested_model",
    "stream",
    status_code="status",
    requested_model="renamed_model",
)
_times = _reader(
    "ttft_seconds",
    "upstream_ttft_seconds",
    "proxy_ttft_seconds",
    "ttfb_seconds",
    "ttfo_seconds",
    "total_time_seconds",
    "generation_seconds",
    "tpot_seconds",
    "queue_seconds",
    "prompt_seconds",
    "completion_seconds",
    "network_seconds",
    "retry_seconds",
    "wait_seconds",
    "connect_seconds",
    "tls_seconds",
    "proxy_own_seconds",
    "overhead_seconds",
    "intended_start_lag_seconds",
)
_timed_how = _reader("stamp", "connection", "tries", tries="attempts")
_usage = _reader(
    "total_tokens", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"
)
_upstreams_word = _reader("upstream_status", "upstream_code")
# How tokens came together, for those who look closely: at level debug.
_grouping = _reader("token_events", "token_reads", "tokens_per_event", "events_per_read")
_MESSAGES = {
    "completed": "Chat completion successful",
    "client_disconnected": "Client disconnected",
    "refused": "Request refused",
    "unauthorized": "Request refused",
}


def _outside_text(text: str) -> str:
    ascii_text = text[:_MAX_TEXT].encode("ascii", "backslashreplace").decode()
    return ascii_text.replace("\x7f", "\\x7f")[:_MAX_TEXT]


def _escape(fields: dict[str, Any]) -> None:
    for name in fields.keys() & _OUTSIDE:
        fields[name] = _outside_text(fields[name])


def _line(
    level: str,
    message: str,
    trace_id: str | None,
    rest: dict[str, Any],
    wall_time: float | None = None,
) -> bytes:
    """A line about ``wall_time``, seconds since the epoch; by default about now."""
    moment = datetime.now(UTC) if wall_time is None else datetime.fromtimestamp(wall_time, UTC)
    first = {
        "timestamp": moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z",
        "level": level,
        "message": message,
        "trace_id": trace_id,
    }
    return orjson.dumps({**first, **rest}, option=orjson.OPT_APPEND_NEWLINE)


def exchange_fields(exchange: Exchange) -> dict[str, Any]:
    """All that a line tells of an exchange after its first four keys."""
    fields = _request(exchange)
    _escape(fields)
    if not exchange.status:  # nothing was told
        del fields["status_code"]
    fields.update(_times(exchange))
    if exchange.stream:
        fields["client_blocked_seconds"] = round(exchange.client_blocked_seconds, 6)
    if exchange.is_chat:
        fields["ttft_source"] = exchange.ttft_source
    fields.update(_timed_how(exchange))
    if exchange.usage is not None:
        fields.update(_usage(exchange.usage))
        if exchange.tokens_per_second is not None:
            fields["tokens_per_second"] = exchange.tokens_per_second
    if exchange.cost is not None:
        fields["cost_usd"] = orjson.Fragment(format(exchange.cost, "f").encode())
    if exchange.usage_source is not None:
        fields["usage_source"] = exchange.usage_source
    if exchange.error_code is not None:
        fields["error"] = exchange.error_code
        fields.update(_upstreams_word(exchange))
    return fields


def _in_batches(lines: list[bytes], at_once: int) -> Iterator[list[bytes]]:
    """As many lines at a time as fit into so many bytes."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > at_once:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


class Logs:
    """Writes lines of ``level`` and above to ``write``, which must not block. Where there are
    several workers, each line tells the ``worker``."""

    def __init__(
        self, level: str, write: Callable[[bytes], object], worker: int | None = None
    ) -> None:
        self._least = _LEVELS[level]
        self._write = write
        self._whose = {} if worker is None else {"worker": worker}
        self.settle: Callable[[], None] = lambda: None
        """Called before an event's line, so that none overtakes what was before it."""

    def event(
        self, level: str, message: str, *, trace_id: str | None = None, **fields: Any
    ) -> None:
        """A line that belongs to no exchange. ``message`` is one of our own texts."""
        if _LEVELS[level] >= self._least:
            self.settle()
            _escape(fields)
            self._write(_line(level, message, trace_id, {**fields, **self._whose}))

    def exchange(self, exchange: Exchange) -> None:
        """The line of an exchange that has ended."""
        level = exchange.traits.level
        if _LEVELS[level] < self._least:
            return
        outcome = exchange.outcome
        message = _MESSAGES.get(outcome, "Exchange failed")
        if outcome == "completed" and not exchange.is_chat:
            message = "Request answered"
        fields = exchange_fields(exchange)
        if self._least == _LEVELS["debug"] and exchange.token_events:
            fields.update(_grouping(exchange))
        fields.update(self._whose)
        line = _line(level, message, exchange.trace_id, fields, exchange.ended_wall_time)
        self._write(line)


class LineWriter:
    """Writes lines to a file descriptor from a thread of its own; a context manager.

    A descriptor that stalls or fails costs lines, which are counted in ``dropped``, and never time.
    Where it is ``shared`` with other processes that write, no line is torn by theirs: lines are
    written whole, and no more of them at once than a pipe takes as one (PIPE_BUF, POSIX's write).
    A line is shorter than that: what is longest in it, a model's name, is cut.
    """

    def __init__(self, descriptor: int, *, shared: bool = False) -> None:
        self._descriptor = descriptor
        self._at_once = _PIPE_TAKES if shared else sys.maxsize
        self._waiting: deque[bytes] = deque()
        self._work = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._torn = b""  # what ends a line of which only a part could be written
        # One writer each: adding to an attribute is not atomic.
        self._refused = 0
        self._lost = 0

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def __call__(self, line: bytes) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self._refused += 1
            return
        self._waiting.append(line)
        if not self._work.is_set():
            self._work.set()

    def __enter__(self) -> "LineWriter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._work.set()
        self._thread.join(_FINISH_WITHIN)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._work.wait()
            self._work.clear()
            self._write_waiting()
            self._stop.wait(_BATCH_EVERY)
        self._write_waiting()

    def _write_waiting(self) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for batch in _in_batches(lines, self._at_once):
            self._write_lines(batch)

    def _write_lines(self, lines: list[bytes]) -> None:
        text = memoryview(self._torn + b"".join(lines))
        written = 0
        try:
            while written < len(text):
                written += self._write(text[written:])
        except OSError:  # closed, or the disk is full
            self._lost += min(len(lines), bytes(text[written:]).count(b"\n"))
        if written:
            self._torn = b"" if text[written - 1] == ord("\n") else b"\n"

    def _write(self, text: memoryview) -> int:
        try:
            return os.write(self._descriptor, text)
        except BlockingIOError:  # a parent process can make what we share non-blocking
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0
