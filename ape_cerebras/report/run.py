"""The exchanges of a run, added up in constant memory."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import METRICS, PARTS, Batch, Floats, columns_of
from .objectives import Objective
from .over_time import Timeline, ttft_bins, ttft_edges
from .sketches import COARSE_BINS, Sketch, weighted_sketch

__all__ = ("OTHERS", "Group", "Run")

OTHERS = "(others)"
_MAX_GROUPS = 100  # of each kind; later ones are added up as one
_SLOWEST = 20
_SAMPLE, _GROUP_SAMPLE = 2000, 150  # points of a plot
_PROMPT_SIZES = 24  # binary logarithms of a prompt's tokens
_COUNTED = ("outcome", "connection", "finish_reason")
_SUMS = (
    *("requests", "turns", "failed", "prompt_tokens", "completion_tokens", "cached_tokens"),
    *("reasoning_tokens", "reserved_tokens", "used_of_reserved", "cost_usd", "no_cost"),
    *("streamed_tokens", "generation_seconds", "retried", "attempts", "usage_estimated"),
    *("usage_missing", "lagged"),
)
_OF_GROUPS = ("ttft", "ttft_derived", "total", "tokens_per_second", "pause")


class _Sample:
    """So many points of all, each with the same chance."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(1)
        self._drawn = np.empty((0, 3))

    def add(self, starts: Floats, values: Floats) -> None:
        drawn = np.column_stack((self._random.random(len(starts)), starts, values))
        drawn = np.concatenate((self._drawn, drawn))
        self._drawn = drawn[np.argsort(drawn[:, 0])[: self._size]]

    @property
    def points(self) -> Floats:
        """Begin and value of each."""
        return self._drawn[:, 1:]


class Group:
    """The exchanges with one value of a label. ``chains``: they are of one agent or session, whose
    next request waits for the last one's response."""

    def __init__(self, names: tuple[str, ...], *, chains: bool) -> None:
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.finishes: Counter[str] = Counter()
        self.sketches = {name: Sketch(COARSE_BINS) for name in names}
        self.begin, self.end = math.inf, -math.inf
        self.sample = _Sample(_GROUP_SAMPLE)
        self._chains = chains
        self._ended_at = math.nan

    def add(self, columns: dict[str, Floats], batch: Batch, chosen: NDArray[Any]) -> None:
        """Add the chosen exchanges of a batch, but for their sums."""
        starts, ends = columns["start"][chosen], columns["end"][chosen]
        self.begin = min(self.begin, float(starts.min()))
        self.end = max(self.end, float(ends.max()))
        self.finishes.update(filter(None, batch.labels["finish_reason"][chosen]))
        for name, sketch in self.sketches.items():
            if name != "pause":
                sketch.add(columns[name][chosen])
        if self._chains:
            pauses = starts - np.concatenate(([self._ended_at], ends[:-1]))
            self.sketches["pause"].add(pauses[pauses > 0])
            self._ended_at = float(ends[-1])
            self.sample.add(starts, columns["felt"][chosen])

    def summary(self) -> dict[str, Any]:
        sketches = {name: sketch.summary() for name, sketch in self.sketches.items()}
        seconds = self.end - self.begin
        return {
            **self.sums,
            "seconds": seconds,
            "finish_reasons": dict(self.finishes),
            **sketches,
        }


class Run:
    """The sum of all batches; ``window`` in seconds is the least width of a stretch of time."""

    def __init__(self, window: float, kinds: tuple[str, ...], objectives: list[Objective]) -> None:
        self.timeline = Timeline(window)
        self.objectives = objectives
        self.begin, self.end = math.inf, -math.inf
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
        self.errors: Counter[tuple[str, ...]] = Counter()
        """By outcome, upstream's status and code, and the cause."""
        self.sketches = {name: Sketch() for name in METRICS}
        self.groups: dict[str, dict[str, Group]] = {kind: {} for kind in (*kinds, "run_id")}
        self.by_prompt = np.zeros((_PROMPT_SIZES, len(ttft_edges()) - 1), dtype=np.int64)
        """TTFT by the binary logarithm of the prompt's tokens."""
        self.slowest: list[tuple[float, bytes]] = []
        self.sample = _Sample(_SAMPLE)
        self.good = 0
        self._parts = {name: weighted_sketch() for name in ("count", *PARTS)}

    @property
    def seconds(self) -> float:
        """From the begin of the first exchange to the end of the last."""
        return max(self.end - self.begin, 1e-3)

    def add(self, batch: Batch) -> None:
        """Add exchanges, in the order in which they ended."""
        columns = columns_of(batch)
        self.begin = min(self.begin, float(columns["start"].min()))
        self.end = max(self.end, float(columns["end"].max()))
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
        for kind in self.groups:
            self._add_groups(kind, columns, batch)
        self.timeline.add(columns, batch)
        self._add_points(columns, batch)
        self._add_good(columns, batch)

    def _add_parts(self, columns: dict[str, Floats]) -> None:
        chosen = ~np.isnan(columns["ttft"]) & ~np.isnan(columns["upstream_ttft"])
        for name, sums in self._parts.items():
            weights = np.ones(int(chosen.sum())) if name == "count" else columns[name][chosen]
            sums.fill(columns["ttft"][chosen], weight=weights)

    def _add_groups(self, kind: str, columns: dict[str, Floats], batch: Batch) -> None:
        labels = batch.labels[kind]
        named = {value: self._group_name(kind, value) for value in dict.fromkeys(labels)}
        codes = {name: code for code, name in enumerate(dict.fromkeys(named.values()))}
        code_of = {value: codes[name] for value, name in named.items()}
        numbers = np.fromiter(map(code_of.__getitem__, labels), dtype=np.int64, count=len(labels))
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(len(codes) + 1))
        groups = [self.groups[kind][name] for name in codes]
        for name in _SUMS:
            sums = np.bincount(numbers, np.nan_to_num(columns[name]), len(codes))
            for group, value in zip(groups, sums.tolist(), strict=True):
                group.sums[name] += value
        for group, low, high in zip(groups, bounds[:-1], bounds[1:], strict=True):
            group.add(columns, batch, order[low:high])

    def _group_name(self, kind: str, value: str) -> str:
        """The name of the group that has a label's value, which is there then."""
        groups = self.groups[kind]
        name = value if value in groups or len(groups) < _MAX_GROUPS else OTHERS
        if name not in groups:
            names = tuple(METRICS) if kind == "run_id" else _OF_GROUPS
            chains = kind in ("agent_id", "session_id") and name not in ("", OTHERS)
            groups[name] = Group(names, chains=chains)
        return name

    def _add_points(self, columns: dict[str, Floats], batch: Batch) -> None:
        felt, bins = columns["felt"], ttft_bins(columns["felt"])
        prompts = np.clip(np.log2(np.maximum(1, columns["prompt_tokens"])), 0, _PROMPT_SIZES - 1)
        timed = ~np.isnan(felt) & (columns["prompt_tokens"] > 0)
        np.add.at(self.by_prompt, (prompts[timed].astype(np.int64), bins[timed]), 1)
        timed = ~np.isnan(felt)
        self.sample.add(columns["start"][timed], felt[timed])
        numbers = np.flatnonzero(timed)
        most = numbers[np.argsort(felt[numbers])[-_SLOWEST:]]
        found = [(float(felt[number]), batch.texts[number]) for number in most]
        self.slowest = sorted(self.slowest + found, key=lambda pair: -pair[0])[:_SLOWEST]

    def _add_good(self, columns: dict[str, Floats], batch: Batch) -> None:
        good = batch.labels["outcome"] == "completed"
        for objective in self.objectives:
            if objective.quantile is not None:
                values = columns[objective.metric]
                good &= np.isnan(values) | objective.is_met(values)
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
        """The value that an objective is about, None where there are too few requests for it, and
        whether it is met; what is not known is not met."""
        if objective.quantile is None:
            value = self.sums["failed"] / (self.sums["requests"] or 1)
            return value, bool(objective.is_met(value))
        sketch = self.sketches[objective.metric]
        if not sketch.count or sketch.interval(objective.quantile) is None:
            return None, False
        quantile = objective.quantile
        if objective.metric == "tokens_per_second":  # the slow ones
            quantile = 1 - quantile
        value = sketch.quantile(quantile)
        return value, bool(objective.is_met(value))
