"""The bench of quotas: a short look goes from end to end, and its figures are what they are called.
How well anything does is its own affair: nothing of that is asserted here."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "contrib" / "bench"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench needs /proc")


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; the bench's modules find each other beside themselves."""
    monkeypatch.syspath_prepend(str(BENCH))
    return import_module("fleet")


@pytest.mark.parametrize(
    ("shares", "index"), [([5, 5, 5, 5], 1.0), ([7, 0, 0, 0], 0.25), ([1, 3], 0.8), ([0, 0], 0.0)]
)
def test_the_index_of_fairness(fleet: Any, shares: list[int], index: float) -> None:
    assert fleet.jain(shares) == pytest.approx(index)


def test_the_figures_of_a_fleet(fleet: Any) -> None:
    keys = (fleet.Key("anna", 2), fleet.Key("ben", 1))
    found = fleet.Found(keys, seconds=30.0, tokens=900, given_up=2, by_agent=[3, 0, 1])
    found.responses.update({"anna": 3, "ben": 1})
    found.refused.update({"429": 8, "503": 1})
    found.waits = [float(number) for number in range(101)]
    assert found.figures() == {
        "responses_per_minute": 8.0,
        "refused_429": 8.0,
        "refused_other": 1.0,
        "given_up": 2.0,
        "wait_p50_seconds": 50.0,
        "wait_p99_seconds": 99.0,
        "fairness": pytest.approx(0.8),
        "fewest_responses": 0.0,
        "agents_without": 1.0,
        "tokens": 900.0,
    }


def test_a_short_look(tmp_path: Path) -> None:
    path = tmp_path / "quota.json"
    command = (sys.executable, str(BENCH / "quota.py"), "--seconds", "2", "--fewer", "20")
    few = ("--arms", "without", "both", "--reservations", "kept")
    options = (*few, "--tokens-per-minute", "20000", "--json", str(path))
    done = subprocess.run(
        (*command, *options), capture_output=True, text=True, timeout=120, check=True
    )
    reported = json.loads(path.read_text("utf-8"))
    assert list(reported) == ["kept"]
    assert list(reported["kept"]) == ["without", "both"]
    for figures in reported["kept"].values():
        assert figures["responses_per_minute"] > 0
        assert 0 < figures["quota_percent"] <= 100
    assert re.search("^reservations kept +without +both$", done.stdout, re.MULTILINE)
    assert re.search(r"^responses a minute +\d+\.\d +\d+\.\d$", done.stdout, re.MULTILINE)


def test_every_figure_has_its_row_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    page = ROOT / "contrib" / "docs" / "benchmarks.md"
    section = page.read_text("utf-8").partition("make bench-quota")[2]
    for figure in import_module("quota").FIGURES:
        assert f"\n| {figure.title} | " in section
