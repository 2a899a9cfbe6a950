"""Benchmarks of the proxy on this machine, beside proxies that people would use instead.

A proxy has one core to itself; a raw mock upstream and the load generator share another. Our logs,
metrics, key check, limits and deadlines are all on. Within a round of a scenario the proxies run
one after another, the others stopped, so that drift affects all of them equally. ``make bench``,
on a machine with nothing else to do.
"""

import argparse
import json
import subprocess
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import report
from peers import HERE, OURS, PEERS, TOOLS, Peer
from processes import settle_down_here
from runs import Plan, run_all
from scenarios import SCENARIOS, Scenario


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    names = ", ".join(peer.name for peer in PEERS if peer.name != OURS)
    parser.add_argument("--peers", default="all", help=f"all, none, or some of {names}")
    parser.add_argument("--only", default="*", help="scenarios by name: 'burst*;paced, 16'")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load in a round")
    parser.add_argument("--backend", default="asyncio", help="of our proxy")
    parser.add_argument("--quick", action="store_true", help="a short run: one round")
    parser.add_argument("--list", action="store_true", help="only list peers and scenarios")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "bench.json")
    return parser.parse_args(arguments)


def chosen_peers(names: str) -> list[Peer]:
    """Our proxy, and the named ones of the others."""
    known = {peer.name: peer for peer in PEERS}
    named = {"all": list(known), "none": []}.get(names, names.split(","))
    if unknown := [name for name in named if name not in known]:
        raise SystemExit(f"no such peer: {', '.join(unknown)}; there are {', '.join(known)}")
    return [peer for peer in PEERS if peer.name in (OURS, *named)]


def there(peers: Sequence[Peer]) -> list[Peer]:
    """The peers that can be started; report the others."""
    found = []
    for peer in peers:
        if missing := peer.missing():
            programs = ", ".join(Path(need).name for need in missing)
            print(f"{peer.name} is skipped: no {programs} here; {peer.install} gets it")
        else:
            found.append(peer)
    return found


def chosen_scenarios(only: str) -> list[Scenario]:
    patterns = only.split(";")
    chosen = [row for row in SCENARIOS if any(fnmatch(row.name, each) for each in patterns)]
    if not chosen:
        raise SystemExit(f"no such scenario: {only}")
    return chosen


def list_all() -> None:
    for peer in PEERS:
        print(f"{peer.name:<22}{'missing: ' + peer.install if peer.missing() else 'here'}")
    for scenario in SCENARIOS:
        print(f"{scenario.name:<22}{scenario.what}")


def plot(path: Path, script: str = "plot.py") -> None:
    image = path.with_suffix(".png")
    command = (str(TOOLS / "python"), str(HERE / script), str(image), str(path))
    try:
        subprocess.run(command, check=True)
        print(f"plot: {image}")
    except (OSError, subprocess.CalledProcessError):
        print("no plot: matplotlib is missing; make bench-peers gets it")


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        there(chosen_peers(options.peers)),
        chosen_scenarios(options.only),
        options.backend,
        options.rounds,
        options.seconds,
        options.quick,
    )


def measure(plan: Plan, path: Path) -> None:
    print(report.heading(report.run_of(plan, [])), flush=True)
    entries = []
    for outcome in run_all(plan):
        entries.append(report.entry_of(outcome))
        print(report.table(entries[-1]), flush=True)
    run = report.run_of(plan, entries)
    print(report.summary(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    print(f"every round: {path}")
    plot(path)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    if options.list:
        list_all()
    else:
        measure(plan_of(options), options.json)


if __name__ == "__main__":
    main()
