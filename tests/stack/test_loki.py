"""The files of ``contrib/loki``, checked without a Loki: queries are LogQL by Grafana's own
grammar, they select fields that lines have, and Alloy reads what lines have."""

import os
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from dashboards import DASHBOARDS, queries
from exchanges import plain_exchange, stream_exchange, with_timings
from prometheus_server import CONTRIB

from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.logs import Logs

FILES = CONTRIB / "loki"
JS = Path(__file__).parents[1] / "sdks" / "js"
LABELS = {"job", "instance"}
METADATA = {"level", "trace_id"}
PAGES = (FILES / "queries.md", CONTRIB / "docs" / "log-fields.md")
TEXTS = [path.read_text("utf-8") for path in PAGES]
EXAMPLES = re.findall(r"```logql\n(.*?)\n```", "".join(TEXTS), re.DOTALL)
PANELS = [query.expression for each in DASHBOARDS.values() for query in queries(each, "loki")]
QUERIES = [*EXAMPLES, *PANELS]
# Keys that a line has in certain cases only, which none of the exchanges here is.
NOW_AND_THEN = {"client", "error", "intended_start_lag_seconds"}


def lines_of(*exchanges: Exchange) -> list[dict[str, Any]]:
    written: list[bytes] = []
    logs = Logs("debug", written.append)
    for exchange in exchanges:
        logs.exchange(*with_timings(exchange))
    logs.event("info", "Draining")
    return [orjson.loads(line) for line in written]


LINES = lines_of(stream_exchange(), plain_exchange())
EXCHANGE_KEYS = {key for line in LINES for key in line} | NOW_AND_THEN


def errors_in(requested: list[str]) -> list[list[int]]:
    """For each query the places that Grafana's grammar rejects."""
    path = shutil.which("node")
    missing = "" if path else "there is no Node"
    if not (JS / "node_modules" / "@grafana" / "lezer-logql").is_dir():
        missing = missing or "the grammar of LogQL is not installed: run 'npm ci' in tests/sdks/js"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    command = (str(path), str(JS / "logql.mjs"))
    done = subprocess.run(command, input=orjson.dumps(requested), capture_output=True, check=True)
    found: list[list[int]] = orjson.loads(done.stdout)
    return found


def test_there_are_queries() -> None:
    assert len(EXAMPLES) > 10
    assert len(PANELS) == 4


def test_all_queries_are_logql() -> None:
    assert errors_in(QUERIES) == [[] for _ in QUERIES]


def test_invalid_logql_is_noticed() -> None:
    wrong = ['{job="a"} | = "b"', 'rate({job="a"}[5m]', "job", ""]
    assert all(errors_in([query])[0] for query in wrong)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_uses_existing_labels_and_keys(query: str) -> None:
    [selector] = re.findall(r"\{(\w+)=~?", query)
    assert selector in LABELS
    from_line = re.findall(r"(\w+)=\"(\w+)\"", "".join(re.findall(r"\| json ([^|]*)", query)))
    named = {name for name, _ in from_line}
    assert {key for _, key in from_line} <= EXCHANGE_KEYS
    known = LABELS | METADATA | named | (EXCHANGE_KEYS if "| json |" in query else set())
    used = re.findall(r"\| (\w+) ?(?:=|!=|=~|>|<)", query) + re.findall(r"unwrap (\w+)", query)
    used += re.findall(r"by \((\w+)\)", query) + re.findall(r"\{\{\.(\w+)\}\}", query)
    assert set(used) - {"__error__"} <= known, query


def test_alloy_reads_what_lines_have() -> None:
    text = re.sub(r"^ *//.*$", "", (FILES / "config.alloy").read_text("utf-8"), flags=re.MULTILINE)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    assert re.findall(r"stage\.(\w+) ", text) == ["json", "timestamp", "structured_metadata"]
    assert set(re.findall(r'target_label += "(\w+)"', text)) == LABELS
    read, kept = (set(re.findall(r'(\w+) = ""', part)) for part in re.findall(r"= \{(.*)\}", text))
    assert (read, kept) == (METADATA | {"timestamp"}, METADATA)
    assert re.findall(r'format = "(\w+)"', text) == ["RFC3339Nano"]
    for line in LINES:
        assert read <= line.keys()
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None


def test_alloy_hands_on_to_what_there_is() -> None:
    """Each component is named where another sends to it or takes from it."""
    text = (FILES / "config.alloy").read_text("utf-8")
    there = {
        f"{kind}.{name}" for kind, name in re.findall(r'^([\w.]+) "(\w+)" \{', text, re.MULTILINE)
    }
    named = set(re.findall(r"= \[?([a-z.]+\.\w+)\.(?:receiver|output|targets)", text))
    assert named <= there
    assert there - named == {"loki.source.docker.cerebras_proxy"}
