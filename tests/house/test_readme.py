"""What the README says of tables that are in the code."""

import re
from pathlib import Path

import pytest
from end_to_end import KEY
from scraping import rendered

from ape_cerebras.config.config import Config
from ape_cerebras.config.settings import SETTINGS, Setting
from ape_cerebras.simulator.options import FAULTS
from ape_cerebras.telemetry.exchange import OUTCOMES
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.place import Board, Place, Ports

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
def test_every_setting_has_its_row(setting: Setting) -> None:
    row = re.search(rf"^\| `{setting.variable}` \|.*\| (.*) \|$", README, re.MULTILINE)
    assert row
    assert row[1] == setting.meaning


def test_every_outcome_and_every_fault_is_there() -> None:
    assert not [name for name in (*OUTCOMES, *FAULTS) if f"`{name}`" not in README]


def test_every_metric_is_there_and_no_other(tmp_path: Path) -> None:
    def names(place: Place | None = None) -> set[str]:
        metrics = Metrics(Config.from_environment({"CEREBRAS_API_KEY": KEY}), "asyncio", place)
        zero = lambda: 0.0  # noqa: E731
        metrics.watch(
            in_flight=zero,
            client_connections=zero,
            active=zero,
            idle=zero,
            lines_dropped=zero,
            waiting=zero,
            knows_client=bool,
        )
        text, _ = rendered(metrics)
        return set(re.findall(r"^# TYPE cerebras_proxy_(\w+) ", text.decode(), re.MULTILINE))

    both = names() | names(Place(1, Board(2), Ports(), str(tmp_path)))
    section = README.partition("## Metrics")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == both
