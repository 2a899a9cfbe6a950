"""The bench's tools beside the bench: counts of instructions and calls, stages of a first token,
marks, the spread over workers. Short runs go from end to end; no measured time is asserted."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from programs import tool as program

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "contrib" / "bench"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench needs epoll and /proc")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's modules are no package: they find each other beside themselves."""
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture
def rig() -> Iterator[Any]:
    runs = import_module("runs")
    with runs.mock("http", runs.Plan((), (), quick=True)) as rig:
        yield rig


def peer(name: str) -> Any:
    [found] = (each for each in import_module("peers").PEERS if each.name == name)
    return found


# Instructions and calls


def test_a_dump_counts_from_the_zero_on() -> None:
    total_in = import_module("instructions").total_in
    assert total_in("events: Ir\nsummary: 321\n\nfn=a\n1 300\n\ntotals: 4321\n") == 321


def test_the_calls_of_a_request_do_not_depend_on_how_many_there_are(rig: Any) -> None:
    tool = import_module("instructions")
    [plain] = (case for case in tool.CASES if case.name == "plain")
    few, more = (plain._replace(clients=2, requests=number) for number in (40, 120))
    floor = peer("floor-coro")
    counts = [tool.calls(rig, floor, [case])["plain"] for case in (few, more)]
    assert counts[0] == pytest.approx(counts[1], rel=0.3)
    assert counts[0] > 10


def test_the_calls_of_our_proxy_are_counted(rig: Any) -> None:
    tool = import_module("instructions")
    [paced] = (case for case in tool.CASES if case.name == "paced")
    case = paced._replace(clients=2, requests=2)
    assert tool.calls(rig, peer("ape_cerebras"), [case])["paced"] > 50


def test_a_program_that_is_not_pythons_has_no_calls(rig: Any) -> None:
    tool = import_module("instructions")
    assert tool.calls(rig, peer("nginx"), tool.CASES) == {}


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_are_counted_under_callgrind(rig: Any) -> None:
    """nginx's: it starts in a tenth of the instructions that Python takes."""
    program("nginx", "nginx")
    tool = import_module("instructions")
    chosen = [case for case in tool.CASES if case.name in ("plain", "paced", "burst")]
    cases = [case._replace(clients=2, requests=4) for case in chosen]
    found = tool.instructions(rig, peer("nginx"), cases)
    assert found["plain"] > found["paced"] > found["burst"] > 0


def test_counts_come_with_ours_by_the_peers() -> None:
    tool = import_module("instructions")
    found: dict[str, dict[str, dict[str, float]]] = {
        "ape_cerebras": {"instructions": {"plain": 2_400_000.0}, "calls": {"plain": 50.0}},
        "nginx": {"instructions": {"plain": 24_000.0}, "calls": {}},
    }
    assert tool.table(found) == [
        ["", "plain: k instr/request", "calls/request"],
        ["ape_cerebras", "2,400", "50.0"],
        ["nginx", "24.0 (1e+02)", "–"],
    ]


# Stages


def test_the_stages_of_a_first_token() -> None:
    stages = import_module("stages")
    client, api = 1, 2
    notes = [
        ["read", 90.0, client, 89.0],  # of a connection before
        ["woke", 102.0, 0, None],
        ["read", 103.0, client, 100.0],
        ["begins", 105.0, 0, None],
        *([label, 106.0 + at, 0, None] for at, (_, label) in enumerate(stages.UP[3:-2])),
        ["sends", 120.0, api, None],
        ["sent", 121.0, api, None],
        ["woke", 130.0, 0, None],
        ["read", 131.0, api, 129.0],  # the head
        ["sends", 132.0, client, None],
        ["sent", 133.0, client, None],
        ["woke", 142.0, 0, None],
        ["read", 143.0, api, 140.0],
        ["sends", 146.0, client, None],
        ["sent", 150.0, client, None],
    ]
    up, down = stages.stages_of([["started", 100.0], ["token", 140.0], *notes])
    assert list(up) == [label for _, label in stages.UP]
    assert (up["woke"], up["read"], up["begins"], up["head"]) == (2.0, 1.0, 2.0, 1.0)
    assert up["sent"] == 1.0
    assert down == {"woke": 2.0, "read": 1.0, "sends": 3.0, "sent": 4.0}
    assert stages.own_work([(up, down)], 1) == pytest.approx(8e6)
    assert stages.stages_of([["started", 100.0], ["token", None], *notes]) is None
    later = [["read", 145.0, api, 144.0], *notes[-2:]]  # of which only a later token's is known
    with pytest.raises(import_module("load").Failed, match="not noted"):
        stages.stages_of([["started", 100.0], ["token", 140.0], *notes[:-2], *later])


def test_stages_are_noted_outside_the_package(tmp_path: Path) -> None:
    stages = import_module("stages")
    found = stages.measured("asyncio", 5, 0.0)
    assert len(found) == 5
    names = [row[0] for row in stages.table(found)]
    ours = ["our own work up", "our own work down"]
    assert [name for name in names[1:] if name not in ours] == [
        name for name, _ in (*stages.UP, *stages.DOWN)
    ]


# Marks


def test_every_mark_is_measured_by_something() -> None:
    marks, tables = import_module("marks"), import_module("report").TABLES
    scenarios = {each.name: each for each in import_module("scenarios").SCENARIOS}
    for mark in [*marks.MARKS, *marks.variant_marks(["trio", "uvloop"])]:
        if mark.scenario in ("growth", "stages"):
            continue
        columns = tables[scenarios[mark.scenario].table]
        assert mark.figure in [column.figure for column in columns]
        parts = (marks.COST, marks.FIRST, marks.SIZE, marks.WORKERS)
        chosen = import_module("bench").chosen_scenarios(";".join(parts))
        assert mark.scenario in [each.name for each in chosen]


def test_marks_are_reached_or_not_by_the_rounds_they_were_measured_in() -> None:
    marks = import_module("marks")
    cpu = {
        "ape_cerebras": {"request_cpu_us": [300.0, 100.0, 90.0]},
        "floor": {"request_cpu_us": [100.0, 100.0, 100.0]},
    }
    first = {
        "ape_cerebras": {"added_first_p99_ms": [3.0]},
        "nginx": {"added_first_p99_ms": [1.0]},
    }
    rounds = {"plain, 32": cpu, "stream, 1": first}
    rows = {row[0]: row[1:] for row in marks.table(marks.MARKS, rounds)}
    assert rows["plain request, 32 clients"] == ["floor", "1 (0.9–3)", "times", "≤ 1.5", "yes"]
    assert rows["added TTFT p99, one client"] == ["nginx", "2", "ms more", "≤ 1.5", "no"]
    assert rows["two workers, plain, by CPU"][-1] == "not measured"


def test_other_loops_and_pythons_are_measured_beside_ours() -> None:
    marks = import_module("marks")
    names = {each.name: each for each in marks.variants([Path(sys.executable)])}
    assert {"trio", f"Python {sys.version.split()[0]}"} <= set(names)
    assert names["trio"].environment["BACKEND"] == "trio"
    limits = {mark.name: mark.limit for mark in marks.variant_marks(["trio", "uvloop"])}
    assert limits["trio: plain, 32"] == 1.25
    assert limits["uvloop: plain, 32"] is None


# Workers


def test_the_spread_of_few_clients_is_counted(rig: Any) -> None:
    workers, peers = import_module("workers"), import_module("peers")
    ours = peers.Running(peer("ape_cerebras"), 0, rig.mock, 0.0)
    figures = workers.spread(replace(rig, trials=2), ours)
    assert figures["trials"] == 2
    assert 0 <= figures["even_percent"] + figures["on_one_percent"] <= 100
    assert workers.spread(rig, replace(ours, peer=peer("nginx"))) == {}
