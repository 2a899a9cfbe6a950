"""The bench: its tables are complete, and a short run of our proxy alone works from end to end. No
measured time is asserted here."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "contrib" / "bench"
PAGE = (ROOT / "contrib" / "docs" / "benchmarks.md").read_text("utf-8")
ROUND = {"request_cpu_us": 100.0, "requests_per_second": 10.0}
SHORT = ("start", "plain, 1", "burst, 16", "plain, 32, two workers", "plain, 32, TLS")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench needs epoll and /proc")


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench's modules are no package: they find each other beside themselves."""
    monkeypatch.syspath_prepend(str(BENCH))


def entry(**rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {"name": "plain, 32", "table": "plain", "rounds": rounds, "failed": {}}


def test_every_scenario_has_its_columns_and_a_name_of_its_own() -> None:
    scenarios, tables = import_module("scenarios").SCENARIOS, import_module("report").TABLES
    assert {scenario.table for scenario in scenarios} == set(tables)
    assert len({scenario.name for scenario in scenarios}) == len(scenarios)


def test_every_peer_is_on_the_page() -> None:
    assert not [peer.name for peer in import_module("peers").PEERS if peer.name not in PAGE]


def test_every_peer_can_be_set_up(tmp_path: Path) -> None:
    peers = import_module("peers")
    values = peers.Setting("https", 1, "ca.pem", "asyncio", tmp_path).values(2, tmp_path)
    for peer in peers.PEERS:
        assert peer.install
        texts = [*peer.command, *peer.version, *peer.environment.values(), *peer.headers]
        if peer.config:
            texts.append((BENCH / "configs" / peer.config).read_text("utf-8"))
        assert not [text for text in texts if re.search("@[A-Z]+@", peers.filled(text, values))]


def test_a_peer_that_is_missing_is_reported_and_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    bench, peers = import_module("bench"), import_module("peers")
    ours, nginx = (each for each in peers.PEERS if each.name in ("ape_cerebras", "nginx"))
    assert bench.there([ours, replace(nginx, needs=("no-such-program",))]) == [ours]
    assert "no no-such-program here; apt-get install nginx gets it" in capsys.readouterr().out


def test_peers_and_scenarios_are_picked() -> None:
    bench = import_module("bench")
    assert [peer.name for peer in bench.chosen_peers("none")] == ["ape_cerebras"]
    assert [peer.name for peer in bench.chosen_peers("nginx")] == ["ape_cerebras", "nginx"]
    assert [row.name for row in bench.chosen_scenarios("burst, 16;memory*")][-1] == "memory after"
    with pytest.raises(SystemExit, match="no such peer: ngin"):
        bench.chosen_peers("ngin")
    with pytest.raises(SystemExit, match="no such scenario"):
        bench.chosen_scenarios("nothing")


def test_a_table_has_medians_spreads_and_ratios() -> None:
    report = import_module("report")
    ours = [{**ROUND, "request_cpu_us": cost} for cost in (90.0, 300.0, 100.0)]
    lines = report.table(entry(ape_cerebras=ours, nginx=[ROUND, ROUND], direct=[ROUND])).split("\n")
    assert "100 (90–300)" in lines[1]
    assert lines[2].split()[0] == "nginx"
    assert [line.split()[-1] for line in lines[:3]] == ["it", "–", "1.00"]


def test_a_peer_that_failed_is_reported_and_has_no_figures() -> None:
    report = import_module("report")
    failing = {**entry(ape_cerebras=[ROUND], nginx=[]), "failed": {"nginx": "cut off"}}
    assert report.ratios(failing) == {}
    assert "nginx failed: cut off" in report.table(failing)


def test_in_short_ours_comes_with_each_peer_and_the_ratio() -> None:
    cheap = {**ROUND, "request_cpu_us": 40.0}
    entries = [entry(ape_cerebras=[ROUND], nginx=[cheap])]
    run = {"versions": {"ape_cerebras": "", "nginx": "", "haproxy": ""}, "scenarios": entries}
    last = import_module("report").summary(run).splitlines()[-1]
    assert last == "| plain, 32: CPU µs/request | 100 | 40 (2.5) | – |"


def test_runs_are_joined(tmp_path: Path) -> None:
    report = import_module("report")
    paths = []
    for number, name in enumerate(("nginx", "haproxy")):
        run = {"versions": {name: "1"}, "scenarios": [{**entry(), "name": f"row {number}"}]}
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps(run), "utf-8")
    joined = report.joined(paths)
    assert set(joined["versions"]) == {"nginx", "haproxy"}
    assert [row["name"] for row in joined["scenarios"]] == ["row 0", "row 1"]


def test_a_short_run_of_our_proxy_alone(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = (sys.executable, str(BENCH / "bench.py"), "--quick", "--peers", "none")
    options = ("--only", ";".join(SHORT), "--json", str(path))
    done = subprocess.run(
        (*command, *options), capture_output=True, text=True, timeout=60, check=True
    )
    reported = json.loads(path.read_text("utf-8"))
    assert [row["name"] for row in reported["scenarios"]] == list(SHORT)
    for row in reported["scenarios"]:
        assert not row["failed"]
        assert row["rounds"]["ape_cerebras"][0]
        assert re.search(rf"^{row['name']} ", done.stdout, re.MULTILINE)
    assert "left out" not in done.stdout


def test_growth_is_reported_by_the_rounds_it_was_measured_in() -> None:
    growth = import_module("growth")
    lines = growth.table({"streams": {0: [100.0, 200.0, 300.0], 50: [110.0, 240.0, 330.0]}})
    assert lines[1].endswith("200 (100–300), 1.00 times")
    assert lines[2].endswith("240 (110–330), 1.10 times")


def test_as_much_is_opened_as_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    growth = import_module("growth")
    monkeypatch.setattr(growth.resource, "getrlimit", lambda _: (1024, 20_000))
    assert growth.possible((0, 100, 10_000, 20_000)) == [0, 100, 9_750]


def test_a_short_run_of_growth(tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    options = ("0", "5", "--rounds", "1", "--seconds", "0.1", "--json", str(path))
    command = (sys.executable, str(BENCH / "growth.py"), *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = {"0": 1, "5": 1}
    rounds = json.loads(path.read_text("utf-8"))
    assert {
        what: {n: len(found) for n, found in each.items()} for what, each in rounds.items()
    } == {
        "connections": counts,
        "streams": counts,
    }


def test_files_stay_short() -> None:
    assert not [p for p in BENCH.glob("*.py") if len(p.read_text("utf-8").splitlines()) > 300]


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (BENCH / "package-lock.json").read_text("utf-8")


def test_no_release_that_was_compromised_is_measured() -> None:
    lines = (BENCH / "requirements.txt").read_text("utf-8").splitlines()
    [litellm] = [Requirement(line) for line in lines if line.startswith("litellm")]
    assert [each.operator for each in litellm.specifier] == ["=="]
    assert not any(litellm.specifier.contains(each) for each in ("1.82.7", "1.82.8", "1.107.0"))
