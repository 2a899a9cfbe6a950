"""``make demo-report``, shorter: the report shows what the demonstration does to its agents."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from server_process import environment

from ape_cerebras.commands import run_command

DEMO = Path(__file__).parents[2] / "contrib" / "demo" / "demo_report.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    arguments = (sys.executable, DEMO, "--seconds", "8", "--folder", made)
    subprocess.run(arguments, check=True, capture_output=True, env=environment())
    return made


def test_the_demonstration_has_what_it_says(folder: Path) -> None:
    lines = [orjson.loads(line) for line in (folder / "proxy.log").read_bytes().splitlines()]
    assert run_command(["report", str(folder / "proxy.log"), "--json", str(folder / "a.json")]) == 0
    found = orjson.loads((folder / "a.json").read_bytes())
    assert found["runs"]["demo"]["missing"] == 0
    failures = {
        (each["outcome"], each["upstream_code"], each["cause"]) for each in found["failures"]
    }
    assert ("upstream_connect_failed", "", "ECONNREFUSED") in failures
    assert ("upstream_rate_limited", "queue_exceeded", "") in failures
    assert found["sums"]["lagged"] > 0
    queues = [line["queue_seconds"] for line in lines if "queue_seconds" in line]
    assert min(queues) < 0.1
    assert 0.35 < max(queues) < 1.0
    parts = found["parts_of_ttft"]
    assert parts["slowest_1_percent"]["queue"] > parts["all"]["queue"]


def test_its_page_and_plots_are_there(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for word in ("upstream_connect_failed", "upstream_rate_limited", "from the intended start"):
        assert word in page
    assert {"ttft-over-time.png", "outcomes.png", "parts-over-time.png", "heat-map.png"} <= {
        path.name for path in (folder / "plots").iterdir()
    }
