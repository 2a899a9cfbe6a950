"""Log lines to columns: whatever a container's log put in front is stripped, and what is none of
our lines is counted.

A line of ours begins with ``{"timestamp"``, so everything in front of that is somebody's prefix:
``docker logs -t``, ``docker compose logs``, ``kubectl logs --prefix``, ``logcli``. Docker's log
files and Loki's exports have the line as text inside an object of their own.

Every line of a run ends with its ``run_id``. A line without one is of an older version, or of a
proxy inside another program; its input's name takes the place of the run.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ..telemetry.exchange import CHAT_ROUTE
from .columns import LABELS, NUMBERS, Batch, Floats, texts_of
from .texts import printable

__all__ = ("Reader", "RunLines", "Selection")

_KEYS = ("timestamp", *NUMBERS, *LABELS)
_RUN = LABELS.index("run_id") + 1 + len(NUMBERS)
_OURS = b'{"timestamp"'
_AS_TEXT = b'"{\\"timestamp\\"'  # in an export of one key a line
_WRAPPED_IN = ("line", "log", "message", "msg")  # of Loki's exports, Docker's files, others
_LATEST = 2.0**32  # seconds since the epoch
_CLOCK_STEP = 2.0  # seconds backwards from one line to the next that no order of writing explains
_MAX_EVENTS = 1000  # kinds; of another program there may be as many as lines
_MAX_RUNS = 1000


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


@dataclass
class RunLines:
    """What a log says of one run, beside its exchanges. A process that serves writes a line when it
    starts, and when it stops one with the number of its chat requests."""

    lines: int = 0  # of chat requests, selected or not
    started: int = 0
    stopped: int = 0
    counted: int = 0
    dropped: int = 0
    versions: set[str] = field(default_factory=set)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> int | None:
        """How many lines of chat requests are not there; below zero where some are there twice;
        None where no line says how many there must be."""
        if not self.stopped or self.stopped < self.started:
            return None
        return self.counted - self.lines

    def note(self, line: dict[str, Any]) -> None:
        """Take note of a line that is of no exchange."""
        message, settings = line.get("message"), line.get("settings")
        if isinstance(line.get("version"), str):
            self.versions.add(printable(line["version"]))
        if message == "Settings" and isinstance(settings, dict):
            self.settings = {printable(str(k)): printable(str(v)) for k, v in settings.items()}
            self.started += self.settings.get("ASYNC_WORKERS", "1") == "1"
        elif message == "Worker serves":
            self.started += 1
        elif message == "Stopped" and isinstance(line.get("chat_requests"), int):
            self.stopped += 1
            self.counted += line["chat_requests"]
            dropped = line.get("lines_dropped")
            self.dropped += dropped if isinstance(dropped, int) else 0


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
        self.runs: dict[str, RunLines] = {}
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
        return self._select(_batch(rows, texts, self._input)) if rows else None

    def run(self, name: str) -> RunLines:
        """What is known of a run. Beyond a thousand, all others are one."""
        if name not in self.runs and len(self.runs) >= _MAX_RUNS:
            name = "(others)"
        return self.runs.setdefault(name, RunLines())

    def _stripped(self, line: bytes) -> list[bytes]:
        """The lines of ours in a line: one or none, but for an export that is one array."""
        place = line.find(_OURS)
        if place >= 0:
            return [line[place:]]
        place = line.find(_AS_TEXT)
        found = None
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(line)
        if found is None and place >= 0:
            with suppress(orjson.JSONDecodeError):
                found = {"line": orjson.loads(line[place:].rstrip(b", \r"))}
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
        for name, count in Counter(batch.labels["run_id"]).items():
            self.run(name).lines += count
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
        kind = printable(str(line.get("level"))), printable(str(line.get("message")))
        if kind in self.events or len(self.events) < _MAX_EVENTS:
            self.events[kind] += 1
        self.run(printable(str(line.get("run_id") or self._input))).note(line)

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
                return text.encode("utf-8", "replace")
    return b""


def _batch(rows: list[tuple[Any, ...]], texts: list[bytes], run: str) -> Batch:
    times, *columns = zip(*rows, strict=True)
    columns[_RUN - 1] = tuple(each or run for each in columns[_RUN - 1])
    numbers = dict(zip(NUMBERS, map(_numbers, columns), strict=False))
    labels = dict(zip(LABELS, map(_labels, columns[len(NUMBERS) :]), strict=True))
    return Batch(_times(times), numbers, labels, texts_of(texts))


def _times(texts: Sequence[Any]) -> Floats:
    """When the lines were written, in seconds since the epoch; NaN where that is unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of what NumPy may read wrong
            less_their_z = [text[:-1] for text in texts]
            milliseconds = np.array(less_their_z, dtype="datetime64[ms]")
        if milliseconds.ndim == 1:  # else each was a list, which can be cut, too
            return np.asarray(milliseconds.astype(np.int64) / 1000, dtype=np.float64)
    except (TypeError, KeyError, ValueError, UserWarning):  # an object: KeyError from 3.12 on
        pass
    return np.array([_time(text) for text in texts])


def _time(text: Any) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _numbers(values: Sequence[Any]) -> Floats:
    try:
        column = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        proper = [value if isinstance(value, int | float) else None for value in values]
        column = np.array(proper, dtype=np.float64)
    if column.ndim != 1:  # each value was a list of the same length
        return np.full(len(values), np.nan)
    column[np.isinf(column)] = np.nan
    return column


def _labels(values: Sequence[Any]) -> NDArray[np.object_]:
    if not {str}.issuperset(map(type, values)):
        values = ["" if value is None else str(value) for value in values]
    if not "".join(values).isprintable():
        values = [*map(printable, values)]
    return texts_of(values)
