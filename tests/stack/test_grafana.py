"""The dashboards: they are whole, and their series exist."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards import DASHBOARDS, panels, queries
from prometheus_server import (
    CONTRIB,
    known_names,
    names_in,
)

NAMES = tuple(DASHBOARDS)
# The version of Grafana 12 and 13, by their published schema.
SCHEMA_VERSION = 42
SOURCES = {"${datasource}": "prometheus", "${logs}": "loki"}


def test_there_are_two_with_names_of_their_own() -> None:
    assert NAMES == ("load-test", "operator")
    for key in ("uid", "title"):
        assert len({dashboard[key] for dashboard in DASHBOARDS.values()}) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_describes_what_it_shows_and_queries_a_source_that_can_be_chosen(
    name: str,
) -> None:
    variables = {each["name"]: each for each in DASHBOARDS[name]["templating"]["list"]}
    for panel in panels(DASHBOARDS[name]):
        assert panel["title"]
        assert panel["description"].endswith(".")
        for request_of in (panel, *panel["targets"]):
            uid, kind = request_of["datasource"]["uid"], request_of["datasource"]["type"]
            assert SOURCES[uid] == kind
            variable = variables[uid.strip("${}")]
            assert (variable["type"], variable["query"]) == ("datasource", kind)


@pytest.mark.parametrize("name", NAMES)
def test_grafana_has_nothing_to_migrate(name: str) -> None:
    """Every kind of panel is one of today's, and what the last migrations change is not there."""
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] == SCHEMA_VERSION
    assert isinstance(dashboard["refresh"], str)
    assert "time_options" not in dashboard.get("timepicker", {})
    kinds = {panel["type"] for panel in dashboard["panels"]}
    assert kinds <= {"heatmap", "logs", "row", "stat", "table", "timeseries"}
    for panel in panels(dashboard):
        assert "formatTime" not in {each["id"] for each in panel.get("transformations", ())}
        overrides = panel.get("fieldConfig", {}).get("overrides", ())
        properties = {row["id"] for each in overrides for row in each["properties"]}
        assert "custom.hideFrom" not in properties


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_numbers_and_places_of_their_own(name: str) -> None:
    placed = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in placed}) == len(placed)
    for one, other in combinations([panel["gridPos"] for panel in placed], 2):
        assert one["x"] + one["w"] <= 24
        assert not _overlap(one, other), (one, other)


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (apart_x or apart_y)


@pytest.mark.parametrize("name", NAMES)
def test_all_names_are_those_of_series_that_there_are(name: str, tmp_path: Path) -> None:
    known = known_names(tmp_path)
    for query in queries(DASHBOARDS[name], "prometheus"):
        assert names_in(query.expression) or "ALERTS{" in query.expression, query
        assert names_in(query.expression) <= known, query


def test_what_is_provisioned() -> None:
    def read(kind: str) -> Any:
        [path] = (CONTRIB / "grafana" / "provisioning" / kind).glob("*.yml")
        return yaml.safe_load(path.read_text("utf-8"))

    assert {each["type"] for each in read("datasources")["datasources"]} == set(SOURCES.values())
    assert [each["type"] for each in read("dashboards")["providers"]] == ["file"]
