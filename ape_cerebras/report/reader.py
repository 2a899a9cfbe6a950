"""Log lines to columns: whatever a container's log put in front is stripped, and what is none of
our lines is counted.

A line of ours begins with ``{"timestamp"``, so everything in front of that is somebody's prefix:
``docker logs -t``, ``docker compose logs``, ``kubectl logs --prefix``, ``logcli``. Docker's log
files and Loki's exports have the line as text inside an object of their own.
"""

import errno
import glob
import gzip
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ..telemetry.exchange import CHAT_ROUTE
from ..telemetry.outcomes import OUTCOMES

__all__ = (
    "LABELS",
    "METRICS",
    "NUMBERS",
    "PARTS",
    "Batch",
    "Floats",
    "Inputs",
    "Objective",
    "Reader",
    "Selection",
    "UnusableInput",
    "columns_of",
)

Floats = NDArray[np.float64]

NUMBERS = (
    *("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "ttfo_seconds"),
    *("total_time_seconds", "generation_seconds", "tpot_seconds", "tokens_per_second"),
    *("retry_seconds", "wait_seconds", "connect_seconds", "tls_seconds", "proxy_own_seconds"),
    *("queue_seconds", "prompt_seconds", "intended_start_lag_seconds", "tries", "cost_usd"),
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "reserved_tokens"),
)
"""The keys that are read as numbers; NaN where a line has none."""

LABELS = (
    *("outcome", "model", "client", "session_id", "agent_id", "ttft_source", "finish_reason"),
    *("upstream_status", "upstream_code", "cause", "usage_source", "connection"),
)
"""The keys that are read as text; empty where a line has none."""

METRICS: dict[str, tuple[str, str]] = {
    "ttft_intended": ("TTFT from the intended start", "s"),
    "ttft": ("TTFT", "s"),
    "ttft_derived": ("TTFT, derived from time_info", "s"),
    "ttfo": ("TTFO", "s"),
    "upstream_ttft": ("upstream TTFT", "s"),
    "proxy_ttft": ("proxy TTFT", "s"),
    "total": ("total", "s"),
    "tpot": ("TPOT", "s"),
    "tokens_per_second": ("tokens per second", "/s"),
}
"""Label and unit of each distribution. But for the derived TTFT all are of measured times."""

PARTS = {
    "retry": "retries",
    "wait": "waiting for a turn or a connection",
    "connect": "TCP",
    "tls": "TLS",
    "proxy_own": "the proxy itself",
    "queue": "Cerebras: queue",
    "prompt": "Cerebras: prompt",
    "network": "network, and what upstream does not report",
}
"""The parts of a TTFT, in the order in which they happen, but for the network, which is around."""

_KEYS = ("timestamp", *NUMBERS, *LABELS)
_OURS = b'{"timestamp"'
_WRAPPED_IN = ("line", "log", "message", "msg")  # of Loki's exports, Docker's files, others
_CHUNK_BYTES = 16 * 1024 * 1024
_LATEST = 2.0**32  # seconds since the epoch
_LONGEST = 7 * 86_400.0  # seconds of a request; what is longer is a mistake
_CLOCK_STEP = 2.0  # seconds backwards from one line to the next that no order of writing explains


class Objective(NamedTuple):
    """``metric`` is one of ``METRICS`` or ``errors``; ``quantile`` is None for errors; ``limit`` in
    seconds, per second, or as a share."""

    text: str
    metric: str
    quantile: float | None
    limit: float

    @property
    def unit(self) -> str:
        return "%" if self.quantile is None else METRICS[self.metric][1]

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.metric == "tokens_per_second" else value <= self.limit


class Batch(NamedTuple):
    """The chat exchanges of some lines, one column for each key. ``ends`` is when each ended, in
    seconds since the epoch; ``texts`` are their lines."""

    ends: Floats
    numbers: dict[str, Floats]
    labels: dict[str, NDArray[np.object_]]
    texts: NDArray[np.object_]

    @property
    def starts(self) -> Floats:
        """When each request was complete at the proxy."""
        total = self.numbers["total_time_seconds"]
        return self.ends - np.where((total >= 0) & (total < _LONGEST), total, 0.0)

    def where(self, mask: NDArray[np.bool_]) -> "Batch":
        return Batch(
            self.ends[mask],
            {name: column[mask] for name, column in self.numbers.items()},
            {name: column[mask] for name, column in self.labels.items()},
            self.texts[mask],
        )


class Selection(NamedTuple):
    """The exchanges of interest; times in seconds since the epoch, ``warmup`` in seconds from the
    first exchange of each input."""

    since: float | None = None
    until: float | None = None
    warmup: float = 0.0
    labels: tuple[tuple[str, str], ...] = ()  # name and value

    def mask(self, batch: Batch, begin: float) -> NDArray[np.bool_]:
        starts = batch.starts
        mask = starts >= begin + self.warmup
        if self.since is not None:
            mask &= starts >= self.since
        if self.until is not None:
            mask &= starts < self.until
        for name, value in self.labels:
            mask &= batch.labels[name] == value
        return mask


class Reader:
    """Reads the lines of all inputs, and counts them by what they are."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._input = ""
        self._begins: dict[str, float] = {}  # of each input's first exchange
        self._latest: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        """Lines by kind: ``selected``, ``not selected`` and ``other requests`` are exchanges."""
        self.events: Counter[tuple[str, str]] = Counter()
        """Lines that are no exchanges, by level and message."""
        self.versions: set[str] = set()
        self.settings: dict[str, Any] = {}
        self.clock_steps = 0

    def begin_input(self, name: str) -> None:
        """The lines that follow are of this input."""
        self._input = name

    def read(self, lines: Sequence[bytes]) -> Batch | None:
        """The selected chat exchanges among some lines, if there are any."""
        rows: list[tuple[Any, ...]] = []
        texts: list[bytes] = []
        for line in lines:
            for text in (line,) if line.startswith(_OURS) else self._stripped(line):
                try:
                    found = orjson.loads(text)
                except orjson.JSONDecodeError:
                    self.counts["broken"] += 1
                    continue
                if found.get("route") == CHAT_ROUTE and "outcome" in found:
                    rows.append(tuple(map(found.get, _KEYS)))
                    texts.append(text)
                else:
                    self._count_other(found)
        return self._select(_batch(rows, texts)) if rows else None

    def _stripped(self, line: bytes) -> list[bytes]:
        """The lines of ours in a line: one or none, but for an export that is one array."""
        place = line.find(_OURS)
        if place >= 0:
            return [line[place:]]
        found = None
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(line)
        inner = [_wrapped(each) for each in (found if isinstance(found, list) else [found])]
        if not any(inner) and line.strip():
            self.counts["not ours"] += 1
        return [text for text in inner if text]

    def _select(self, batch: Batch) -> Batch | None:
        unreadable = ~((batch.ends >= 0) & (batch.ends < _LATEST))  # NaN, too
        if unreadable.any():
            self.counts["broken"] += int(unreadable.sum())
            batch = batch.where(~unreadable)
        if not len(batch.ends):
            return None
        self._look_at_clock(batch.ends)
        begin = self._begins.setdefault(self._input, float(batch.starts.min()))
        selected = batch.where(self._selection.mask(batch, begin))
        self.counts["selected"] += len(selected.ends)
        self.counts["not selected"] += len(batch.ends) - len(selected.ends)
        return selected if len(selected.ends) else None

    def _count_other(self, line: dict[str, Any]) -> None:
        if "outcome" in line:
            self.counts["other requests"] += 1
            return
        self.counts["events"] += 1
        message = line.get("message")
        self.events[str(line.get("level")), str(message)] += 1
        if message == "Listening" and isinstance(line.get("version"), str):
            self.versions.add(line["version"])
        elif message == "Settings":
            self.settings = line

    def _look_at_clock(self, ends: Floats) -> None:
        latest = self._latest.get(self._input, -np.inf)
        before = np.maximum.accumulate(np.concatenate(([latest], ends)))[:-1]
        back = ends < before - _CLOCK_STEP
        self.clock_steps += int(np.sum(back & ~np.concatenate(([False], back[:-1]))))
        self._latest[self._input] = max(latest, float(ends.max()))


def _wrapped(found: Any) -> bytes:
    """Our line inside of somebody's object."""
    if isinstance(found, dict):
        for name in _WRAPPED_IN:
            text = found.get(name)
            if isinstance(text, str) and text.startswith(_OURS.decode()):
                return text.encode()
    return b""


def _batch(rows: list[tuple[Any, ...]], texts: list[bytes]) -> Batch:
    times, *columns = zip(*rows, strict=True)
    numbers = dict(zip(NUMBERS, map(_numbers, columns), strict=False))
    labels = dict(zip(LABELS, map(_texts, columns[len(NUMBERS) :]), strict=True))
    return Batch(_times(times), numbers, labels, _objects(texts))


def _times(texts: Sequence[Any]) -> Floats:
    """When the lines were written, in seconds since the epoch; NaN where that is unreadable."""
    try:
        milliseconds = np.array([text[:-1] for text in texts], dtype="datetime64[ms]")  # less its Z
        return np.asarray(milliseconds.astype(np.int64) / 1000, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array([_time(text) for text in texts])


def _time(text: Any) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _numbers(values: Sequence[Any]) -> Floats:
    try:
        column = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        proper = [value if isinstance(value, int | float) else None for value in values]
        column = np.array(proper, dtype=np.float64)
    column[np.isinf(column)] = np.nan
    return column


def _texts(values: Sequence[Any]) -> NDArray[np.object_]:
    if not {str}.issuperset(map(type, values)):
        values = ["" if value is None else str(value) for value in values]
    return _objects(values)


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def columns_of(batch: Batch) -> dict[str, Floats]:
    """The columns that are added up or go into sketches."""
    numbers, labels = batch.numbers, batch.labels
    measured = labels["ttft_source"] == "measured"
    completed = labels["outcome"] == "completed"
    generation = numbers["generation_seconds"]
    whole = measured & (generation > 0) & ~np.isnan(numbers["completion_tokens"])
    columns = {name: np.nan_to_num(numbers[name]) for name in numbers if name.endswith("_tokens")}
    for name in ("ttft", "upstream_ttft", "proxy_ttft", "ttfo", "tpot"):
        columns[name] = np.where(measured, numbers[f"{name}_seconds"], np.nan)
    columns["tokens_per_second"] = np.where(measured, numbers["tokens_per_second"], np.nan)
    derived = labels["ttft_source"] == "derived"
    columns["ttft_derived"] = np.where(derived, numbers["ttft_seconds"], np.nan)
    columns["felt"] = np.where(measured | derived, numbers["ttft_seconds"], np.nan)
    columns["ttft_intended"] = columns["ttft"] + numbers["intended_start_lag_seconds"]
    columns["lagged"] = (~np.isnan(numbers["intended_start_lag_seconds"])).astype(np.float64)
    columns["total"] = np.where(completed, numbers["total_time_seconds"], np.nan)
    for name in PARTS:
        if name != "network":
            columns[name] = np.nan_to_num(numbers[f"{name}_seconds"])
    columns["network"] = columns["upstream_ttft"] - columns["queue"] - columns["prompt"]
    columns["requests"] = np.ones(len(batch.ends))
    failing = {name: _is_failure(name) for name in dict.fromkeys(labels["outcome"])}
    columns["failed"] = np.array([failing[name] for name in labels["outcome"]], dtype=np.float64)
    columns["cost_usd"] = np.nan_to_num(numbers["cost_usd"])
    used = ~np.isnan(numbers["completion_tokens"])
    columns["no_cost"] = (used & np.isnan(numbers["cost_usd"])).astype(np.float64)
    columns["streamed_tokens"] = np.where(whole, numbers["completion_tokens"], 0.0)
    columns["generation_seconds"] = np.where(whole, generation, 0.0)
    columns["retried"] = (numbers["tries"] > 1).astype(np.float64)
    columns["attempts"] = np.nan_to_num(numbers["tries"], nan=1.0)
    columns["usage_missing"] = (labels["usage_source"] == "missing").astype(np.float64)
    return columns


def _is_failure(outcome: str) -> bool:
    """An outcome that this version does not know is taken for a failure."""
    return OUTCOMES[outcome].failed if outcome in OUTCOMES else True


# Inputs


class UnusableInput(Exception):
    """What was given cannot be used; our own text."""


@dataclass
class Inputs:
    """The lines of files, of what a pattern matches, and of standard input, in their order."""

    names: list[str]
    _open: list[IO[bytes]]
    _sizes: float
    _read: float = 0.0
    _rests: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def opened(cls, given: list[str], stack: ExitStack) -> "Inputs":
        """Raises UnusableInput."""
        names: list[str] = []
        for each in given:
            found = [each] if each == "-" or Path(each).exists() else sorted(glob.glob(each))
            if not found:
                raise UnusableInput(f"{each}: no such file, and none like it")
            names += found
        try:
            opened = [stack.enter_context(_open(name)) for name in names]
            sizes = sum(Path(name).stat().st_size for name in names if name != "-")
        except OSError as error:
            number = error.errno or errno.EIO
            raise UnusableInput(f"{names}: cannot be read ({os.strerror(number)})") from None
        return cls(names, opened, sizes)

    def share_read(self) -> float:
        """Of files that are not packed, from 0 to 1."""
        return min(1.0, self._read / self._sizes) if self._sizes else 1.0

    def chunks(self, number: int) -> Iterator[list[bytes]]:
        """The lines of one input, some at a time, to its present end. Raises UnusableInput."""
        file, rest = self._open[number], self._rests.pop(number, b"")
        try:
            while chunk := file.read(_CHUNK_BYTES):
                self._read += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                yield lines
        except (OSError, EOFError, zlib.error):
            raise UnusableInput(f"{self.names[number]}: cannot be read to its end") from None
        self._rests[number] = rest

    def rests(self) -> list[bytes]:
        """The last lines, which no newline ends."""
        return list(self._rests.values())


def _open(name: str) -> Any:
    if name == "-":
        return nullcontext(sys.stdin.buffer)
    return gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb")
