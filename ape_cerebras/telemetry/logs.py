"""JSON log lines, one for each exchange or event, and the writer that never blocks the event loop.

A line is made from tables of allowed values (``LOG_FIELDS``), none of which can hold a header, a
body or a foreign exception's text, so nothing needs redaction. Text from outside (a method, a
model's name) is reduced to ASCII and cut; JSON escapes the rest.
"""

import errno
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter, itemgetter
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

import orjson

from .exchange import Exchange, Usage
from .timings import Timings
from .trace_context import Caller, CallerReader

__all__ = (
    "DEBUG_FIELDS",
    "FIRST_FIELDS",
    "LOG_FIELDS",
    "LineWriter",
    "LogField",
    "Logs",
    "describe_exceptions",
)

_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_MAX_TEXT = 256  # characters of text from outside, escaped
_MAX_UNPRINTABLE = 128  # of text with control characters
_MAX_WAITING = 10_000  # lines
_BATCH_EVERY = 0.02  # seconds; waking a thread for each line would cost more than the line
_PIPE_TAKES = select.PIPE_BUF - 1  # bytes at once; one may have to end a line that was cut
_FINISH_WITHIN = 1.0  # seconds for the waiting lines when the writer ends
_MOST_DESCRIBED = 8  # exceptions of a tree, and locations of each, so that a line stays short

_PROBES = ("/health", "/metrics")  # several a minute, and nothing happens
_OUTSIDE = ("method", "model", "requested_model", "closest_model")


class LogField(NamedTuple):
    """One key of a line. A value that is None is left out."""

    key: str
    meaning: str
    attribute: str = ""  # of the exchange, its timings, tokens that count, caller; else the key


FIRST_FIELDS = (
    LogField("timestamp", "when the line was written: RFC 3339, UTC, with milliseconds"),
    LogField("level", "`debug`, `info`, `warning` or `error`"),
    LogField("message", "one of the proxy's own constant texts"),
    LogField("trace_id", "from `X-Trace-ID`, else from `traceparent`, else new"),
)
"""Every line has them. Each ends with the number of its ``worker``, where there are several, and
with the ``run_id``, which is RUN_ID or new at each start of the service."""

LOG_FIELDS = (
    LogField("request_id", "from `X-Request-ID`, else new"),
    LogField("span_id", "of the exchange, in a [trace](traces.md)"),
    LogField("parent_span_id", "of the client, from `traceparent`"),
    LogField("route", "the path's template, never the path"),
    LogField("method", "of the request"),
    LogField("status_code", "sent to the client; left out if none was", "status"),
    LogField("outcome", "how the exchange ended"),
    LogField("client", "name of the client's key, where it has one"),
    LogField("peer", "the client's address, as far as `TRUSTED_PROXIES` report it; `LOG_PEER`"),
    LogField("user_agent", "as the client names itself, escaped and cut at 128 characters"),
    LogField("session_id", "of the agent's session: the first of `SESSION_ID_HEADERS`"),
    LogField("agent_id", "of the agent: the first of `AGENT_ID_HEADERS`"),
    LogField("client_attempt", "retries that the client's SDK made before, as it counts them"),
    LogField("path", "of a 404, without its query, escaped and cut at 128 characters"),
    LogField("model", "requested from the API"),
    LogField("requested_model", "by the client, where an alias replaced it", "aliased_model"),
    LogField("stream", "whether the client requested a stream"),
    LogField("request_bytes", "of the request's body"),
    LogField("response_bytes", "of the response's body, sent to the client"),
    LogField("ttft_seconds", "request complete here → first token written to the client"),
    LogField("upstream_ttft_seconds", "request written upstream → first token arrived"),
    LogField("proxy_ttft_seconds", "the difference of these two: what this proxy added"),
    LogField("ttfb_seconds", "request written upstream → response head arrived"),
    LogField("ttfo_seconds", "like `ttft_seconds`, for the first token that is not reasoning"),
    LogField(
        "uncertainty_seconds",
        "by which these may be off, because the proxy was preempted while it wrote the request "
        "or the first token, or before it read that; where it is more than 0.1 ms",
    ),
    LogField("total_time_seconds", "request complete → last byte written"),
    LogField("generation_seconds", "first token → last token"),
    LogField("max_chunk_gap_seconds", "longest time between reads that brought tokens; of streams"),
    LogField("tpot_seconds", "time per output token: generation by completion tokens less one"),
    LogField("queue_seconds", "Cerebras's own `queue_time`"),
    LogField("prompt_seconds", "Cerebras's own `prompt_time`"),
    LogField("completion_seconds", "Cerebras's own `completion_time`"),
    LogField("network_seconds", "upstream TTFT less queue and prompt"),
    LogField("retry_seconds", "start of the first attempt → start of the last, if retried"),
    LogField(
        "wait_seconds", "waiting in the queue and for an upstream connection, if there was any"
    ),
    LogField("connect_seconds", "name lookup and TCP of a new connection"),
    LogField("tls_seconds", "TLS handshake of a new connection"),
    LogField("proxy_own_seconds", "`proxy_ttft_seconds` less retry, wait, connect and TLS"),
    LogField("overhead_seconds", "not spent waiting for upstream, for the client or in the queue"),
    LogField(
        "intended_start_lag_seconds", "`X-Request-Timestamp` (planned start) → first byte here"
    ),
    LogField("client_blocked_seconds", "waiting for a slow client to accept bytes; of streams"),
    LogField("ttft_source", "`measured`; `derived` from `time_info`; null without a TTFT"),
    LogField("stamp", "arrivals: `kernel` timestamps, or time of the `read`", "timestamp_source"),
    LogField("connection", "to upstream: `warm` (made in advance, unused), `reused` or `new`"),
    LogField("tries", "attempts that were started, if retried", "attempts"),
    LogField("total_tokens", "prompt and completion"),
    LogField("prompt_tokens", "as the API reports them, or as estimated"),
    LogField("completion_tokens", "as the API reports them, or as estimated"),
    LogField("cached_tokens", "part of the prompt tokens"),
    LogField("reasoning_tokens", "part of the completion tokens"),
    LogField("accepted_prediction_tokens", "part of the completion tokens; where reported"),
    LogField("rejected_prediction_tokens", "part of the completion tokens; where reported"),
    LogField("image_tokens", "part of the prompt tokens; where reported"),
    LogField("tokens_per_second", "completion tokens by generation time"),
    LogField("speed_source", "of these two: `measured`; `derived` from `completion_seconds`"),
    LogField("reserved_tokens", "that the API reserves for the request, as estimated"),
    LogField("cost_usd", "US dollars, exact; where the model has a price", "cost"),
    LogField("usage_source", "`upstream`; `estimated` where the API did not report all of it"),
    LogField("finish_reason", "why the completion ended: `stop`, `length`, …, else `other`"),
    LogField("service_tier", "that the response names: `default`, `flex`, …, else `other`"),
    LogField("upstream_id", "the API's: its `inference-id`, else its `x-request-id`"),
    LogField("cf_ray", "Cloudflare's id of the response"),
    LogField("error", "our own code for what failed", "error_code"),
    LogField("cause", "why the request failed on its way upstream: one of the causes"),
    LogField("upstream_address", "connected to, or tried last, of such a failure", "failed_at"),
    LogField("upstream_status", "the API's status, of a failure"),
    LogField("upstream_code", "the code in the body of the API's error"),
)
"""Of an exchange's line, behind the first ones."""

DEBUG_FIELDS = (
    LogField("token_events", "events that brought tokens"),
    LogField("token_reads", "reads that brought such events"),
    LogField("tokens_per_event", "completion tokens by events"),
    LogField("events_per_read", "events by reads"),
)
"""How tokens were grouped; with ``LOG_LEVEL=debug``."""

_MESSAGES = {
    "completed": "Chat completion successful",
    "client_disconnected": "Client disconnected",
    "refused": "Request refused",
    "unauthorized": "Request refused",
}

_OF_FAILURES = ("upstream_status", "upstream_code")
_OWN = ("timestamp", "level", "message", "status", "ttft_source", "cost", *_OF_FAILURES)
"""What a line makes itself, in place of what the records have by that name."""
_NULL = orjson.Fragment(b"null")
_NO_USAGE = (None,) * len(Usage._fields)
_NO_CALLER = Caller(*[None] * len(Caller._fields))


class _Rows(NamedTuple):
    """A part of a line: its keys, and what reads their values from the exchange and the tuples
    behind it. By an ``attrgetter`` of paths a line took 66,000 instructions, not 47,000."""

    keys: tuple[str, ...]
    of_exchange: Callable[[Exchange], tuple[Any, ...]]
    in_order: Callable[[tuple[Any, ...]], tuple[Any, ...]]


def _rows(fields: tuple[LogField, ...]) -> _Rows:
    names = [field.attribute or field.key for field in fields]
    of_tuples = [*_OWN, *Timings._fields, *Usage._fields, *Caller._fields]
    of_exchange = [name for name in names if name not in of_tuples]
    places = [(of_tuples + of_exchange).index(name) for name in names]
    keys = tuple([field.key for field in fields])
    return _Rows(keys, attrgetter(*of_exchange), itemgetter(*places))


_ROWS, _DEBUG_ROWS = _rows(FIRST_FIELDS + LOG_FIELDS), _rows(DEBUG_FIELDS)


def _own_values(exchange: Exchange, timings: Timings, level: str) -> tuple[Any, ...]:
    """The values of ``_OWN``."""
    served = timings.outcome == "completed" and not timings.is_chat
    message = "Request served" if served else _MESSAGES.get(timings.outcome, "Exchange failed")
    failed = timings.error_code is not None
    return (
        *(_now(), level, message),
        exchange.status or None,
        timings.ttft_source or (_NULL if timings.is_chat else None),
        orjson.Fragment(format(exchange.cost, "f").encode()) if exchange.cost is not None else None,
        exchange.upstream_status if failed else None,
        exchange.upstream_code if failed else None,
    )


def _read(
    rows: _Rows, own: tuple[Any, ...], exchange: Exchange, timings: Timings, caller: Caller
) -> dict[str, Any]:
    """The part of a line that ``rows`` describe, without values that are None."""
    usage = timings.usage or _NO_USAGE
    values = rows.in_order((*own, *timings, *usage, *caller, *rows.of_exchange(exchange)))
    return {k: value for k, value in zip(rows.keys, values, strict=True) if value is not None}


def _escape(fields: dict[str, Any]) -> None:
    """Reduce text from outside to ASCII, and cut it."""
    for name in _OUTSIDE:
        text = fields.get(name)
        if text is None or (text.isascii() and text.isprintable() and len(text) <= _MAX_TEXT):
            continue
        text = text[:_MAX_TEXT].encode("ascii", "backslashreplace").decode()
        # JSON takes six characters for a control character.
        most = _MAX_TEXT if text.isprintable() else _MAX_UNPRINTABLE
        fields[name] = text.replace("\x7f", "\\x7f")[:most]


def _now() -> str:
    """The time as RFC 3339 has it: 5,000 instructions, where ``isoformat`` takes 16,000."""
    second, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_format_second(second)}.{milliseconds:03}Z"


@lru_cache(maxsize=1)
def _format_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class Logs:
    """Write lines of ``level`` and above with ``write``, which must not block. Each line ends with
    the number of its ``worker``, where there are several, and with the ``run_id``. Without
    ``callers`` no line says who sent its request."""

    def __init__(
        self,
        level: str,
        write: Callable[[bytes], object],
        worker: int | None = None,
        run_id: str | None = None,
        callers: CallerReader | None = None,
    ) -> None:
        self._callers = callers
        self._least = _LEVELS[level]
        self._write = write
        last = {"worker": worker, "run_id": run_id}
        self._last = {key: value for key, value in last.items() if value is not None}

    def event(
        self, level: str, message: str, *, trace_id: str | None = None, **fields: Any
    ) -> None:
        """Log an event outside of exchanges. ``message`` is one of our own texts."""
        if _LEVELS[level] >= self._least:
            _escape(fields)
            first = {"timestamp": _now(), "level": level, "message": message, "trace_id": trace_id}
            self._write_line(first | fields)

    def exchange(self, exchange: Exchange, timings: Timings) -> None:
        """Log an exchange that has ended."""
        level = timings.traits.level
        if level == "info" and exchange.route in _PROBES:
            level = "debug"
        if _LEVELS[level] < self._least:
            return
        caller = _NO_CALLER if self._callers is None else self._callers.read(exchange)
        own = _own_values(exchange, timings, level)
        line = _read(_ROWS, own, exchange, timings, caller)
        _escape(line)
        if self._least == _LEVELS["debug"] and exchange.token_events:
            line.update(_read(_DEBUG_ROWS, own, exchange, timings, _NO_CALLER))
        self._write_line(line)

    def _write_line(self, line: dict[str, Any]) -> None:
        line.update(self._last)
        self._write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def describe_exceptions(error: BaseException) -> list[str]:
    """A text for each exception in a tree of groups, causes and contexts: its type, and the code
    locations that it passed through, innermost first."""
    found: list[BaseException] = [error]
    for each in found:
        behind = list(each.exceptions) if isinstance(each, BaseExceptionGroup) else []
        if each.__cause__ is not None:
            behind.append(each.__cause__)
        elif each.__context__ is not None and not each.__suppress_context__:
            behind.append(each.__context__)
        for more in behind:
            if all(more is not known for known in found):
                found.append(more)
    described = []
    for each in found[:_MOST_DESCRIBED]:
        locations = [
            f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
            for frame, line in walk_tb(each.__traceback__)
        ]
        innermost = reversed(locations[-_MOST_DESCRIBED:])
        described.append(" < ".join((_kind(each), *innermost)))
    return described


def _kind(error: BaseException) -> str:
    """The type, and the name of a system call's error number."""
    name = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{type(error).__name__} {name}" if name else type(error).__name__


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
        """Write all lines, as many at once as fit into ``at_once`` bytes."""
        batch: list[bytes] = []
        size = 0
        for _ in range(len(self._waiting)):
            line = self._waiting.popleft()
            if batch and size + len(line) > self._at_once:
                self._write_lines(batch)
                batch, size = [], 0
            batch.append(line)
            size += len(line)
        if batch:
            self._write_lines(batch)

    def _write_lines(self, lines: list[bytes]) -> None:
        text = memoryview(self._torn + b"".join(lines))
        written = 0
        try:
            while written < len(text):
                written += self._write(text[written:])
        except Exception:  # closed, or the disk is full; the thread survives whatever it is
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
