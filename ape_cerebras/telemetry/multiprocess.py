"""The text that a scraper gets: of the one process there is, or the sum over all workers.

Workers keep their values in files that all of them can read (prometheus_client's multiprocess
mode), so that any of them answers for all. A worker's files are named by its number and not by its
process: one that takes a dead one's place goes on counting where that left off, and there are no
more files than workers, however often one is started.

Where every model has been seen the library takes 35 ms to write it all, and as much again to add up
each worker's files (CPython 3.11, one core of a virtual server). So both are done here in steps of
some samples, between which the event loop can have its turn. Each metric is of one moment; the
moments are a little apart.
"""

import json
import mmap
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

from prometheus_client import CollectorRegistry, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = (
    "STEM",
    "AllWorkers",
    "Scoreboard",
    "Source",
    "WorkerSlot",
    "forget_worker",
    "render",
    "share_values",
)

STEM = "cerebras_proxy"

_OPENMETRICS = "application/openmetrics-text"
_ACCEPTS_OPENMETRICS = re.compile(
    # A weight of 0 is a refusal (RFC 9110 section 12.4.2).
    rb"(?:^|,)\s*application/openmetrics-text\s*(?=[;,]|$)(?![^,]*;\s*q=0(?:\.0*)?\s*(?:[;,]|$))",
    re.IGNORECASE,
)
_WORD = 8  # bytes
_AT_ONCE = 100  # samples
_LINES_ABOVE = 2  # a metric's samples: its help and its type
_END = b"# EOF\n"  # of OpenMetrics


class Source(Protocol):
    """What metrics come from, one by one; None after a step of the work that they take."""

    def collect(self) -> Iterable[Metric | None]: ...


def render(source: Source, accept: bytes) -> Generator[None, None, tuple[bytes, str]]:
    """The text for a scraper, and its content type, in steps; OpenMetrics where it accepts that.
    Without the ``_created`` samples, which would double the series."""
    # The library repeats parts of the header it is given, so it is given one of ours.
    encode, content_type = choose_encoder(
        f"{_OPENMETRICS}; version=1.0.0" if _ACCEPTS_OPENMETRICS.search(accept) else ""
    )
    parts = []
    for metric in source.collect():
        yield
        for text in () if metric is None else _texts(metric, encode):
            parts.append(text)
            yield
    # What ends the whole ended each part of it.
    return b"".join((*parts, encode(CollectorRegistry()))), content_type


def _texts(metric: Metric, encode: Callable[[Collector], bytes]) -> Iterator[bytes]:
    """The text of one metric, some samples at a time."""
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    for at in range(0, max(1, len(samples)), _AT_ONCE):
        metric.samples = samples[at : at + _AT_ONCE]
        text = encode(_One(metric)).removesuffix(_END)
        yield text.split(b"\n", _LINES_ABOVE)[_LINES_ABOVE] if at else text


class _One(Collector):
    """A metric by itself."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def share_values(directory: str, number: int) -> None:
    """Have all metrics that this process makes from now on keep their values in ``directory``.

    The whole process, as that is how the library knows the mode: what it is told by the
    environment where it is imported, a worker tells it here.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def forget_worker(directory: str, number: int) -> None:
    """Take away what was true of a dead worker only while it lived; what it counted stays."""
    mark_process_dead(number, directory)  # type: ignore[no-untyped-call]


class Scoreboard:
    """Memory that the parent and its workers share; to be made before the workers are started.

    It holds whole numbers, each written by one process at a time and read by all. A number is one
    machine word, so that nobody reads half of one. ``workers`` is how many there should be.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        words = memoryview(mmap.mmap(-1, _WORD * (3 + 2 * workers))).cast("q")
        self._of_all, self._up, self._open = words[:3], words[3 : 3 + workers], words[-workers:]

    # Written by the parent

    @property
    def restarts(self) -> int:
        return self._of_all[0]

    def count_restart(self) -> None:
        self._of_all[0] += 1

    def must_end_now(self) -> bool:
        """Whether exchanges in flight have to end now."""
        return bool(self._of_all[1])

    def end_now(self) -> None:
        self._of_all[1] = 1

    # Written by a worker about itself, by its number (from 1)

    @property
    def up(self) -> int:
        """How many workers serve."""
        return sum(self._up)

    @property
    def has_served(self) -> bool:
        """Whether any worker has served."""
        return bool(self._of_all[2])

    def mark_up(self, number: int) -> None:
        self._up[number - 1] = self._of_all[2] = 1

    def mark_down(self, number: int) -> None:
        """Also called by the parent, for a worker that has died."""
        self._up[number - 1] = self._open[number - 1] = 0

    def set_connections(self, number: int, connections: int) -> None:
        self._open[number - 1] = connections

    def has_more_connections(self, number: int) -> bool:
        """Whether another worker that serves has fewer connections open."""
        own = self._open[number - 1]
        return any(up and count < own for up, count in zip(self._up, self._open, strict=True))


@dataclass(frozen=True)
class WorkerSlot:
    """What one worker knows of itself and the others; all but ``number`` is the same for all."""

    number: int
    """From 1; the successor of a worker that died has the same."""
    scoreboard: Scoreboard
    directory: str
    """Of the files that hold the workers' metrics."""


class AllWorkers:
    """What all workers count, in the order of its names, and how the workers are."""

    def __init__(self, slot: WorkerSlot) -> None:
        self._slot = slot

    def collect(self) -> Iterator[Metric | None]:
        sums = _Sums()
        for path in _files_in(self._slot.directory):
            with suppress(FileNotFoundError):  # of a worker that has just been forgotten
                yield from sums.add(path)
        yield from sums.metrics()
        scoreboard = self._slot.scoreboard
        yield GaugeMetricFamily(f"{STEM}_workers_up", "Workers that serve", value=scoreboard.up)
        configured, text = f"{STEM}_workers_configured", "Workers there should be"
        yield GaugeMetricFamily(configured, text, value=scoreboard.workers)
        restarts, text = f"{STEM}_worker_restarts", "Workers that ended and were replaced"
        yield CounterMetricFamily(restarts, text, value=scoreboard.restarts)


def _files_in(directory: str) -> list[str]:
    """But for one that a worker is about to make: while it is empty the library cannot read it
    (prometheus/client_python#1199)."""
    with os.scandir(directory) as entries:
        return [entry.path for entry in entries if _size(entry)]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # of a worker that has just been forgotten
        return 0


_Value = tuple[float, float]  # with when it was set, where that matters


def _add(one: _Value, other: _Value) -> _Value:
    return one[0] + other[0], 0.0


# What the values of several workers make together, by the mode of a gauge; others add up.
_TOGETHER: dict[str, Callable[[_Value, _Value], _Value]] = {
    "livemax": max,
    "mostrecent": lambda one, other: max(one, other, key=itemgetter(1)),
}


class _Sums:
    """What the values in several files make together, by the key under which all files keep them: a
    metric's name, the sample's, its labels and the metric's text, in JSON."""

    def __init__(self) -> None:
        self._values: dict[str, _Value] = {}
        self._types: dict[str, str] = {}

    def add(self, path: str) -> Iterator[None]:
        """Add what a worker's file holds, which is named by type, mode of a gauge, and number."""
        kind, *mode, _ = os.path.basename(path).split("_")
        together = _TOGETHER.get("".join(mode), _add)
        entries = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
        for number, (key, *value, _) in enumerate(entries, 1):
            known = self._values.get(key)
            self._values[key] = tuple(value) if known is None else together(known, tuple(value))
            self._types[key] = kind
            if number % _AT_ONCE == 0:
                yield

    def metrics(self) -> Iterator[Metric | None]:
        """All of them, by name."""
        metrics: dict[str, Metric] = {}
        for number, (key, (value, _)) in enumerate(self._values.items(), 1):
            name, sample, labels, text = json.loads(key)
            if name not in metrics:
                metrics[name] = Metric(name, text, self._types[key])
            metrics[name].add_sample(sample, labels, value)
            if number % _AT_ONCE == 0:
                yield None
        for _, metric in sorted(metrics.items()):
            if metric.type == "histogram":
                metric.samples = _cumulated(metric)
            yield metric


def _cumulated(histogram: Metric) -> list[Sample]:
    """Files keep of each bucket what is in it and in none before; a scraper gets running sums, and
    the count that they end with."""
    children: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in histogram.samples:
        child = tuple(label for label in sample.labels.items() if label[0] != "le")
        value = sample.value
        if "le" in sample.labels:  # they come in the order in which they were made: rising
            value = counts[child] = counts.get(child, 0.0) + value
        children.setdefault(child, []).append(sample._replace(value=value))
    for child, count in counts.items():
        children[child].append(Sample(f"{histogram.name}_count", dict(child), count))
    return [sample for samples in children.values() for sample in samples]
