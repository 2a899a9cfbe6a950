"""Instructions and function calls of a request and of a token: figures that other users of a
machine do not disturb.

    python instructions.py    # ours, the floors and nginx

Instructions are those in user space, of all threads, as valgrind's callgrind counts them; the
kernel's are not among them. Calls are those that Python's profiler sees in the main thread, each
time that a coroutine goes on included. Both are the difference of two runs of different lengths,
so that starts and connections do not count. What our proxy does by the clock is left out
(``configs/steady.py``). Streams are paced by steps: each gets its next token when all have got the
one before, so that they are as slow as valgrind.
"""

import argparse
import json
import pstats
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench import chosen_peers, there
from load import Failed, Load, request_of
from measures import FAULTS, Rig, first_response
from peers import CLIENT_KEY, HERE, OURS, Peer, Running, start
from processes import settle_down_here
from report import aligned
from responses import RESPONSES
from runs import Plan, mock

DEFAULT_PEERS = "floor,floor-h11,floor-coro,nginx"
IDLE = 0.3  # seconds in which a proxy ends what follows a response
_START = 300.0  # seconds that a start may take under valgrind
Figures = dict[str, float]


class Case(NamedTuple):
    """``clients`` that are kept busy with ``word``; figures are of a request or of a token."""

    name: str
    word: str
    clients: int
    per: str
    requests: int  # that are counted

    @property
    def lengths(self) -> tuple[int, int]:
        """The requests of two runs; their difference is counted."""
        return self.clients, self.clients + self.requests

    @property
    def headings(self) -> tuple[str, str]:
        return f"{self.name}: k instr/{self.per}", f"calls/{self.per}"

    @property
    def units(self) -> int:
        """Requests or tokens that are counted."""
        tokens = RESPONSES[self.word.encode()].tokens
        return self.requests * (tokens if self.per == "token" else 1)


CASES = (
    Case("plain", "plain", 32, "request", 320),
    Case("burst", "burst", 16, "token", 48),
    Case("paced", "stepped", 16, "token", 16),
    Case("wafer", "stepped-four", 16, "token", 16),
)


def exchange(rig: Rig, target: Running, case: Case, requests: int) -> None:
    with Load(target.port, request_of(case.word, CLIENT_KEY, target.headers), case.clients) as load:
        if case.word.startswith("stepped"):
            for _ in range(requests // case.clients):
                load.exchange_in_steps(lambda: rig.query_mock("/step"))
        else:
            load.exchange(requests)
    time.sleep(IDLE)


def started(rig: Rig, peer: Peer, wrapper: Sequence[str]) -> Running:
    """The peer, run by the programs of ``wrapper``."""
    command = (*wrapper, *(peer.counted or peer.command))
    target = start(replace(peer, command=command, timeout=_START), rig.setting)
    try:
        first_response(target)
    except BaseException:
        target.process.stop()
        raise
    return target


# Instructions


def instructions(rig: Rig, peer: Peer, cases: Sequence[Case]) -> Figures:
    """Of each case, by its name."""
    files = rig.setting.directory / f"callgrind-{peer.name}"
    tool = ("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={files}")
    target = started(rig, peer, tool)
    try:
        return {case.name: instructions_of(rig, target, case, files) for case in cases}
    finally:
        target.process.stop()


def instructions_of(rig: Rig, target: Running, case: Case, files: Path) -> float:
    exchange(rig, target, case, case.clients)  # everything has been used before
    few, many = (counted(rig, target, case, number, files) for number in case.lengths)
    return (many - few) / case.units


def counted(rig: Rig, target: Running, case: Case, requests: int, files: Path) -> int:
    """The instructions of so many requests, the clients' connections included."""
    control(target, "--zero")
    exchange(rig, target, case, requests)
    control(target, "--dump")
    dumps = sorted(files.parent.glob(f"{files.name}.*"), key=lambda path: int(path.suffix[1:]))
    return total_in(dumps[-1].read_text("utf-8", "replace"))


def control(target: Running, order: str) -> None:
    """Give callgrind an order. It listens at a path made of its USER and HOST, and the latter is a
    setting of ours."""
    lines = Path(f"/proc/{target.process.number}/environ").read_text().split("\0")
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    command = ("callgrind_control", order, str(target.process.number))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "error" in done.stderr or "OK" not in done.stdout:
        raise Failed(f"callgrind does not obey: {(done.stdout + done.stderr).strip()}")


def total_in(dump: str) -> int:
    """The instructions since the zero. ``totals`` is more: calls that had begun before."""
    return int(re.findall(r"^summary: (\d+)", dump, re.MULTILINE)[-1])


# Calls


def calls(rig: Rig, peer: Peer, cases: Sequence[Case]) -> Figures:
    """Of each case, by its name; nothing for programs that are not Python's."""
    if (peer.counted or peer.command)[0] != "@PYTHON@":
        return {}
    found = {}
    for case in cases:
        few, many = (profiled(rig, peer, case, number) for number in case.lengths)
        found[case.name] = (many - few) / case.units
    return found


def profiled(rig: Rig, peer: Peer, case: Case, requests: int) -> int:
    """The calls of a process that served so many requests, from its start to its end."""
    file = rig.setting.directory / f"calls-{peer.name}-{case.name}-{requests}"
    python, *rest = peer.counted or peer.command
    command = (python, "-m", "cProfile", "-o", str(file), *rest)
    target = started(rig, replace(peer, command=command, counted=()), ())
    try:
        exchange(rig, target, case, requests)
    finally:
        target.process.stop()
    if not file.exists():
        raise Failed(f"{peer.name} wrote no profile")
    return int(pstats.Stats(str(file)).total_calls)  # type: ignore[attr-defined]


# The report


def measured(options: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """Instructions and calls, by peer and case."""
    counts: dict[str, Callable[[Rig, Peer, Sequence[Case]], Figures]] = {"calls": calls}
    if not options.calls_only:
        counts = {"instructions": instructions, **counts}
    cases = [case for case in CASES if case.name in options.cases]
    found: dict[str, dict[str, Figures]] = {}
    with mock("http", Plan((), (), options.backend)) as rig:
        for peer in there(chosen_peers(options.peers)):
            try:
                found[peer.name] = {name: count(rig, peer, cases) for name, count in counts.items()}
            except FAULTS as fault:
                print(f"{peer.name} is left out: {fault!s:.300}", flush=True)
            else:
                print(f"{peer.name}: {found[peer.name]}", flush=True)
    return found


def table(found: dict[str, dict[str, Figures]]) -> list[str]:
    """Thousands of instructions and calls; behind a peer's, ours by it."""
    cases = [case for case in CASES if any(case.name in each["calls"] for each in found.values())]
    rows = [["", *(part for case in cases for part in case.headings)]]
    for name, figures in found.items():
        cells = []
        for case in cases:
            for what, scale in (("instructions", 1e-3), ("calls", 1.0)):
                ours = found.get(OURS, {}).get(what, {}).get(case.name)
                cells.append(cell(figures.get(what, {}).get(case.name), scale, ours, name))
        rows.append([name, *cells])
    return rows


def cell(value: float | None, scale: float, ours: float | None, name: str) -> str:
    if not value:
        return "–"
    text = f"{value * scale:,.0f}" if value * scale >= 100 else f"{value * scale:.1f}"
    return text if name == OURS or not ours else f"{text} ({ours / value:.2g})"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("--peers", default=DEFAULT_PEERS, help="beside ours; none, or names")
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--backend", default="asyncio", help="of our proxy")
    parser.add_argument("--calls-only", action="store_true", help="without valgrind")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "instructions.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    settle_down_here()
    found = measured(options)
    rows = table(found)
    print("\n".join(aligned(rows)))
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
