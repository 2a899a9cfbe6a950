"""Distributions of constant size, and the statistics of them.

Values go into histograms of ``boost_histogram`` with logarithmic bins, 0.28 % wide, as
HdrHistogram's are: the rank of a value is exact, the value is off by less than a bin. Why this one:
it takes arrays at 10 ns for each value, where PyPI's ``hdrhistogram``, ``ddsketch`` and ``tdigest``
take one Python call for each; it is deterministic, where KLL and REQ sketches draw lots; and its
counts are all that order statistics and a bootstrap need.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import boost_histogram as bh
import numpy as np
from numpy.typing import NDArray

from .columns import Floats

__all__ = (
    "COARSE_BINS",
    "LEAST_RUNS",
    "QUANTILES",
    "Sketch",
    "difference",
    "difference_of_runs",
    "needed",
    "weighted_sketch",
)

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
COARSE_BINS = 2048  # 1.1 % wide
LEAST_RUNS = 5
"""Runs on each side from which on runs are compared, and no longer the requests of all."""

_CONFIDENCE = 0.95
_LOW, _HIGH = 1e-6, 1e4  # seconds, or tokens per second
_BINS = 8192
_DRAWS = 10_000  # of a bootstrap
_MAX_EXACT = 1000.0  # variance up to which the binomial distribution is summed up


class Sketch:
    """The distribution of values from 1 µs to 10,000 s; what is beyond counts as least or most."""

    def __init__(self, bins: int = _BINS) -> None:
        axis = bh.axis.Regular(bins, _LOW, _HIGH, transform=bh.axis.transform.log)
        self._histogram = bh.Histogram(axis, storage=bh.storage.Int64())
        self._edges = axis.edges
        self.count, self.sum = 0, 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, values: Floats) -> None:
        """Add values; NaN is none."""
        values = values[~np.isnan(values)]
        if len(values):
            self._histogram.fill(values)
            self.count += len(values)
            self.sum += float(values.sum())
            self.least = min(self.least, float(values.min()))
            self.most = max(self.most, float(values.max()))

    def at_ranks(self, ranks: NDArray[Any]) -> Floats:
        """The values of these ranks, from 1 to ``count``."""
        counts = self._histogram.values(flow=True)
        below = np.cumsum(counts)
        bins = np.searchsorted(below, ranks)
        inside = (ranks - (below[bins] - counts[bins]) - 0.5) / counts[bins]
        edges = np.concatenate(([_LOW], self._edges, [_HIGH]))
        values = edges[bins] * (edges[bins + 1] / edges[bins]) ** inside
        values = np.where(bins == 0, self.least, values)
        values = np.where(bins == len(counts) - 1, self.most, values)
        return np.clip(values, self.least, self.most)

    def quantile(self, quantile: float) -> float:
        """The least value that has this share of the values at or below it."""
        return float(self.at_ranks(np.array([_rank(quantile, self.count)]))[0])

    def interval(self, quantile: float) -> tuple[float, float] | None:
        """Where the quantile of the population lies with a confidence of 95 %, by order
        statistics. None where so few values do not show it."""
        ranks = _ranks(self.count, quantile)
        if ranks is None:
            return None
        low, high = self.at_ranks(np.array(ranks))
        return float(low), float(high)

    def bootstrap(self, quantile: float, random: np.random.Generator) -> Floats:
        """The quantile of 10,000 samples drawn from the values, with replacement. The rank of such
        a quantile has a beta distribution, so no sample has to be drawn."""
        rank = _rank(quantile, self.count)
        shares = random.beta(rank, self.count + 1 - rank, _DRAWS)
        return self.at_ranks(np.maximum(1, np.ceil(shares * self.count)))

    def curve(self) -> tuple[Floats, Floats]:
        """Quantiles and values for a plot, up to the last one that there are values for."""
        most = max(1.0, self.count)
        places = 1 - np.logspace(0, -math.log10(most), 200) if most > 1 else np.array([0.0])
        return places, self.at_ranks(np.maximum(1, np.ceil(places * self.count)))

    def summary(self) -> dict[str, Any]:
        """Its figures: every quantile with its interval, or how many values that needs."""
        if not self.count:
            return {"count": 0}
        quantiles: dict[str, Any] = {}
        for quantile in QUANTILES:
            interval = self.interval(quantile)
            if interval is None:
                figures: dict[str, Any] = {"value": None, "needs": needed(quantile)}
            else:
                figures = {"value": self.quantile(quantile), "interval": list(interval)}
            quantiles[f"p{100 * quantile:g}"] = figures
        mean = self.sum / self.count
        shown = {"count": self.count, "mean": mean, "min": self.least}
        return {**shown, "quantiles": quantiles, "max": self.most}


def weighted_sketch() -> Any:
    """A histogram of the same bins for sums by the size of something else."""
    axis = bh.axis.Regular(_BINS, _LOW, _HIGH, transform=bh.axis.transform.log)
    return bh.Histogram(axis, storage=bh.storage.Double())


def needed(quantile: float) -> int:
    """How many values it takes until the greatest is above the quantile with enough confidence."""
    return math.ceil(math.log((1 - _CONFIDENCE) / 2) / math.log(max(quantile, 1 - quantile)))


def _rank(quantile: float, count: int) -> int:
    """The product of 0.95 and 100 is more than 95 for a computer, and its rank is 95."""
    return max(1, math.ceil(round(quantile * count, 6)))


def _ranks(count: int, quantile: float) -> tuple[int, int] | None:
    """The ranks between which the quantile of the population lies: as many values are below it as
    a binomial distribution says (David and Nagaraja, Order Statistics, 7.1)."""
    if count < needed(quantile):
        return None
    mean, variance = count * quantile, count * quantile * (1 - quantile)
    if variance > _MAX_EXACT:
        margin = 1.959964 * math.sqrt(variance)
        return max(1, math.floor(mean - margin)), min(count, math.ceil(mean + margin) + 1)
    tail = (1 - _CONFIDENCE) / 2
    spread = 9 * math.sqrt(variance) + 9
    below = np.arange(max(0, math.floor(mean - spread)), min(count, math.ceil(mean + spread)) + 1)
    first, odds = int(below[0]), quantile / (1 - quantile)
    least = (
        math.lgamma(count + 1) - math.lgamma(first + 1) - math.lgamma(count - first + 1)
        + first * math.log(quantile) + (count - first) * math.log1p(-quantile)
    )  # fmt: skip
    steps = np.log((count - below[:-1]) / (below[:-1] + 1) * odds)
    cumulative = np.cumsum(np.exp(least + np.concatenate(([0.0], np.cumsum(steps)))))
    low = int(below[np.searchsorted(cumulative, tail, side="right")])
    high = int(below[np.searchsorted(cumulative, 1 - tail)]) + 1
    return (max(1, low), high) if high <= count else None


# Differences


def difference(ours: Sketch, others: Sketch, quantile: float) -> dict[str, Any] | None:
    """By how much another run's quantile differs, with the interval in which the difference lies
    with a confidence of 95 % (bootstrap). None where there are too few values."""
    if min(ours.count, others.count) < needed(quantile):
        return None
    random = np.random.default_rng(1)
    drawn = others.bootstrap(quantile, random) - ours.bootstrap(quantile, random)
    low, high = np.quantile(drawn, ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2))
    return _compared(ours.quantile(quantile), others.quantile(quantile), None, low, high)


def difference_of_runs(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any] | None:
    """By how much other runs differ, from one figure of each run, with the interval in which a
    shift lies with a confidence of 95 % or a little more. That is Hodges and Lehmann's: of all
    differences between one run and another the median, and the ranks that the exact distribution
    of Mann and Whitney's U leaves. None where there are too few runs."""
    if min(len(ours), len(others)) < LEAST_RUNS:
        return None
    between = np.sort(np.subtract.outer(np.array(others), np.array(ours)).ravel())
    ways = _ways(len(ours), len(others))
    below, tail = accumulate(ways), (1 - _CONFIDENCE) / 2 * sum(ways)
    cut = next(u for u, count in enumerate(below) if count > tail)
    low, high = between[cut - 1], between[-cut]
    middle = float(np.median(between))
    return _compared(float(np.median(ours)), float(np.median(others)), middle, low, high)


def _ways(ours: int, others: int) -> list[int]:
    """In how many orders of two samples the greater one is of a given side in 0, 1, … pairs: the
    coefficients of a Gaussian binomial."""
    ways = [1] + [0] * (ours * others)
    for size in range(1, ours + 1):
        for u in range(len(ways) - 1, others + size - 1, -1):
            ways[u] -= ways[u - others - size]
        for u in range(size, len(ways)):
            ways[u] += ways[u - size]
    return ways


def _compared(
    ours: float, others: float, value: float | None, low: float, high: float
) -> dict[str, Any]:
    value = others - ours if value is None else value
    differs = not low <= 0 <= high
    interval = [float(low), float(high)]
    return {"ours": ours, "other": others, "value": value, "interval": interval, "differs": differs}
