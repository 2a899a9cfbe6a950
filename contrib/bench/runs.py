"""Sequence of rounds: start the mock and the proxies, and measure each scenario with one proxy
after another, the others stopped meanwhile.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from load import Failed
from measures import FAULTS, Figures, Rig, check
from peers import DIRECT, HERE, TOOLS, Peer, Running, Setting, start
from processes import OTHER_CORE, free_port, listening, started
from scenarios import Scenario

Measurement = Callable[[], Figures]
MESSAGE_CHARACTERS = 300  # of an error's message


@dataclass(frozen=True)
class Plan:
    """The peers, scenarios and amounts of a run."""

    peers: Sequence[Peer]
    scenarios: Sequence[Scenario]
    backend: str = "asyncio"
    rounds: int = 3
    seconds: float = 2.0
    quick: bool = False

    def rounds_of(self, scenario: Scenario) -> int:
        if self.quick:
            return 1
        return scenario.once or max(self.rounds, scenario.rounds)


@dataclass
class Outcome:
    """The result of a scenario: for each proxy the figures of its rounds, or its failure."""

    scenario: Scenario
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def certificates(directory: Path) -> tuple[str, str]:
    """A certificate with its key for the mock, and its authority's."""
    for python in (sys.executable, str(TOOLS / "python")):
        command = (python, "-m", "trustme", "-q", "-d", str(directory))
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        both = directory / "both.pem"
        both.write_bytes(
            b"\n".join((directory / f"server.{e}").read_bytes() for e in ("key", "pem"))
        )
        return str(both), str(directory / "client.pem")
    raise Failed("trustme is missing; make bench-peers gets it")


@contextmanager
def mock(scheme: str, plan: Plan) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        certificate, ca = certificates(directory) if scheme == "https" else ("", "")
        port = free_port()
        command = [sys.executable, str(HERE / "raw_upstream.py"), str(port), certificate]
        with started([OTHER_CORE], command, {}, directory / "mock") as process:
            listening(port, process, 10)
            rig = Rig(process, Setting(scheme, port, ca, plan.backend, directory), plan.seconds)
            yield rig.short() if plan.quick else rig


@contextmanager
def all_started(peers: Sequence[Peer], rig: Rig) -> Iterator[list[Running]]:
    """The peers that start and respond, each stopped until it is measured; report the others."""
    targets: list[Running] = []
    with ExitStack() as stack:
        for peer in peers:
            try:
                target = start(peer, rig.setting)
                stack.callback(target.process.stop)
                if odd := check(target):
                    print(f"{peer.name} {odd}", flush=True)
                target.process.pause()
                targets.append(target)
            except FAULTS as fault:
                scheme = rig.setting.scheme
                print(
                    f"{peer.name} is left out, {scheme} upstream: {fault!s:.{MESSAGE_CHARACTERS}}",
                    flush=True,
                )
        yield targets


def _with_fresh(scenario: Scenario, rig: Rig, peer: Peer) -> Figures:
    target = start(peer, rig.setting)
    try:
        return scenario.measure(rig, target)
    finally:
        target.process.stop()


def _with_running(scenario: Scenario, rig: Rig, target: Running) -> Figures:
    target.process.resume()
    try:
        return scenario.measure(rig, target)
    finally:
        target.process.pause()


def measurements(
    scenario: Scenario, rig: Rig, plan: Plan, targets: Sequence[Running]
) -> dict[str, Measurement]:
    """The measurements of a round by proxy, in their order."""
    if scenario.fresh:
        return {peer.name: partial(_with_fresh, scenario, rig, peer) for peer in plan.peers}
    running = {t.peer.name: partial(_with_running, scenario, rig, t) for t in targets}
    if not scenario.direct:
        return {**running}
    mock = Running(DIRECT, rig.setting.upstream_port, rig.mock, 0.0)
    return {DIRECT.name: partial(scenario.measure, rig, mock), **running}


def _round(outcome: Outcome, measurements: dict[str, Measurement]) -> None:
    for name, measure in measurements.items():
        if name in outcome.failed:
            continue
        try:
            outcome.rounds.setdefault(name, []).append(measure())
        except FAULTS as fault:
            outcome.failed[name] = f"{fault!s:.{MESSAGE_CHARACTERS}}"
    if outcome.scenario.direct:
        _add_differences(outcome)


def _add_differences(outcome: Outcome) -> None:
    """Add to the latest round the times that each proxy adds to those of the mock alone."""
    direct = outcome.rounds[DIRECT.name][-1]
    for name, rounds in outcome.rounds.items():
        if name in outcome.failed or name == DIRECT.name:
            continue
        added = {
            f"added_{name}": rounds[-1][name] - direct[name]
            for name in direct
            if name.startswith(("first_", "total_"))
        }
        rounds[-1].update(added)


def run_all(plan: Plan) -> Iterator[Outcome]:
    """Run the whole plan; for TLS upstream the proxies are started anew."""
    for scheme in ("http", "https"):
        chosen = [scenario for scenario in plan.scenarios if scenario.scheme == scheme]
        if not chosen:
            continue
        able = replace(plan, peers=[peer for peer in plan.peers if scheme in peer.schemes])
        staying = [] if all(scenario.fresh for scenario in chosen) else able.peers
        try:
            with mock(scheme, able) as rig, all_started(staying, rig) as targets:
                for scenario in chosen:
                    outcome = Outcome(scenario)
                    for _ in range(plan.rounds_of(scenario)):
                        _round(outcome, measurements(scenario, rig, able, targets))
                    yield outcome
        except Failed as fault:
            print(f"{scheme} upstream is skipped: {fault}", flush=True)
