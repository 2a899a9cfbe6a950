"""Series over time, against the raw lines."""

from collections.abc import Sequence

import numpy as np
import pytest
from report_lines import line_of, run_of, values_of

from ape_cerebras.report.columns import PARTS
from ape_cerebras.report.over_time import Series, Window, percentiles
from ape_cerebras.report.run import Run


def test_requests_in_flight_add_up_to_their_times(raw_lines: Sequence[bytes]) -> None:
    lines = [line_of(7, total_time_seconds=6.5), line_of(8, total_time_seconds=1.0)]
    run = run_of(lines, window=2.0)
    flight = {
        number: window.sums["in_flight_seconds"] for number, window in run.timeline.windows.items()
    }
    first = min(flight)
    expected = {first: 1.5, first + 1: 2.0, first + 2: 2.0, first + 3: 2.0}
    assert flight == pytest.approx(expected, abs=1e-3)
    assert (
        sum(window.sums["requests"] for window in run_of(raw_lines).timeline.windows.values())
        == 5000
    )


def test_windows_are_doubled_when_there_are_many() -> None:
    lines = [line_of(number * 10.0) for number in range(2000)]
    run = run_of(lines)
    assert len(run.timeline.windows) <= 400
    assert run.timeline.width == 80.0
    series = Series(run.timeline, run.begin, run.end)
    assert sum(series.per_second("requests") * series.seconds) == pytest.approx(2000)


def test_percentiles_of_a_window_need_enough_values(raw_lines: Sequence[bytes]) -> None:
    few = percentiles(np.bincount([100] * 5, minlength=540))
    assert few == {"p50": None, "p95": None, "p99": None}
    values = values_of(raw_lines, "ttft_seconds")
    run = run_of(raw_lines, window=1000.0)
    [window] = run.timeline.windows.values() if len(run.timeline.windows) == 1 else [sum_of(run)]
    found = percentiles(window.ttft)
    for name, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert found[name] == pytest.approx(np.quantile(values, quantile), rel=0.04)


def sum_of(run: Run) -> Window:
    total = Window()
    for window in run.timeline.windows.values():
        total.take(window)
    return total


def test_parts_over_time_add_up_to_the_means_of_ttft(raw_lines: Sequence[bytes]) -> None:
    run = run_of(raw_lines, window=10.0)
    series = Series(run.timeline, run.begin, run.end)
    whole = np.sum([series.part(name) for name in PARTS], axis=0)
    mean = np.average(whole, weights=series.sums("split"))
    assert mean == pytest.approx(values_of(raw_lines, "ttft_seconds").mean(), rel=1e-4)


def test_a_stretch_without_requests_is_there() -> None:
    run = run_of([line_of(1), line_of(61)], window=5.0)
    series = Series(run.timeline, run.begin, run.end)
    assert len(series.windows) == 13
    assert series.per_second("requests").tolist().count(0.0) == 11
    assert series.counts().sum() == 2


def test_a_clock_that_was_set_makes_no_endless_series() -> None:
    run = run_of([line_of(1), line_of(86_400 * 365)])
    assert len(Series(run.timeline, run.begin, run.end).windows) == 2
