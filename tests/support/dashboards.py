"""The dashboards in ``contrib/grafana``: their panels, and the queries of these."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from prometheus_server import CONTRIB

__all__ = ("DASHBOARDS", "Query", "panels", "queries")

DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: orjson.loads(path.read_bytes())
    for path in sorted((CONTRIB / "grafana" / "dashboards").glob("*.json"))
}
_VARIABLES = {
    "__rate_interval": "1m",
    "__range": "5m",
    "__interval": "15s",
    "job": "cerebras-proxy",
    "model": ".*",
    "trace_id": "",
}


class Query(NamedTuple):
    panel: str
    expression: str


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """The panels that show data."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any], source: str) -> Iterator[Query]:
    """The panels' queries to a kind of source, with values in place of the variables."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            if target["datasource"]["type"] == source:
                yield Query(panel["title"], re.sub(r"\$(\w+)", _value_of, target["expr"]))


def _value_of(variable: re.Match[str]) -> str:
    return _VARIABLES[variable[1]]
