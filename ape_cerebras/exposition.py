"""The text that a scraper gets: of the one process there is, or the sum over all workers.

Workers keep their values in files that all of them can read (prometheus_client's multiprocess
mode), so that any of them answers for all. A worker's files are named by its number and not by its
process: one that takes a dead one's place goes on counting where that left off, and there are no
more files than workers, however often one is started.
"""

import os
import re
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from .place import Place

__all__ = ("STEM", "AllWorkers", "forget_worker", "render", "share_values")

STEM = "cerebras_proxy"

_OPENMETRICS = "application/openmetrics-text"
_ACCEPTS_OPENMETRICS = re.compile(
    # A weight of 0 is a refusal (RFC 9110 section 12.4.2).
    rb"(?:^|,)\s*application/openmetrics-text\s*(?=[;,]|$)(?![^,]*;\s*q=0(?:\.0*)?\s*(?:[;,]|$))",
    re.IGNORECASE,
)


class _WithoutCreated(Collector):
    """Metrics without the ``_created`` samples, which would double their series."""

    def __init__(self, source: Collector | CollectorRegistry) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def render(source: Collector | CollectorRegistry, accept: bytes) -> tuple[bytes, str]:
    """The text for a scraper, and its content type; OpenMetrics where it accepts that."""
    # The library repeats parts of the header it is given, so it is given one of ours.
    encode, content_type = choose_encoder(
        f"{_OPENMETRICS}; version=1.0.0" if _ACCEPTS_OPENMETRICS.search(accept) else ""
    )
    return encode(_WithoutCreated(source)), content_type


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


class AllWorkers(Collector):
    """What all workers count, in the order of its names, and how the workers are."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def collect(self) -> Iterator[Metric]:
        files = _files_in(self._place.metrics)
        merged = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        yield from sorted(merged, key=lambda metric: metric.name)
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
