"""The state that the workers of one service share: their metrics, and a scoreboard.

Workers keep their metrics in files that all of them can read (prometheus_client's multiprocess
mode), so that any of them can be scraped for all. Files are named by the worker's number and not by
its process: the successor of a dead worker goes on counting where that left off, and there are no
more files than workers, however often one is started. ``GapCounts`` is the histogram that is kept
as two counters, in such files or in one process.
"""

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from glob import glob
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, values
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.utils import floatToGoString

from .metric_table import METRICS, STEM, WORKER_METRICS, MetricRow

__all__ = (
    "GAPS",
    "GapCounts",
    "Scoreboard",
    "SharedProcessMetrics",
    "Values",
    "WorkerSlot",
    "WorkerState",
    "collect_workers",
    "forget_worker",
    "labelled",
    "make_metric",
    "share_values",
    "values_by",
)

_WORD = 8  # bytes
GAPS = next(row for row in METRICS if row.name == "chunk_gap_seconds")
_GAP_COUNTS, _GAP_SUMS = f"{STEM}chunk_gap_counts", f"{STEM}chunk_gap_sums"
Values = Callable[[], AbstractContextManager[None]]
"""Where metrics made within such a context keep their values."""


class WorkerState(NamedTuple):
    """A worker as others see it: how many connections it has open, and a number that goes on with
    its event loop."""

    connections: int
    ticks: int


class Scoreboard:
    """Memory that the parent and its workers share; to be made before the workers are started.

    It holds whole numbers, each written by one process at a time and read by all. A number is one
    machine word, so that nobody reads half of one. ``workers`` is how many there should be.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        words = memoryview(mmap.mmap(-1, _WORD * (3 + 4 * workers))).cast("q")
        self._of_all, of_each = words[:3], words[3:]
        self._up, self._open = of_each[:workers], of_each[workers : 2 * workers]
        self._ticks, self._accepts = of_each[2 * workers : 3 * workers], of_each[3 * workers :]

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
        self._up[number - 1] = self._accepts[number - 1] = self._of_all[2] = 1

    def mark_down(self, number: int) -> None:
        """Also called by the parent, for a worker that has died."""
        self._up[number - 1] = self._accepts[number - 1] = self._open[number - 1] = 0

    def set_accepting(self, number: int, accepts: bool) -> None:
        """Whether a worker that serves accepts connections: not while it drains, or cannot."""
        self._accepts[number - 1] = accepts

    def tick(self, number: int) -> None:
        """A worker's event loop goes round."""
        self._ticks[number - 1] += 1

    @property
    def ticks(self) -> tuple[tuple[int, int], ...]:
        """Of each worker that serves, by its number."""
        return tuple((at + 1, self._ticks[at]) for at, up in enumerate(self._up) if up)

    def set_connections(self, number: int, connections: int) -> None:
        self._open[number - 1] = connections

    def connections(self, number: int) -> int:
        return self._open[number - 1]

    def others(self, number: int) -> dict[int, WorkerState]:
        """The other workers that accept connections, by their numbers."""
        accepting = [at for at, accepts in enumerate(self._accepts) if accepts and at != number - 1]
        return {at + 1: WorkerState(self._open[at], self._ticks[at]) for at in accepting}


@dataclass(frozen=True)
class WorkerSlot:
    """One worker's number, and the state that it shares with the others."""

    number: int  # from 1; the successor of a worker that died has the same
    scoreboard: Scoreboard
    directory: str  # of the files that hold the workers' metrics


class SharedProcessMetrics:
    """What the library's collector finds out of this process, kept where the metrics of all workers
    are: gauges are summed over the workers that live (the start is the earliest one's), and the CPU
    time of those that have ended stays counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._collector = ProcessCollector(registry=None)
        self._metrics: dict[str, Counter | Gauge] = {}
        self._cpu_seconds = 0.0
        for family in self._collector.collect():
            name, meaning = family.name, family.documentation
            if family.type == "counter":
                self._metrics[name] = Counter(name, meaning, registry=registry)
            elif "start_time" in name:
                self._metrics[name] = Gauge(
                    name, meaning, registry=registry, multiprocess_mode="livemin"
                )
            else:
                self._metrics[name] = Gauge(
                    name, meaning, registry=registry, multiprocess_mode="livesum"
                )
        self.refresh()

    def refresh(self) -> None:
        """Read the present values."""
        for family in self._collector.collect():
            metric, value = self._metrics[family.name], family.samples[0].value
            if isinstance(metric, Gauge):
                metric.set(value)
            else:
                metric.inc(value - self._cpu_seconds)
                self._cpu_seconds = value


def share_values(directory: str, number: int) -> None:
    """Have all metrics that this process makes from now on keep their values in ``directory``.

    The whole process, since that is how the library knows the mode: where others set it in the
    environment before the import, a worker sets it here.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def forget_worker(directory: str, number: int) -> None:
    """Remove the gauges of a dead worker that hold only while it lives; its counters stay."""
    mark_process_dead(number, directory)  # type: ignore[no-untyped-call]


def collect_workers(slot: WorkerSlot) -> Iterator[Metric]:
    """The metrics of all workers, summed up, in the order of their names; and the workers' state.

    A file that a worker is about to make is empty, and the library cannot read it
    (prometheus/client_python#1199).
    """
    files = []
    for path in glob(os.path.join(slot.directory, "*.db")):
        with suppress(FileNotFoundError):  # of a worker that has just been forgotten
            if os.stat(path).st_size:
                files.append(path)
    merged = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
    yield from sorted(merged, key=attrgetter("name"))
    scoreboard = slot.scoreboard
    numbers = scoreboard.up, scoreboard.workers, scoreboard.restarts
    for row, value in zip(WORKER_METRICS, numbers, strict=True):
        family = CounterMetricFamily if row.type == "counter" else GaugeMetricFamily
        yield family(STEM + row.name, row.meaning, value=value)


def labelled(values: Values, metric: Any, *labels: str) -> Any:
    """The child of a metric, whose values are kept as ``values`` has it."""
    with values():
        return metric.labels(*labels)


@contextmanager
def values_by(make: Callable[..., Any]) -> Iterator[None]:
    """Have the values of metrics that are made within made by ``make``.

    The library goes by PROMETHEUS_MULTIPROC_DIR alone, for the whole process: in a variable of
    somebody else's, a directory that is not there ends the process, and one that is there gets our
    series among others', without exemplars.
    """
    before = values.ValueClass
    values.ValueClass = make
    try:
        yield
    finally:
        values.ValueClass = before


def make_metric(row: MetricRow, buckets: Mapping[str, tuple[float, ...]], registry: Any) -> Any:
    name = STEM + row.name
    if row.type == "counter":
        return Counter(name, row.meaning, row.labels, registry=registry)
    if row.type == "gauge":
        mode = row.mode
        return Gauge(name, row.meaning, row.labels, registry=registry, multiprocess_mode=mode)
    bounds = buckets[row.buckets]
    return Histogram(name, row.meaning, row.labels, registry=registry, buckets=bounds)


class GapCounts:
    """A histogram whose observations arrive counted by bucket.

    prometheus_client observes one value at a time, 1.3 µs each, and a stream has thousands of gaps.
    So two counters hold counts and sums, also over several workers, and ``merge`` makes the
    histogram from them.
    """

    def __init__(
        self, bounds: tuple[float, ...], registry: CollectorRegistry, values: Values
    ) -> None:
        self._bounds = [*map(floatToGoString, bounds), "+Inf"]
        self._counts = Counter(_GAP_COUNTS, "By bucket", ("model", "bucket"), registry=registry)
        self._sums = Counter(_GAP_SUMS, "Seconds", ("model",), registry=registry)
        self._child: Callable[..., Any] = cache(partial(labelled, values))

    def add(self, model: str, counts: list[int], total: float) -> None:
        for bucket, count in enumerate(counts):
            if count:
                self._child(self._counts, model, str(bucket)).inc(count)
        self._child(self._sums, model).inc(total)

    def merge(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """``families`` with the histogram in place of the counters."""
        counts: dict[str, list[float]] = {}
        sums: dict[str, float] = {}
        for family in families:
            if family.name not in (_GAP_COUNTS, _GAP_SUMS):
                yield family
                continue
            for name, labels, value, *_ in family.samples:
                if name == f"{_GAP_COUNTS}_total":
                    of_model = counts.setdefault(labels["model"], [0.0] * len(self._bounds))
                    of_model[int(labels["bucket"])] = value
                elif name == f"{_GAP_SUMS}_total":
                    sums[labels["model"]] = value
        histogram = HistogramMetricFamily(STEM + GAPS.name, GAPS.meaning, labels=GAPS.labels)
        for model, of_model in counts.items():
            buckets = [*zip(self._bounds, accumulate(of_model), strict=True)]
            histogram.add_metric([model], buckets, sums.get(model, 0.0))
        yield histogram
