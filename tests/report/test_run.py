"""Sums and sketches against NumPy on the raw lines."""

import math
from itertools import pairwise

import numpy as np
import orjson
import pytest
from report_lines import line_of, lines_of, values_of

from ape_cerebras.report import run as run_module
from ape_cerebras.report.reader import PARTS, Objective, Reader, Selection
from ape_cerebras.report.run import QUANTILES, Run, Series, Sketch, difference

LINES = lines_of(5000)
EXACT = 0.003  # a bin's width


def run_of(
    lines: list[bytes],
    objectives: tuple[Objective, ...] = (),
    *,
    pieces: int = 3,
    window: float = 5.0,
) -> Run:
    run = Run(window, ("model", "client", "agent_id"), list(objectives))
    reader = Reader(Selection())
    for part in np.array_split(np.arange(len(lines)), pieces):
        batch = reader.read([lines[number] for number in part])
        if batch is not None:
            run.add(batch)
    return run


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    sketch.add(np.array(values))
    return sketch


# Quantiles


@pytest.mark.parametrize("name", ["ttft", "upstream_ttft", "proxy_ttft", "total"])
def test_quantiles_are_those_of_the_raw_lines(name: str) -> None:
    key = {"total": "total_time_seconds"}.get(name, f"{name}_seconds")
    completed = [line for line in LINES if orjson.loads(line)["outcome"] == "completed"]
    values = values_of(completed, key)
    sketch = run_of(LINES).sketches[name]
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
        assert count < run_module.needed(quantile)
        return
    low, high = (int(np.argmin(np.abs(np.array(values) - bound))) + 1 for bound in interval)
    assert chance_between(count, quantile, low, high) >= 0.95
    # No bound can be one nearer.
    assert chance_between(count, quantile, 0, low + 1) > 0.025
    assert chance_between(count, quantile, high - 1, count + 1) > 0.025


def test_intervals_of_many_values_are_like_those_of_few() -> None:
    """Above a variance the normal distribution takes the place of the binomial."""
    for count in (3999, 4001, 100_000):
        low, high = run_module._ranks(count, 0.5) or (0, 0)
        assert count / 2 - low == pytest.approx(0.98 * math.sqrt(count), abs=2)
        assert high - count / 2 == pytest.approx(0.98 * math.sqrt(count), abs=3)


def test_too_few_values_tell_how_many_are_needed() -> None:
    assert [run_module.needed(q) for q in (0.5, 0.95, 0.99, 0.999)] == [6, 72, 368, 3688]
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
def test_a_difference_is_told_only_where_there_is_one(slower: float, differs: bool) -> None:
    ours = run_of(lines_of(2000, 1)).sketches["ttft"]
    others = run_of(lines_of(2000, 2, slower=slower)).sketches["ttft"]
    for quantile in (0.5, 0.95):
        found = difference(ours, others, quantile)
        assert found is not None
        assert found["differs"] is differs
    assert difference(ours, sketch_of([1.0] * 50), 0.95) is None


# Sums


def test_sums_are_those_of_the_raw_lines() -> None:
    run = run_of(LINES)
    assert run.sums["requests"] == 5000
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        assert run.sums[name] == pytest.approx(values_of(LINES, name).sum())
    failed = [line for line in LINES if b"upstream_rate_limited" in line]
    assert run.sums["failed"] == len(failed) > 0
    assert run.errors == {("upstream_rate_limited", "429", "queue_exceeded", ""): len(failed)}
    assert run.counts["outcome"]["completed"] == 5000 - len(failed)


def test_parts_are_means_of_all_and_of_the_slowest() -> None:
    lines = [orjson.loads(line) for line in LINES if b'"measured"' in line]
    lines.sort(key=lambda line: -line["ttft_seconds"])
    run = run_of(LINES)
    for share, count in ((1.0, len(lines)), (0.01, math.ceil(len(lines) / 100))):
        parts = run.parts(share)
        taken = lines[: int(parts["count"])]
        assert count <= len(taken) <= count * 1.1 + 1
        for name in set(PARTS) - {"network"}:
            mean = np.mean([line.get(f"{name}_seconds") or 0.0 for line in taken])
            assert parts[name] == pytest.approx(mean), name
        ttft = np.mean([line["ttft_seconds"] for line in taken])
        assert sum(parts[name] for name in PARTS) == pytest.approx(ttft, rel=1e-4)


def test_derived_and_measured_times_are_apart() -> None:
    run = run_of([line_of(1), line_of(2, ttft_source="derived", ttft_seconds=9.0)])
    assert [run.sketches[name].most for name in ("ttft", "ttft_derived")] == [0.1, 9.0]


def test_times_from_the_intended_start_include_the_lag() -> None:
    run = run_of([line_of(1, intended_start_lag_seconds=2.0), line_of(2)])
    assert run.sketches["ttft_intended"].count == run.sums["lagged"] == 1
    assert run.sketches["ttft_intended"].most == pytest.approx(2.1)


def test_groups_add_up_and_know_pauses() -> None:
    run = run_of(LINES)
    groups = run.groups["client"]
    assert set(groups) == {"planner", "coder", "critic"}
    assert sum(group.sums["requests"] for group in groups.values()) == 5000
    own = [orjson.loads(line) for line in LINES if b'"coder"' in line]
    ends = [number / 50 for number in range(1, 5000, 3)]
    starts = [end - line["total_time_seconds"] for end, line in zip(ends, own, strict=True)]
    pauses = [start - end for end, start in pairwise_of(ends, starts) if start > end]
    assert groups["coder"].sketches["pause"].count == len(pauses) > 0
    assert groups["coder"].sketches["pause"].sum == pytest.approx(sum(pauses), rel=1e-3)


def pairwise_of(ends: list[float], starts: list[float]) -> list[tuple[float, float]]:
    """Each end with the start of the next."""
    return [(one[0], other[1]) for one, other in pairwise(zip(ends, starts, strict=True))]


def test_many_groups_are_added_up_as_others() -> None:
    lines = [line_of(number, agent_id=f"agent-{number}") for number in range(150)]
    groups = run_of(lines).groups["agent_id"]
    assert len(groups) == 101
    assert groups["(others)"].sums["requests"] == 50
    lines = [line_of(number, agent_id="a" if number % 2 else "b") for number in range(10)]
    assert {
        name: group.sums["requests"] for name, group in run_of(lines).groups["agent_id"].items()
    } == {
        "b": 5,
        "a": 5,
    }


# Over time


def test_requests_in_flight_add_up_to_their_times() -> None:
    lines = [line_of(7, total_time_seconds=6.5), line_of(8, total_time_seconds=1.0)]
    run = run_of(lines, window=2.0)
    flight = {number: window.sums["in_flight_seconds"] for number, window in run.windows.items()}
    first = min(flight)
    expected = {first: 1.5, first + 1: 2.0, first + 2: 2.0, first + 3: 2.0}
    assert flight == pytest.approx(expected, abs=1e-3)
    assert sum(run_of(LINES).windows[n].sums["requests"] for n in run_of(LINES).windows) == 5000


def test_windows_are_put_together_when_there_are_many() -> None:
    lines = [line_of(number * 10.0) for number in range(2000)]
    run = run_of(lines)
    assert len(run.windows) <= 400
    assert run.window == 80.0
    series = Series(run)
    assert sum(series.per_second("requests") * series.seconds) == pytest.approx(2000)


def test_percentiles_of_a_window_need_enough_values() -> None:
    few = run_module.percentiles(np.bincount([100] * 5, minlength=540))
    assert few == {"p50": None, "p95": None, "p99": None}
    values = values_of(LINES, "ttft_seconds")
    run = run_of(LINES, window=1000.0)
    [window] = run.windows.values() if len(run.windows) == 1 else [sum_of(run)]
    told = run_module.percentiles(window.ttft)
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert told[name] == pytest.approx(np.quantile(values, quantile), rel=0.04)


def sum_of(run: Run) -> run_module._Window:
    total = run_module._Window()
    for window in run.windows.values():
        total.take(window)
    return total


# Objectives


def test_objectives_and_goodput() -> None:
    objectives = (
        Objective("fast", "ttft", 0.95, 0.3),
        Objective("too fast", "ttft", 0.95, 0.001),
        Objective("few errors", "errors", None, 0.01),
        Objective("a rate", "tokens_per_second", 0.9, 400.0),
        Objective("a rate missed", "tokens_per_second", 0.9, 600.0),
        Objective("unknown", "ttfo", 0.5, 1.0),
    )
    run = run_of(LINES, objectives[:1])
    met = {objective.text: run.met(objective) for objective in objectives}
    assert {name: is_met for name, (_, is_met) in met.items()} == {
        "fast": True,
        "too fast": False,
        "few errors": False,
        "a rate": True,
        "a rate missed": False,
        "unknown": False,
    }
    assert met["few errors"][0] == run.sums["failed"] / 5000
    assert met["unknown"][0] is None
    good = [line for line in map(orjson.loads, LINES) if line.get("ttft_seconds", 1.0) <= 0.3]
    assert run.good == len(good)


def test_the_slowest_are_the_slowest() -> None:
    expected = sorted(values_of(LINES, "ttft_seconds"))[:-21:-1]
    assert [value for value, _ in run_of(LINES).slowest] == expected
