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
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from typing import Protocol

from prometheus_client import CollectorRegistry, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from .place import Place

__all__ = ("STEM", "AllWorkers", "Source", "forget_worker", "render", "share_values")

STEM = "cerebras_proxy"

_OPENMETRICS = "application/openmetrics-text"
_ACCEPTS_OPENMETRICS = re.compile(
    # A weight of 0 is a refusal (RFC 9110 section 12.4.2).
    rb"(?:^|,)\s*application/openmetrics-text\s*(?=[;,]|$)(?![^,]*;\s*q=0(?:\.0*)?\s*(?:[;,]|$))",
    re.IGNORECASE,
)
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


class AllWorkers:
    """What all workers count, in the order of its names, and how the workers are."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def collect(self) -> Iterator[Metric | None]:
        sums = _Sums()
        for path in _files_in(self._place.metrics):
            with suppress(FileNotFoundError):  # of a worker that has just been forgotten
                yield from sums.add(path)
        yield from sums.metrics()
        board = self._place.board
        yield GaugeMetricFamily(f"{STEM}_workers_up", "Workers that serve", value=board.up)
        configured, text = f"{STEM}_workers_configured", "Workers there should be"
        yield GaugeMetricFamily(configured, text, value=board.workers)
        restarts, text = f"{STEM}_worker_restarts", "Workers that ended and were replaced"
        yield CounterMetricFamily(restarts, text, value=board.restarts)


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
