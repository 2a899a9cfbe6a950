"""A real Prometheus, with the files of ``contrib``, that watches a proxy under load: every rule
gives a value, and every panel of the dashboards has data. One for all of that and each event loop,
as it takes most of a core."""

import pytest
from dashboards import DASHBOARDS, queries
from deployment_files import CONTRIB, documents
from prometheus_server import Load, Prometheus, until, until_none_is_silent

FILES = CONTRIB / "prometheus"
NAMES = tuple(DASHBOARDS)


def names_of(file: str, kind: str) -> set[str]:
    [content] = documents(FILES / file)
    return {rule[kind] for group in content["groups"] for rule in group["rules"]}


RECORDED = names_of("rules.yml", "record")
ALERTS = names_of("alerts.yml", "alert")


def test_every_rule_gives_a_value(watched: tuple[Prometheus, Load]) -> None:
    server, _ = watched
    until_none_is_silent(server, RECORDED, "some rules give nothing")
    groups = server.get("/api/v1/rules")["data"]["groups"]
    found = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(found) == RECORDED | ALERTS
    assert set(found.values()) == {"ok"}


def test_an_alert_that_should_is_about_to_fire(watched: tuple[Prometheus, Load]) -> None:
    server, _ = watched
    for alert in ("CerebrasProxyTTFTOverTarget", "CerebrasProxyUnpricedModels"):
        until(lambda alert=alert: server.query(f'ALERTS{{alertname="{alert}"}}'), alert)  # type: ignore[misc]
    others = "CerebrasProxyDown|CerebrasProxyWorkersMissing|CerebrasProxyQuotaNearlyUsed"
    assert not server.query(f'ALERTS{{alertstate="firing", alertname=~"{others}"}}')


def test_every_request_is_counted(watched: tuple[Prometheus, Load]) -> None:
    server, load = watched

    def counted() -> float:
        return sum(sample.value for sample in server.query("sum(cerebras_proxy_requests_total)"))

    requested = load.stop()
    try:
        assert requested > 0
        until(lambda: counted() >= requested, "not all requests are counted")
        assert counted() == requested
    finally:
        load.start()


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_something_to_show(name: str, watched: tuple[Prometheus, Load]) -> None:
    server, _ = watched
    requested = {query.expression for query in queries(DASHBOARDS[name], "prometheus")}
    until_none_is_silent(server, requested, "some panels stay empty")


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_has_something_to_choose(name: str, watched: tuple[Prometheus, Load]) -> None:
    """``label_values(series, label)`` is Grafana's own; it queries the series."""
    server, _ = watched
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] == "query":
            series, _, label = variable["definition"][len("label_values(") : -1].rpartition(", ")
            series = series.replace("$job", "cerebras-proxy")
            until(lambda s=series: server.query(s), series)  # type: ignore[misc]
            assert all(label in sample.labels for sample in server.query(series))
