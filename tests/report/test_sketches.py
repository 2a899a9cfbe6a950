"""Sketches of distributions and their statistics, against NumPy on the raw values."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
import orjson
import pytest
from report_lines import lines_of, run_of, values_of

from ape_cerebras.report.sketches import (
    QUANTILES,
    Sketch,
    _ranks,
    _ways,
    difference,
    difference_of_runs,
    needed,
)

EXACT = 0.003  # a bin's width


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    sketch.add(np.array(values))
    return sketch


# Quantiles


@pytest.mark.parametrize("name", ["ttft", "upstream_ttft", "proxy_ttft", "total"])
def test_quantiles_are_those_of_the_raw_lines(name: str, raw_lines: Sequence[bytes]) -> None:
    key = {"total": "total_time_seconds"}.get(name, f"{name}_seconds")
    completed = [line for line in raw_lines if orjson.loads(line)["outcome"] == "completed"]
    values = values_of(completed, key)
    sketch = run_of(raw_lines).sketches[name]
    assert sketch.count == len(values)
    assert sketch.sum == pytest.approx(values.sum())
    assert (sketch.least, sketch.most) == (values.min(), values.max())
    for quantile in QUANTILES:
        expected = np.quantile(values, quantile, method="inverted_cdf")
        assert sketch.quantile(quantile) == pytest.approx(expected, rel=EXACT)


def test_values_beyond_the_bins_are_least_or_most() -> None:
    sketch = sketch_of([0.0, 0.0, 1.0, 20_000.0, np.nan])
    assert [sketch.quantile(q) for q in (0.1, 0.5, 1.0)] == [0.0, 0.0, 20_000.0]
    assert sketch.quantile(0.75) == pytest.approx(1.0, rel=EXACT)
    assert sketch_of([]).summary() == {"count": 0}


def chance_between(count: int, quantile: float, low: int, high: int) -> float:
    """That the quantile of a population lies between two order statistics of a sample: that as many
    values are below it. From the definition, with whole numbers."""
    return sum(
        math.comb(count, below) * quantile**below * (1 - quantile) ** (count - below)
        for below in range(low, high)
    )


@pytest.mark.parametrize("count", [6, 37, 72, 100, 400])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_an_interval_holds_the_quantile_in_95_of_100_cases(count: int, quantile: float) -> None:
    values = [1.0 + number / 10 for number in range(count)]  # apart by more than a bin
    interval = sketch_of(values).interval(quantile)
    if interval is None:
        assert quantile**count > 0.025 or 0.5**count > 0.025
        assert count < needed(quantile)
        return
    low, high = (int(np.argmin(np.abs(np.array(values) - bound))) + 1 for bound in interval)
    assert chance_between(count, quantile, low, high) >= 0.95
    # No bound can be one nearer.
    assert chance_between(count, quantile, 0, low + 1) > 0.025
    assert chance_between(count, quantile, high - 1, count + 1) > 0.025


def test_intervals_of_many_values_are_like_those_of_few() -> None:
    """Above a variance the normal distribution takes the place of the binomial."""
    for count in (3999, 4001, 100_000):
        low, high = _ranks(count, 0.5) or (0, 0)
        assert count / 2 - low == pytest.approx(0.98 * math.sqrt(count), abs=2)
        assert high - count / 2 == pytest.approx(0.98 * math.sqrt(count), abs=3)


def test_too_few_values_tell_how_many_are_needed() -> None:
    assert [needed(q) for q in (0.5, 0.95, 0.99, 0.999)] == [6, 72, 368, 3688]
    quantiles = sketch_of([1.0] * 100).summary()["quantiles"]
    assert quantiles["p95"]["value"] == 1.0
    assert quantiles["p99"] == {"value": None, "needs": 368}


# Differences


def test_a_difference_has_the_interval_of_a_bootstrap() -> None:
    """Against the bootstrap as one would write it, by drawing samples."""
    ours, others = (values_of(lines_of(400, seed), "ttft_seconds") for seed in (1, 2))
    random = np.random.default_rng(5)
    drawn = [
        np.quantile(random.choice(other, len(other)), 0.95, method="inverted_cdf")
        - np.quantile(random.choice(our, len(our)), 0.95, method="inverted_cdf")
        for our, other in ((ours, others),) * 4000
    ]
    expected = np.quantile(drawn, (0.025, 0.975))
    found = difference(sketch_of([*ours]), sketch_of([*others]), 0.95)
    assert found is not None
    width = expected[1] - expected[0]
    assert found["interval"] == pytest.approx(list(expected), abs=width * 0.08)


@pytest.mark.parametrize(("slower", "differs"), [(1.0, False), (1.3, True)])
def test_a_difference_is_shown_only_where_there_is_one(slower: float, differs: bool) -> None:
    ours = run_of(lines_of(2000, 1)).sketches["ttft"]
    others = run_of(lines_of(2000, 2, slower=slower)).sketches["ttft"]
    for quantile in (0.5, 0.95):
        found = difference(ours, others, quantile)
        assert found is not None
        assert found["differs"] is differs
    assert difference(ours, sketch_of([1.0] * 50), 0.95) is None


def test_runs_are_compared_by_the_ways_in_which_ranks_can_fall() -> None:
    """The exact distribution of U, against counting all the ways."""
    for ours, others in ((5, 5), (3, 6), (6, 5)):
        counted = [0] * (ours * others + 1)
        for places in combinations(range(ours + others), ours):
            counted[sum(places) - sum(range(ours))] += 1
        assert _ways(ours, others) == counted


@pytest.mark.parametrize("runs", [5, 8, 30])
def test_the_interval_between_runs_holds_a_shift_in_95_of_100_cases(
    runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same in each case, and of 30 runs nearly all of its CPU.
    monkeypatch.setattr("ape_cerebras.report.sketches._ways", cache(_ways))
    random = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        ours, others = random.normal(1.0, 0.1, (2, runs))
        found = difference_of_runs([*ours], [*(others + 0.05)])
        assert found is not None
        low, high = found["interval"]
        assert low <= found["value"] <= high
        held += low <= 0.05 <= high
    assert 935 <= held <= 995


def test_few_runs_are_not_compared_and_far_ones_differ() -> None:
    assert difference_of_runs([1.0] * 4, [2.0] * 9) is None
    found = difference_of_runs([1.0, 1.1, 1.2, 0.9, 0.8], [2.0, 2.1, 2.2, 1.9, 1.8])
    assert found is not None
    assert found["differs"]
    assert (found["ours"], found["other"]) == (1.0, 2.0)
    assert found["value"] == pytest.approx(1.0)
    same = difference_of_runs([1.0, 1.1, 1.2, 0.9, 0.8], [1.05, 1.15, 0.95, 0.85, 1.0])
    assert same is not None
    assert not same["differs"]
