"""The files of ``contrib/prometheus``, checked with promtool and with a server that watches a proxy
under load."""

import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from deployment_files import documents
from programs import tool
from prometheus_server import (
    CONTRIB,
    known_names,
    names_in,
    until,
    watching_prometheus,
)
from server_process import serving
from worker_service import CHAT, JSON

FILES = CONTRIB / "prometheus"
LEGACY = {
    *("cerebras_proxy_ttft_seconds_p95", "cerebras_proxy_ttft_seconds_avg"),
    *("cerebras_proxy_tokens_per_second", "cerebras_proxy_cost_total"),
}


def read(name: str) -> Any:
    return documents(FILES / name)[0]


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in read(name)["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in rules("rules.yml")}
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
EXPECTED = [test for each in read("tests.yml")["tests"] for test in each["promql_expr_test"]]


def promtool(*arguments: str) -> None:
    command = (tool("promtool", "prometheus"), *arguments)
    done = subprocess.run(command, cwd=FILES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "rules.yml", "alerts.yml")


def test_alerts_fire_and_rules_give_what_they_should() -> None:
    promtool("test", "rules", "tests.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tried_firing_and_not_firing(alert: str) -> None:
    attempts = [bool(each.get("exp_samples")) for each in EXPECTED if f'"{alert}"' in each["expr"]]
    assert set(attempts) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_its_cause_and_labels(alert: str) -> None:
    """The text says what to do, and names only labels that the alert has."""
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    texts = rule["annotations"]
    assert set(texts) == {"summary", "description", "runbook_url"}
    assert len(texts["summary"]) <= 60
    assert texts["runbook_url"] == f"contrib/docs/alerts.md#{alert.lower()}"
    reported = "".join(texts.values())
    samples = [sample for each in EXPECTED for sample in each.get("exp_samples", ())]
    has = [sample["labels"] for sample in samples if f'"{alert}"' in sample["labels"]]
    assert has
    assert all(f"{label}=" in has[0] for label in re.findall(r"\$labels\.(\w+)", reported))


def test_all_names_are_those_of_series_that_there_are(tmp_path: Path) -> None:
    known = known_names(tmp_path)
    assert not known & set(RECORDED)
    for expression in (*RECORDED.values(), *(rule["expr"] for rule in ALERTS.values())):
        assert names_in(expression) <= known | set(RECORDED)
    series = set(re.findall(r"series: (\w+)\{", (FILES / "tests.yml").read_text()))
    assert series - {"up"} <= known


def test_the_names_of_the_older_proxy_are_there() -> None:
    assert set(RECORDED) >= LEGACY


def test_the_page_has_all_alerts_and_no_other() -> None:
    runbook = (CONTRIB / "docs" / "alerts.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == list(ALERTS)
    text = (CONTRIB / "docs" / "metrics.md").read_text("utf-8")
    named = names_in(text.partition("## Prometheus")[2])
    assert {name for name in named if ":" in name} <= set(RECORDED)
    assert named >= LEGACY


@pytest.mark.parametrize("backend", ["asyncio"])  # a scrape has nothing of an event loop
def test_an_exemplar_leads_to_a_trace(backend: str, tmp_path: Path) -> None:
    tool("prometheus", "prometheus")
    with (
        serving("serve", "--demo", BACKEND=backend, METRICS_PORT="0") as served,
        watching_prometheus(served, tmp_path) as server,
        closing(served.connection()) as connection,
    ):
        headers = JSON | {"X-Trace-ID": "trace-1699123456789"}
        connection.request("POST", "/v1/chat/completions", CHAT, headers)
        connection.getresponse().read()
        requested = (
            "/api/v1/query_exemplars?query=cerebras_proxy_ttft_seconds_bucket&start=0&end=9e9"
        )
        until(lambda: server.get(requested)["data"], "no exemplar")
        [series] = server.get(requested)["data"]
    assert [each["labels"] for each in series["exemplars"]] == [{"trace_id": "trace-1699123456789"}]
