"""Reports of a run: printed tables, and JSON with the same and every round.

    python report.py results.json …

prints the tables of earlier runs, joined.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from peers import DIRECT, OURS
from runs import Outcome, Plan

Entry = dict[str, Any]  # a scenario's, in the JSON


class Column(NamedTuple):
    heading: str
    figure: str
    digits: int = 0
    spread: bool = True  # the lowest and the highest behind the median


_REQUEST = Column("CPU µs/request", "request_cpu_us")
_TOKEN = Column("CPU µs/token", "token_cpu_us", 1)
_REQUESTS = Column("requests/s", "requests_per_second")
_TOKENS = Column("tokens/s", "tokens_per_second")
_FIRST = Column("TTFT p50 ms", "first_p50_ms", 2)
_FIRST_P99 = Column("p99", "first_p99_ms", 2, spread=False)
_TOTAL = Column("total p50 ms", "total_p50_ms", 2)
_TOTAL_P99 = Column("p99", "total_p99_ms", 2, spread=False)
_CORE = Column("core %", "core_percent", spread=False)
_RIG = Column("rig %", "rig_percent", spread=False)
_ADDED_TOTAL = (
    Column("added total p50 ms", "added_total_p50_ms", 2),
    Column("added p99", "added_total_p99_ms", 2, spread=False),
)
_ADDED_FIRST = (
    Column("added TTFT p50 ms", "added_first_p50_ms", 2),
    Column("added p99", "added_first_p99_ms", 2, spread=False),
)
# The columns of a kind of scenario. The first is what the ratio to ours is taken of.
TABLES = {
    "plain": (_REQUEST, _REQUESTS, _TOTAL, _TOTAL_P99, _CORE, _RIG),
    "stream": (_TOKEN, _REQUEST, _TOKENS, _FIRST, _FIRST_P99, _TOTAL, _TOTAL_P99, _CORE, _RIG),
    "added plain": (*_ADDED_TOTAL, _REQUEST, _REQUESTS, _TOTAL, _TOTAL_P99, _RIG),
    "added stream": (*_ADDED_FIRST, *_ADDED_TOTAL, _REQUEST, _FIRST, _TOTAL, _RIG),
    "beside idle": (
        *(_REQUEST, _REQUESTS, _TOTAL, _TOTAL_P99),
        Column("to upstream", "upstream_connections", spread=False),
    ),
    "workers": (
        Column("times one's rate", "speedup", 2),
        Column("by CPU", "speedup_by_cpu", 2),
        Column("requests/s", "requests_per_second"),
        Column("of one", "requests_per_second_of_one"),
        Column("CPU µs/request", "request_cpu_us"),
        Column("of one", "request_cpu_us_of_one"),
        _CORE,
        _RIG,
    ),
    "spread": (
        Column("two and two, %", "even_percent"),
        Column("all on one, %", "on_one_percent"),
        Column("trials", "trials"),
    ),
    "start": (
        Column("listening ms", "listening_ms"),
        Column("first response ms", "responded_ms"),
        Column("idle MiB", "idle_mib", 1),
    ),
    "connections": (Column("KiB/connection", "connection_kib", 1),),
    "streams": (Column("KiB/stream", "stream_kib", 1),),
    "import": (Column("import ms", "import_ms"),),
    "after": (Column("resident MiB", "after_mib", 1),),
}


def entry_of(outcome: Outcome) -> Entry:
    scenario = outcome.scenario
    return {
        "name": scenario.name,
        "what": scenario.what,
        "table": scenario.table,
        "rounds": outcome.rounds,
        "failed": outcome.failed,
    }


def run_of(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """The JSON."""
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "backend": plan.backend,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "versions": {peer.name: peer.version_found() for peer in plan.peers},
        "scenarios": entries,
    }


def formatted(values: Sequence[float], column: Column) -> str:
    low, middle, high = (
        f"{v:.{column.digits}f}" for v in (min(values), median(values), max(values))
    )
    return f"{middle} ({low}–{high})" if column.spread and len(values) > 1 else middle


def medians(entry: Entry, figure: str) -> dict[str, float]:
    """By proxy, where it has the figure."""
    found = {
        name: [r[figure] for r in rounds if figure in r] for name, rounds in entry["rounds"].items()
    }
    return {name: median(values) for name, values in found.items() if values}


def ratios(entry: Entry) -> dict[str, float]:
    """Ours by each peer's, of the scenario's first column."""
    values = medians(entry, TABLES[entry["table"]][0].figure)
    ours = values.get(OURS)
    if ours is None:
        return {}
    others = {name: value for name, value in values.items() if name not in (OURS, DIRECT.name)}
    return {name: ours / value for name, value in others.items() if value > 0}


def _rows(entry: Entry) -> Iterator[list[str]]:
    columns = TABLES[entry["table"]]
    yield [entry["name"], *(column.heading for column in columns), "ours / it"]
    ratio = ratios(entry)
    for name, rounds in entry["rounds"].items():
        cells = []
        for column in columns:
            values = [figures[column.figure] for figures in rounds if column.figure in figures]
            cells.append(formatted(values, column) if values else "–")
        if cells.count("–") < len(cells):
            yield [name, *cells, f"{ratio[name]:.2f}" if name in ratio else ""]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines."""
    widths = [max(len(cell) for cell in cells) for cells in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def table(entry: Entry) -> str:
    lines = aligned(list(_rows(entry)))
    lines += [f"{name} failed: {why}" for name, why in entry["failed"].items()]
    return "\n".join(lines) + "\n"


def _cell(entry: Entry, name: str) -> str:
    column = TABLES[entry["table"]][0]
    value, ratio = medians(entry, column.figure).get(name), ratios(entry).get(name)
    if value is None:
        return "–"
    return f"{value:.{column.digits}f}" + (f" ({ratio:.2g})" if ratio is not None else "")


def summary(run: dict[str, Any]) -> str:
    """A short table in Markdown: the first column of each scenario, with the ratio of our figure to
    each peer's."""
    names = list(run["versions"])
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for entry in run["scenarios"]:
        title = f"{entry['name']}: {TABLES[entry['table']][0].heading}"
        lines.append(f"| {title} | " + " | ".join(_cell(entry, name) for name in names) + " |")
    return "\n".join(lines) + "\n"


def heading(run: dict[str, Any]) -> str:
    machine = run["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, ours on "
        f"{run['backend']}\n{versions}\nmedian (lowest–highest) of the rounds\n"
    )


def joined(paths: Sequence[str]) -> dict[str, Any]:
    """Several runs as one; a scenario of several runs is taken from the last."""
    runs = [json.loads(Path(path).read_text("utf-8")) for path in paths]
    entries = {entry["name"]: entry for run in runs for entry in run["scenarios"]}
    versions = {name: v for run in runs for name, v in run["versions"].items()}
    return {**runs[0], "versions": versions, "scenarios": list(entries.values())}


def main() -> None:
    run = joined(sys.argv[1:])
    print(heading(run))
    for entry in run["scenarios"]:
        print(table(entry))
    print(summary(run))


if __name__ == "__main__":
    main()
