"""What is added up, against the raw lines."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import orjson
import pytest
from report_lines import line_of, run_of, values_of

from ape_cerebras.report.columns import PARTS
from ape_cerebras.report.objectives import Objective


def test_sums_are_those_of_the_raw_lines(raw_lines: Sequence[bytes]) -> None:
    run = run_of(raw_lines)
    assert run.sums["requests"] == 5000
    for name in ("prompt_tokens", "completion_tokens", "cost_usd"):
        assert run.sums[name] == pytest.approx(values_of(raw_lines, name).sum())
    failed = [line for line in raw_lines if b"upstream_rate_limited" in line]
    assert run.sums["failed"] == len(failed) > 0
    assert run.errors == {("upstream_rate_limited", "429", "queue_exceeded", ""): len(failed)}
    assert run.counts["outcome"]["completed"] == 5000 - len(failed)


def test_parts_are_means_of_all_and_of_the_slowest(raw_lines: Sequence[bytes]) -> None:
    lines = [orjson.loads(line) for line in raw_lines if b'"measured"' in line]
    lines.sort(key=lambda line: -line["ttft_seconds"])
    run = run_of(raw_lines)
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


def test_groups_add_up_and_know_pauses(raw_lines: Sequence[bytes]) -> None:
    run = run_of(raw_lines)
    groups = run.groups["agent_id"]
    assert set(groups) == {"planner", "coder", "critic"}
    assert sum(group.sums["requests"] for group in groups.values()) == 5000
    own = [orjson.loads(line) for line in raw_lines if b'"coder"' in line]
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


# Objectives


def test_objectives_and_goodput(raw_lines: Sequence[bytes]) -> None:
    objectives = (
        Objective("fast", "ttft", 0.95, 0.3),
        Objective("too fast", "ttft", 0.95, 0.001),
        Objective("few errors", "errors", None, 0.01),
        Objective("a rate", "tokens_per_second", 0.9, 400.0),
        Objective("a rate missed", "tokens_per_second", 0.9, 600.0),
        Objective("unknown", "ttfo", 0.5, 1.0),
    )
    run = run_of(raw_lines, objectives[:1])
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
    good = [line for line in map(orjson.loads, raw_lines) if line.get("ttft_seconds", 1.0) <= 0.3]
    assert run.good == len(good)


def test_the_slowest_are_the_slowest(raw_lines: Sequence[bytes]) -> None:
    expected = sorted(values_of(raw_lines, "ttft_seconds"))[:-21:-1]
    assert [value for value, _ in run_of(raw_lines).slowest] == expected
