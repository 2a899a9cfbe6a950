"""``make demo-report``, shorter: the report shows what the demonstration does to its agents."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from server_process import environment, start

from ape_cerebras.commands import run_command

DEMO = Path(__file__).parents[2] / "contrib" / "demo" / "demo_report.py"


@pytest.fixture
def demo() -> Any:
    spec = spec_from_file_location("demo_report", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forked(command: tuple[str, ...], **options: Any) -> subprocess.Popen[Any]:
    assert command[:3] == (sys.executable, "-m", "ape_cerebras")
    return start(*command[3:], **{"env": environment(), **options})


def done_here(command: tuple[str, ...], check: bool) -> subprocess.CompletedProcess[str]:
    assert command[:3] == (sys.executable, "-m", "ape_cerebras")
    return subprocess.CompletedProcess(command, run_command([*command[3:]]))


@pytest.mark.usefixtures("not_laid_out")
def test_the_demonstration_has_what_it_says(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of its agents, a tenth of the tokens, and a third of the calm. Its services are
    forked, and the report is made here."""
    processes = SimpleNamespace(Popen=forked, run=done_here, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(demo, "subprocess", processes)
    fleet = [each._replace(completion_tokens=each.completion_tokens // 10) for each in demo.FLEET]
    monkeypatch.setattr(demo, "FLEET", fleet[::2])
    phases = [
        each._replace(share=each.share / 3) if each.name == "calm" else each for each in demo.PHASES
    ]
    monkeypatch.setattr(demo, "PHASES", phases)
    monkeypatch.setattr(sys, "argv", [str(DEMO), "--seconds", "12", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 0
    assert_figures_are_right(tmp_path)
    assert_page_and_plots_are_there(tmp_path)


def assert_figures_are_right(folder: Path) -> None:
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
    assert found["parts_of_ttft"]["all"]["queue"] > 2 * median(queues)  # by the slow phase alone
    # The slowest are those of the slow phase, but on a busy machine.
    measured = [line for line in lines if line.get("ttft_seconds") is not None]
    measured.sort(key=lambda line: line["ttft_seconds"])
    for parts in found["parts_of_ttft"].values():
        slowest = measured[-int(parts["count"]) :]
        queue = mean(line.get("queue_seconds") or 0.0 for line in slowest)
        assert parts["queue"] == pytest.approx(queue)
    assert found["parts_of_ttft"]["all"]["count"] == len(measured)


def assert_page_and_plots_are_there(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for word in ("upstream_connect_failed", "upstream_rate_limited", "from the intended start"):
        assert word in page
    assert {"ttft-over-time.png", "outcomes.png", "parts-over-time.png", "heat-map.png"} <= {
        path.name for path in (folder / "plots").iterdir()
    }
