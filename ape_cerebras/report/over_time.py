"""Series over time: windows of equal width, doubled until there are at most 400 of them.

A window has sums, outcomes and a histogram of TTFTs whose bins are 3 % wide: that is enough for the
percentiles of a plot and for a heat map.
"""

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import PARTS, Batch, Floats
from .sketches import needed

__all__ = ("Series", "Timeline", "Window", "percentiles", "ttft_bins", "ttft_edges")

_MAX_WINDOWS = 400
_MAX_SPAN = 10_000  # windows of one request
_AXIS = (1e-4, 1e3, 540)  # seconds, and bins: of a window's TTFT
_SUMS = (
    *("requests", "failed", "prompt_tokens", "completion_tokens", "cost_usd"),
    *("split", *PARTS),
)


class Window:
    """What a stretch of time shows in plots."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.outcomes: Counter[str] = Counter()
        self.ttft = np.zeros(_AXIS[2], dtype=np.int64)

    def take(self, other: "Window") -> None:
        for name, value in other.sums.items():
            self.sums[name] += value
        self.outcomes.update(other.outcomes)
        self.ttft += other.ttft


class Timeline:
    """The windows of a run; ``width`` in seconds is at first the least one."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.windows: dict[int, Window] = {}

    def add(self, columns: dict[str, Floats], batch: Batch) -> None:
        felt, bins = columns["felt"], ttft_bins(columns["felt"])
        split = ~np.isnan(columns["ttft"]) & ~np.isnan(columns["upstream_ttft"])
        parts = {name: np.where(split, columns[name], 0.0) for name in PARTS}
        columns = {**columns, **parts, "split": split.astype(np.float64)}
        first = np.floor(columns["start"] / self.width).astype(np.int64)
        for number in np.unique(first):
            window = self.windows.setdefault(int(number), Window())
            chosen = first == number
            for name in _SUMS:
                window.sums[name] += float(np.nansum(columns[name][chosen]))
            window.outcomes.update(batch.labels["outcome"][chosen])
            timed = chosen & ~np.isnan(felt)
            window.ttft += np.bincount(bins[timed], minlength=_AXIS[2])
        self._add_in_flight(first, columns["start"], columns["end"])
        while len(self.windows) > _MAX_WINDOWS:
            self._widen()

    def _add_in_flight(self, first: NDArray[np.int64], starts: Floats, ends: Floats) -> None:
        last = np.ceil(ends / self.width).astype(np.int64) - 1
        spans = np.clip(last - first, 0, _MAX_SPAN)
        for step in range(int(spans.max()) + 1):
            chosen = spans >= step
            numbers = first[chosen] + step
            inside = np.minimum(ends[chosen], (numbers + 1) * self.width)
            inside -= np.maximum(starts[chosen], numbers * self.width)
            for number in np.unique(numbers):
                window = self.windows.setdefault(int(number), Window())
                window.sums["in_flight_seconds"] += float(inside[numbers == number].sum())

    def _widen(self) -> None:
        self.width *= 2
        windows, self.windows = self.windows, {}
        for number, window in windows.items():
            self.windows.setdefault(number // 2, Window()).take(window)


class Series:
    """The windows of a run in their order, as columns; those between them in which nothing happened
    are there, too, unless the clock was set and they are too many."""

    def __init__(self, timeline: Timeline, begin: float, end: float) -> None:
        found, self.width = timeline.windows, timeline.width
        low, high = min(found), max(found)
        all_of_them = range(low, high + 1) if high - low < 2 * _MAX_WINDOWS else sorted(found)
        numbers = [*all_of_them]
        self.windows = [found.get(number, Window()) for number in numbers]
        begins = [number * self.width for number in numbers]
        quantiles = [percentiles(window.ttft) for window in self.windows]
        self.days = np.array(begins) / 86_400  # since the epoch: matplotlib's dates
        self.names = [f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}" for at in begins]
        self.quantiles = {
            name: np.array([each[name] for each in quantiles], dtype=np.float64)
            for name in quantiles[0]
        }
        within = [min(end, at + self.width) - max(begin, at) for at in begins]
        self.seconds = np.maximum(within, 1e-3)  # less of the first and the last
        self.in_flight = self.per_second("in_flight_seconds")
        names = dict.fromkeys(name for window in self.windows for name in window.outcomes)
        self.outcomes = {
            name: np.array([window.outcomes[name] for window in self.windows]) / self.seconds
            for name in names
        }

    def sums(self, name: str) -> Floats:
        return np.array([window.sums[name] for window in self.windows])

    def per_second(self, name: str) -> Floats:
        return np.asarray(self.sums(name) / self.seconds)

    def part(self, name: str) -> Floats:
        """The mean of a part of TTFT; 0 where no TTFT was measured."""
        return np.asarray(self.sums(name) / np.maximum(1, self.sums("split")))

    def counts(self) -> NDArray[np.int64]:
        """How many requests had a TTFT of each bin, window by window."""
        return np.array([window.ttft for window in self.windows])


def percentiles(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Percentiles of a window's TTFT, as far as it has enough values."""
    below, edges = np.cumsum(counts), ttft_edges()
    found: dict[str, float | None] = {}
    for quantile in (0.5, 0.95, 0.99):
        place = int(np.searchsorted(below, max(1, math.ceil(round(quantile * below[-1], 6)))))
        enough = below[-1] >= needed(quantile)
        middle = math.sqrt(edges[place] * edges[place + 1]) if enough else None
        found[f"p{100 * quantile:g}"] = middle
    return found


def ttft_bins(values: Floats) -> NDArray[np.int64]:
    """The bin of each TTFT; of NaN the first."""
    low, high, count = _AXIS
    places = np.log(np.maximum(np.nan_to_num(values), low) / low) / math.log(high / low)
    return np.clip(places * count, 0, count - 1).astype(np.int64)


def ttft_edges() -> Any:
    """The bounds of all bins, in seconds."""
    return np.geomspace(*_AXIS[:2], _AXIS[2] + 1)
