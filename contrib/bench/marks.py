"""The marks that the proxy is measured by, in one run: each with its ratio, spread, and whether it
is reached.

    python marks.py           # on a machine with nothing else to do
    python marks.py --quick   # whether all of it works

Ours, with everything on, on asyncio, beside the floors, nginx and sglang-router where it is
installed; then on trio, on uvloop where it is installed, and with each ``--python``. A ratio is
taken in each round; the table has the median, the lowest and the highest.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import growth
import report
import stages
from bench import chosen_peers, chosen_scenarios, there
from measures import FAULTS
from peers import HERE, OURS, Peer, ours_with
from processes import settle_down_here
from runs import Plan, mock, run_all

COST = "plain, 32;burst, 16;paced, 16;wafer, 16"
FIRST = "stream, 1"
SIZE = "start;import;idle connections;open streams"
WORKERS = "*two workers"
IDLE, STREAMS = 10_000, 2_000
MIB, KIB = 2**20 / 1e6, 2**10 / 1e3  # in MB and KB

Values = list[float]  # of a round each
Rounds = dict[str, dict[str, dict[str, Values]]]  # by scenario, proxy and figure


class Mark(NamedTuple):
    """``figure`` of ``whose`` in ``scenario``: how many times it is that of ``base``, or how much
    beyond it, or by itself; at most, or at least, ``limit``. Without a limit it is only shown."""

    name: str
    scenario: str
    figure: str
    base: str = ""
    limit: float | None = None
    whose: str = OURS
    at_least: bool = False
    beyond: bool = False
    unit: str = "times"
    scale: float = 1.0

    def reached(self, value: float) -> bool | None:
        if self.limit is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


_REQUEST, _TOKEN = "request_cpu_us", "token_cpu_us"
_P50, _P99 = "added_first_p50_ms", "added_first_p99_ms"
MARKS = (
    Mark("plain request, 32 clients", "plain, 32", _REQUEST, "floor", 1.5),
    Mark("the same, moonshot", "plain, 32", _REQUEST, "sglang-router", 2.0),
    Mark("paced stream, 16", "paced, 16", _TOKEN, "floor", 1.3),
    Mark("the same, moonshot", "paced, 16", _TOKEN, "nginx", 3.0),
    Mark("Cerebras-shaped stream, 16", "wafer, 16", _TOKEN, "floor", 1.2),
    Mark("burst, 16", "burst, 16", _TOKEN, "sglang-router", 1.0),
    Mark("added TTFT p50, one client", "stream, 1", _P50, "nginx", 2.0),
    Mark(
        "added TTFT p99, one client", "stream, 1", _P99, "nginx", 1.5, beyond=True, unit="ms more"
    ),
    Mark("own work up, first token", "stages", "up_us", limit=450, unit="µs"),
    Mark("own work down, first token", "stages", "down_us", limit=180, unit="µs"),
    Mark("10,000 idle connections", "growth", "connections", "none open", 1.1),
    Mark("2,000 streams", "growth", "streams", "none open", 1.1),
    Mark("resident when idle", "start", "idle_mib", limit=33, unit="MB", scale=MIB),
    Mark(
        "an idle connection", "idle connections", "connection_kib", limit=25, unit="KB", scale=KIB
    ),
    Mark("an open stream", "open streams", "stream_kib", limit=60, unit="KB", scale=KIB),
    Mark("import", "import", "import_ms", limit=150, unit="ms"),
    Mark("listening", "start", "listening_ms", limit=200, unit="ms"),
    Mark(
        "two workers, plain, by CPU",
        "plain, 32, two workers",
        "speedup_by_cpu",
        "",
        1.9,
        at_least=True,
    ),
    Mark(
        "two workers, burst, by CPU",
        "burst, 16, two workers",
        "speedup_by_cpu",
        "",
        1.9,
        at_least=True,
    ),
    Mark(
        "four clients two and two",
        "4 clients, two workers",
        "even_percent",
        "",
        92,
        at_least=True,
        unit="%",
    ),
)
TRIO = 1.25  # times ours on asyncio, at most


def variant_marks(variants: Sequence[str]) -> Iterator[Mark]:
    for name in variants:
        limit = TRIO if name == "trio" else None
        for scenario, figure in (
            ("plain, 32", _REQUEST),
            ("burst, 16", _TOKEN),
            ("paced, 16", _TOKEN),
        ):
            yield Mark(f"{name}: {scenario}", scenario, figure, OURS, limit, whose=name)


# The run


def variants(pythons: Sequence[Path]) -> list[Peer]:
    """Ours on other event loops and with other Pythons."""
    backends = ["trio", *(["uvloop"] if find_spec("uvloop") else [])]
    peers = [ours_with({"BACKEND": backend}, backend) for backend in backends]
    ours = ours_with({})
    for python in pythons:
        command = (str(python.absolute()), *ours.command[1:])
        version = (str(python.absolute()), "--version")
        name = replace(ours, version=version).version_found()
        peers.append(replace(ours, name=f"Python {name}", command=command, version=version))
    return [replace(peer, scales=False, imports=("", "")) for peer in peers]


def plans(options: argparse.Namespace, more: Sequence[Peer]) -> list[Plan]:
    others = there(chosen_peers("floor,floor-h11,floor-coro,nginx,sglang-router"))
    few = [peer for peer in others if peer.name in (OURS, "floor", "nginx")]
    cost = Plan([*others, *more], chosen_scenarios(COST), "asyncio", 5, 1.0, options.quick)
    # Of one client's requests: many, for the slowest hundredth.
    first = replace(cost, peers=few, scenarios=chosen_scenarios(FIRST), seconds=4.0)
    ours_and_nginx = [peer for peer in few if peer.name != "floor"]
    size = replace(cost, peers=ours_and_nginx, scenarios=chosen_scenarios(SIZE), rounds=3)
    workers = replace(size, peers=few[:1], scenarios=chosen_scenarios(WORKERS))
    return [cost, first, size, workers]


def run_plans(chosen: Sequence[Plan]) -> Iterator[tuple[str, dict[str, list[dict[str, float]]]]]:
    for plan in chosen:
        for outcome in run_all(plan):
            entry = report.entry_of(outcome)
            print(report.table(entry), flush=True)
            yield outcome.scenario.name, outcome.rounds


def growth_rounds(quick: bool) -> dict[str, dict[str, Values]]:
    """CPU of a request beside so many open connections or streams, and beside none."""
    rounds: dict[str, dict[str, Values]] = {OURS: {}, "none open": {}}
    sizes = {"connections": IDLE, "streams": STREAMS}
    if quick:
        sizes = dict.fromkeys(sizes, 20)
    peer = growth.ours_with_room(IDLE)
    with mock("http", Plan((), (), seconds=0.2 if quick else 1.0)) as rig:
        for _ in range(1 if quick else 5):
            for what, size in sizes.items():
                [most] = growth.possible([size])
                for name, number in ((OURS, most), ("none open", 0)):
                    cost = growth.cost(rig, peer, what, number)
                    rounds[name].setdefault(what, []).append(cost)
    return rounds


def stage_rounds(quick: bool) -> dict[str, dict[str, Values]]:
    found = stages.measured("asyncio", 20 if quick else 500, 0.0)
    print("\n".join(report.aligned(list(stages.table(found)))), flush=True)
    figures = {
        f"{name}_us": [stages.own_work(found, way)] for way, name in enumerate(("up", "down"))
    }
    return {OURS: figures}


def measured(options: argparse.Namespace, more: Sequence[Peer]) -> Rounds:
    rounds: Rounds = {}
    for scenario, by_proxy in run_plans(plans(options, more)):
        rounds[scenario] = {
            name: {
                figure: [each[figure] for each in found] for figure in (found[0] if found else {})
            }
            for name, found in by_proxy.items()
        }
    for scenario, measure in (("growth", growth_rounds), ("stages", stage_rounds)):
        try:
            rounds[scenario] = measure(options.quick)
        except FAULTS as fault:
            print(f"{scenario} failed: {fault!s:.300}", flush=True)
    return rounds


# The table


def values_of(mark: Mark, rounds: Rounds) -> Values:
    """Of each round; none where something was not measured."""
    proxies = rounds.get(mark.scenario, {})
    values = [value * mark.scale for value in proxies.get(mark.whose, {}).get(mark.figure, [])]
    if not mark.base:
        return values
    bases = proxies.get(mark.base, {}).get(mark.figure, [])
    pairs = list(zip(values, bases, strict=False))
    if mark.beyond:
        return [value - base for value, base in pairs]
    return [value / base for value, base in pairs if base > 0]


def table(marks: Sequence[Mark], rounds: Rounds) -> Iterator[list[str]]:
    yield ["mark", "of", "median (lowest–highest)", "", "limit", "reached"]
    for mark in marks:
        values = values_of(mark, rounds)
        limit = "" if mark.limit is None else f"{'≥' if mark.at_least else '≤'} {mark.limit:g}"
        if not values:
            yield [mark.name, mark.base, "–", mark.unit, limit, "not measured"]
            continue
        spread = f" ({min(values):.3g}–{max(values):.3g})" if len(values) > 1 else ""
        reached = {None: "", True: "yes", False: "no"}[mark.reached(median(values))]
        yield [mark.name, mark.base, f"{median(values):.3g}{spread}", mark.unit, limit, reached]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("--python", action="append", type=Path, default=[], metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="a short run: one round")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "marks.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    more = variants(options.python)
    rounds = measured(options, more)
    marks = [*MARKS, *variant_marks([peer.name for peer in more])]
    rows = list(table(marks, rounds))
    print("\n".join(report.aligned(rows)))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")
    print(f"every round: {options.json}")


if __name__ == "__main__":
    main()
