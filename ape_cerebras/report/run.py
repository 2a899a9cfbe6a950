"""The exchanges of a run, added up in constant memory, and the statistics of them.

Latencies go into histograms of ``boost_histogram`` with logarithmic bins, 0.28 % wide, as
HdrHistogram's are: the rank of a value is exact, the value is off by less than a bin. Why this one:
it takes arrays at 10 ns for each value, where PyPI's ``hdrhistogram``, ``ddsketch`` and ``tdigest``
take one Python call for each; it is deterministic, where KLL and REQ sketches draw lots; and its
counts are all that order statistics and a bootstrap need. Series over time have wider bins (3 %).
"""

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Any

import boost_histogram as bh
import numpy as np
from numpy.typing import NDArray

from .reader import METRICS, PARTS, Batch, Floats, Objective, columns_of

__all__ = ("QUANTILES", "Run", "Series", "Sketch", "difference", "percentiles")

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_CONFIDENCE = 0.95
_LOW, _HIGH = 1e-6, 1e4  # seconds, or tokens per second
_BINS, _GROUP_BINS = 8192, 2048
_MAX_GROUPS = 100  # of each kind; later ones are added up as one
_MAX_WINDOWS = 400  # more are merged by twos
_MAX_SPAN = 10_000  # windows of one request
_SLOWEST = 20
_SAMPLE = 2000  # points of a plot
_DRAWS = 10_000  # of a bootstrap
_WINDOW_AXIS = (1e-4, 1e3, 540)  # of a window's TTFT, 3 % a bin
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
        return float(self.at_ranks(np.array([math.ceil(quantile * self.count) or 1]))[0])

    def interval(self, quantile: float) -> tuple[float, float] | None:
        """Where the quantile of the population lies with a confidence of 95 %, by order
        statistics. None where so few values cannot tell."""
        ranks = _ranks(self.count, quantile)
        if ranks is None:
            return None
        low, high = self.at_ranks(np.array(ranks))
        return float(low), float(high)

    def bootstrap(self, quantile: float, random: np.random.Generator) -> Floats:
        """The quantile of 10,000 samples drawn from the values, with replacement. The rank of such
        a quantile has a beta distribution, so no sample has to be drawn."""
        rank = math.ceil(quantile * self.count) or 1
        shares = random.beta(rank, self.count + 1 - rank, _DRAWS)
        return self.at_ranks(np.maximum(1, np.ceil(shares * self.count)))

    def curve(self) -> tuple[Floats, Floats]:
        """Quantiles and values for a plot, up to the last one that can be told."""
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
                told: dict[str, Any] = {"value": None, "needs": needed(quantile)}
            else:
                told = {"value": self.quantile(quantile), "interval": list(interval)}
            quantiles[f"p{100 * quantile:g}"] = told
        mean = self.sum / self.count
        shown = {"count": self.count, "mean": mean, "min": self.least}
        return {**shown, "quantiles": quantiles, "max": self.most}


def needed(quantile: float) -> int:
    """How many values it takes until the greatest is above the quantile with enough confidence."""
    return math.ceil(math.log((1 - _CONFIDENCE) / 2) / math.log(max(quantile, 1 - quantile)))


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
    whole = math.lgamma(count + 1)
    weights = [
        whole - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(quantile) + (count - k) * math.log1p(-quantile)
        for k in map(int, below)
    ]  # fmt: skip
    cumulative = np.cumsum(np.exp(weights))
    low = int(below[np.searchsorted(cumulative, tail, side="right")])
    high = int(below[np.searchsorted(cumulative, 1 - tail)]) + 1
    return (max(1, low), high) if high <= count else None


def difference(ours: Sketch, others: Sketch, quantile: float) -> dict[str, Any] | None:
    """By how much another run's quantile differs, with the interval in which the difference lies
    with a confidence of 95 % (bootstrap). None where there are too few values."""
    if min(ours.count, others.count) < needed(quantile):
        return None
    random = np.random.default_rng(1)
    drawn = others.bootstrap(quantile, random) - ours.bootstrap(quantile, random)
    low, high = np.quantile(drawn, ((1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2))
    value = others.quantile(quantile) - ours.quantile(quantile)
    return {"value": value, "interval": [float(low), float(high)], "differs": not low <= 0 <= high}


class _Group:
    """The exchanges with one value of a label."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.finishes: Counter[str] = Counter()
        names = ("ttft", "ttft_derived", "total", "tokens_per_second", "pause")
        self.sketches = {name: Sketch(_GROUP_BINS) for name in names}
        self._ended_at = math.nan

    def add(self, columns: dict[str, Floats], batch: Batch, chosen: NDArray[Any]) -> None:
        for name in _SUMS:
            self.sums[name] += float(np.nansum(columns[name][chosen]))
        self.finishes.update(filter(None, batch.labels["finish_reason"][chosen]))
        ends = np.concatenate(([self._ended_at], batch.ends[chosen]))
        pauses = batch.starts[chosen] - ends[:-1]
        columns = {**columns, "pause": np.full(len(batch.ends), np.nan)}
        columns["pause"][chosen] = np.where(pauses > 0, pauses, np.nan)
        self._ended_at = float(ends[-1])
        for name, sketch in self.sketches.items():
            sketch.add(columns[name][chosen])

    def summary(self) -> dict[str, Any]:
        told = {name: sketch.summary() for name, sketch in self.sketches.items()}
        return {**self.sums, "finish_reasons": dict(self.finishes), **told}


_SUMS = (
    *("requests", "failed", "prompt_tokens", "completion_tokens", "cached_tokens"),
    *("reasoning_tokens", "reserved_tokens", "cost_usd", "no_cost", "streamed_tokens"),
    *("generation_seconds", "retried", "attempts", "usage_missing", "lagged"),
)


class _Window:
    """What a stretch of time shows in plots."""

    def __init__(self) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.outcomes: Counter[str] = Counter()
        self.ttft = np.zeros(_WINDOW_AXIS[2], dtype=np.int64)

    def take(self, other: "_Window") -> None:
        for name, value in other.sums.items():
            self.sums[name] += value
        self.outcomes.update(other.outcomes)
        self.ttft += other.ttft


class Run:
    """The sum of all batches; ``window`` in seconds is the least width of a stretch of time."""

    def __init__(self, window: float, kinds: tuple[str, ...], objectives: list[Objective]) -> None:
        self.window = window
        self.objectives = objectives
        self.begin, self.end = math.inf, -math.inf
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
        self.errors: Counter[tuple[str, ...]] = Counter()
        """By outcome, upstream's status and code, and the cause."""
        self.sketches = {name: Sketch() for name in METRICS}
        self.groups: dict[str, dict[str, _Group]] = {kind: {} for kind in kinds}
        self.windows: dict[int, _Window] = {}
        self.by_prompt = np.zeros((24, _WINDOW_AXIS[2]), dtype=np.int64)
        """TTFT by the binary logarithm of the prompt's tokens."""
        self.slowest: list[tuple[float, bytes]] = []
        self.points = np.empty((0, 3))
        """A sample of requests: a random number, begin, TTFT."""
        self.good = 0
        self._parts = {name: _part_sums() for name in ("count", *PARTS)}
        self._random = np.random.default_rng(1)

    @property
    def seconds(self) -> float:
        """From the begin of the first exchange to the end of the last."""
        return max(self.end - self.begin, 1e-3)

    def add(self, batch: Batch) -> None:
        """Add exchanges, in the order in which they ended."""
        columns = columns_of(batch)
        self.begin = min(self.begin, float(batch.starts.min()))
        self.end = max(self.end, float(batch.ends.max()))
        for name in _SUMS:
            self.sums[name] += float(np.nansum(columns[name]))
        for name, counter in self.counts.items():
            counter.update(filter(None, batch.labels[name]))
        failed = columns["failed"] > 0
        names = ("outcome", "upstream_status", "upstream_code", "cause")
        self.errors.update(zip(*(batch.labels[name][failed] for name in names), strict=True))
        for name, sketch in self.sketches.items():
            sketch.add(columns[name])
        self._add_parts(columns)
        self._add_groups(columns, batch)
        self._add_windows(columns, batch)
        self._add_slowest(columns, batch)
        self._add_good(columns, batch)

    def _add_parts(self, columns: dict[str, Floats]) -> None:
        chosen = ~np.isnan(columns["ttft"]) & ~np.isnan(columns["upstream_ttft"])
        for name, sums in self._parts.items():
            weights = np.ones(int(chosen.sum())) if name == "count" else columns[name][chosen]
            sums.fill(columns["ttft"][chosen], weight=weights)

    def _add_groups(self, columns: dict[str, Floats], batch: Batch) -> None:
        for kind, groups in self.groups.items():
            labels = batch.labels[kind]
            for value in dict.fromkeys(labels):
                named = value if value in groups or len(groups) < _MAX_GROUPS else "(others)"
                group = groups.setdefault(named, _Group())
                group.add(columns, batch, np.flatnonzero(labels == value))

    def _add_windows(self, columns: dict[str, Floats], batch: Batch) -> None:
        starts, ends = batch.starts, batch.ends
        felt, bins = columns["felt"], _window_bins(columns["felt"])
        first = np.floor(starts / self.window).astype(np.int64)
        last = np.ceil(ends / self.window).astype(np.int64) - 1
        for number in np.unique(first):
            window = self.windows.setdefault(int(number), _Window())
            chosen = first == number
            for name in _WINDOW_SUMS:
                window.sums[name] += float(np.nansum(columns[name][chosen]))
            window.outcomes.update(batch.labels["outcome"][chosen])
            timed = chosen & ~np.isnan(felt)
            window.ttft += np.bincount(bins[timed], minlength=_WINDOW_AXIS[2])
        spans = np.clip(last - first, 0, _MAX_SPAN)
        for step in range(int(spans.max()) + 1):  # who was in flight
            chosen = spans >= step
            numbers = first[chosen] + step
            inside = np.minimum(ends[chosen], (numbers + 1) * self.window)
            inside -= np.maximum(starts[chosen], numbers * self.window)
            for number in np.unique(numbers):
                window = self.windows.setdefault(int(number), _Window())
                window.sums["in_flight_seconds"] += float(inside[numbers == number].sum())
        prompts = np.clip(np.log2(np.maximum(1, columns["prompt_tokens"])), 0, 23)
        timed = ~np.isnan(felt) & (columns["prompt_tokens"] > 0)
        np.add.at(self.by_prompt, (prompts[timed].astype(np.int64), bins[timed]), 1)
        points = np.column_stack((self._random.random(len(starts)), starts, felt))
        self.points = np.concatenate((self.points, points[~np.isnan(felt)]))
        self.points = self.points[np.argsort(self.points[:, 0])[:_SAMPLE]]
        while len(self.windows) > _MAX_WINDOWS:
            self._widen()

    def _widen(self) -> None:
        self.window *= 2
        windows, self.windows = self.windows, {}
        for number, window in windows.items():
            self.windows.setdefault(number // 2, _Window()).take(window)

    def _add_slowest(self, columns: dict[str, Floats], batch: Batch) -> None:
        felt = columns["felt"]
        timed = np.flatnonzero(~np.isnan(felt))
        most = timed[np.argsort(felt[timed])[-_SLOWEST:]]
        found = [(float(felt[number]), batch.texts[number]) for number in most]
        self.slowest = sorted(self.slowest + found, key=lambda pair: -pair[0])[:_SLOWEST]

    def _add_good(self, columns: dict[str, Floats], batch: Batch) -> None:
        good = batch.labels["outcome"] == "completed"
        for objective in self.objectives:
            if objective.quantile is not None:
                values = columns[objective.metric]
                missed = ~np.array([objective.is_met(value) for value in values], dtype=bool)
                good &= ~(missed & ~np.isnan(values))
        self.good += int(good.sum())

    def parts(self, share: float = 1.0) -> dict[str, float]:
        """The means of the parts of TTFT, of the slowest ``share`` of requests; whole bins of TTFT,
        so a little more than that."""
        counts = self._parts["count"].values(flow=True)
        behind = np.cumsum(counts[::-1])[::-1]  # those in this bin and above
        wanted = max(1.0, share * behind[0])
        first = int(np.flatnonzero(behind >= wanted)[-1]) if behind[0] else 0
        number = float(counts[first:].sum())
        sums = {
            name: float(each.values(flow=True)[first:].sum()) for name, each in self._parts.items()
        }
        return {**{name: sums[name] / (number or 1) for name in PARTS}, "count": number}

    def met(self, objective: Objective) -> tuple[float | None, bool]:
        """The value that an objective is about, None where there are too few requests to tell it,
        and whether it is met; what cannot be told is not met."""
        if objective.quantile is None:
            value = self.sums["failed"] / (self.sums["requests"] or 1)
            return value, objective.is_met(value)
        sketch = self.sketches[objective.metric]
        if not sketch.count or sketch.interval(objective.quantile) is None:
            return None, False
        quantile = objective.quantile
        if objective.metric == "tokens_per_second":  # the slow ones
            quantile = 1 - quantile
        return sketch.quantile(quantile), objective.is_met(sketch.quantile(quantile))


_COUNTED = ("outcome", "connection", "finish_reason")
_WINDOW_SUMS = ("requests", "failed", "prompt_tokens", "completion_tokens", "cost_usd")


def percentiles(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Percentiles of a window's TTFT, as far as it has enough values."""
    below, low, high = np.cumsum(counts), *_WINDOW_AXIS[:2]
    told: dict[str, float | None] = {}
    for quantile in (0.5, 0.95, 0.99):
        place = np.searchsorted(below, math.ceil(quantile * below[-1])) + 0.5
        value = low * (high / low) ** (place / len(counts))
        told[f"p{100 * quantile:g}"] = value if below[-1] >= needed(quantile) else None
    return told


class Series:
    """The windows of a run in their order, as columns."""

    def __init__(self, run: Run) -> None:
        numbers, self.windows = zip(*sorted(run.windows.items()), strict=True)
        self.width = run.window
        begins = [number * run.window for number in numbers]
        quantiles = [percentiles(window.ttft) for window in self.windows]
        self.days = np.array(begins) / 86_400  # since the epoch: matplotlib's dates
        self.names = [f"{datetime.fromtimestamp(begin, UTC):%H:%M:%S}" for begin in begins]
        self.quantiles = {
            name: np.array([told[name] for told in quantiles], dtype=np.float64)
            for name in quantiles[0]
        }
        within = [min(run.end, b + run.window) - max(run.begin, b) for b in begins]
        self.seconds = np.maximum(within, 1e-3)  # less of the first and the last
        self.in_flight = self.per_second("in_flight_seconds")
        names = dict.fromkeys(name for window in self.windows for name in window.outcomes)
        self.outcomes = {
            name: np.array([window.outcomes[name] for window in self.windows]) / self.seconds
            for name in names
        }

    def per_second(self, name: str) -> Floats:
        return np.array([window.sums[name] for window in self.windows]) / self.seconds


def _window_bins(values: Floats) -> NDArray[np.int64]:
    low, high, count = _WINDOW_AXIS
    places = np.log(np.maximum(np.nan_to_num(values), low) / low) / math.log(high / low)
    return np.clip(places * count, 0, count - 1).astype(np.int64)


def _part_sums() -> Any:
    axis = bh.axis.Regular(_BINS, _LOW, _HIGH, transform=bh.axis.transform.log)
    return bh.Histogram(axis, storage=bh.storage.Double())
