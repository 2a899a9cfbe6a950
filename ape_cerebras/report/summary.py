"""All figures of a report as one dictionary, which ``--json`` writes and tables are made from:
seconds, tokens, and US dollars."""

from datetime import UTC, datetime
from typing import Any

import orjson

from ..config.config import Config
from ..version import VERSION
from .columns import METRICS
from .reader import Reader, RunLines
from .run import Run
from .sketches import LEAST_RUNS, difference, difference_of_runs

__all__ = ("KINDS", "completeness", "summarize")

KINDS = {
    "model": "model",
    "client": "client",
    "session_id": "session",
    "agent_id": "agent",
    "run_id": "run",
}
"""The labels that tables are by, and their names on the command line."""

_COMPARED = (0.5, 0.95, 0.99)
_OF_RUNS = (0.5, 0.95)
_OF_ALL = ("RUN_ID", "CEREBRAS_API_KEY")  # settings that all runs have
_DEFAULTS = Config(cerebras_api_key="").visible()


def summarize(names: list[str], reader: Reader, run: Run, other: Run | None) -> dict[str, Any]:
    """The figures of a run; ``other`` is compared with it."""
    sums, seconds = run.sums, run.seconds
    objectives = [(each.text, each.unit, *run.met(each)) for each in run.objectives]
    failures = [(*which, count) for which, count in run.errors.most_common()]
    named = ("outcome", "upstream_status", "upstream_code", "cause", "count")
    completed = run.counts["outcome"]["completed"]
    return {
        **_of_inputs(names, reader, run),
        "requests": int(sums["requests"]),
        "requests_per_second": sums["requests"] / seconds,
        "failed": int(sums["failed"]),
        "completed_per_second": completed / seconds,
        "good": run.good if run.objectives else None,
        "goodput_per_second": run.good / seconds if run.objectives else None,
        "outcomes": dict(run.counts["outcome"].most_common()),
        "failures": [dict(zip(named, each, strict=True)) for each in failures],
        "latencies": {name: sketch.summary() for name, sketch in run.sketches.items()},
        "parts_of_ttft": {"all": run.parts(), "slowest_1_percent": run.parts(0.01)},
        "sums": dict(sums),
        "cached_ratio": _ratio(sums["cached_tokens"], sums["prompt_tokens"]),
        "used_of_reserved": _ratio(sums["used_of_reserved"], sums["reserved_tokens"]),
        "completion_tokens_per_second": sums["completion_tokens"] / seconds,
        "tokens_per_second_of_generation": _ratio(
            sums["streamed_tokens"], sums["generation_seconds"]
        ),
        "connections": dict(run.counts["connection"].most_common()),
        "finish_reasons": dict(run.counts["finish_reason"].most_common()),
        "groups": _groups(run),
        "slowest": [orjson.loads(text) for _, text in run.slowest],
        "objectives": [
            dict(zip(("text", "unit", "value", "met"), each, strict=True)) for each in objectives
        ],
        "comparison": None if other is None else _comparison(run, other),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _of_inputs(names: list[str], reader: Reader, run: Run) -> dict[str, Any]:
    """What was read, and when it was."""
    events = [(*which, count) for which, count in reader.events.most_common()]
    runs = {name: each for name, each in reader.runs.items() if name in run.groups["run_id"]}
    return {
        "inputs": names,
        "report_version": VERSION,
        "runs": {name: _of_run(each) for name, each in runs.items()},
        "versions": sorted({version for each in runs.values() for version in each.versions}),
        "settings": _settings([*runs.values()]),
        "begin": datetime.fromtimestamp(run.begin, UTC).isoformat(timespec="milliseconds"),
        "end": datetime.fromtimestamp(run.end, UTC).isoformat(timespec="milliseconds"),
        "duration_seconds": run.seconds,
        "window_seconds": run.timeline.width,
        "lines": dict(reader.counts),
        "clock_steps": reader.clock_steps,
        "events": [dict(zip(("level", "message", "count"), each, strict=True)) for each in events],
    }


def _of_run(run: RunLines) -> dict[str, Any]:
    return {
        "lines": run.lines,
        "counted": run.counted if run.missing is not None else None,
        "missing": run.missing,
        "lines_dropped": run.dropped,
    }


def _settings(runs: list[RunLines]) -> dict[str, list[str]]:
    """The settings that differ from their defaults, and those that differ from run to run."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            if name not in _OF_ALL and value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values for name, values in found.items() if values != [_DEFAULTS.get(name, "")]}


def completeness(runs: dict[str, dict[str, Any]]) -> str:
    """Whether all lines of chat requests are there, in words: by the number that each proxy wrote
    when it stopped."""
    known = [each for each in runs.values() if each["missing"] is not None]
    missing = sum(max(0, each["missing"]) for each in known)
    twice = sum(max(0, -each["missing"]) for each in known)
    counted = sum(each["counted"] for each in known)
    dropped = sum(each["lines_dropped"] for each in runs.values())
    if not known:
        text = "not known: no proxy of it has written how many requests there were ('Stopped')"
    elif missing:
        why = f"the proxy could not write {dropped:,} lines" if dropped else "the proxy lost none"
        text = f"{missing:,} of {counted:,} requests have no line here; {why}"
    else:
        text = f"all of {counted:,} requests that the proxy counted have a line"
    if twice:
        text += f"; {twice:,} lines are here twice, or are not of the run"
    if known and len(known) < len(runs):
        text += f"; not known of {len(runs) - len(known)} of {len(runs)} runs"
    return text


def _groups(run: Run) -> dict[str, Any]:
    """Those that have a name; of runs, if there are several."""
    return {
        KINDS[kind]: {value: group.summary() for value, group in groups.items()}
        for kind, groups in run.groups.items()
        if any(groups) and (kind != "run_id" or len(groups) > 1)
    }


def _comparison(run: Run, other: Run) -> dict[str, Any]:
    """By runs, where there are enough of them on both sides; else by requests."""
    runs = run.groups["run_id"], other.groups["run_id"]
    fewest = min(map(len, runs))
    metrics = [name for name in METRICS if run.sketches[name].count and other.sketches[name].count]
    if fewest < LEAST_RUNS:
        return {
            "by": "requests",
            "metrics": {
                name: {
                    f"p{100 * q:g}": difference(run.sketches[name], other.sketches[name], q)
                    for q in _COMPARED
                }
                for name in metrics
            },
        }
    return {
        "by": "runs",
        "runs": [*map(len, runs)],
        "metrics": {
            name: {f"p{100 * q:g}": _of_runs(run, other, name, q) for q in _OF_RUNS}
            for name in metrics
        },
    }


def _of_runs(run: Run, other: Run, name: str, quantile: float) -> dict[str, Any] | None:
    figures = [
        [
            group.sketches[name].quantile(quantile)
            for group in each.groups["run_id"].values()
            if group.sketches[name].count and group.sketches[name].interval(quantile) is not None
        ]
        for each in (run, other)
    ]
    return difference_of_runs(*figures)
