"""The compose files, checked without an engine: the specification allows them, every image has a
version, every file exists, and the proxy knows its settings."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from deployment_files import CONTRIB, config_of, documents
from programs import tool
from prometheus_server import until, watching_prometheus
from server_process import TIMEOUT, Served, serving

FILES = {name: CONTRIB / "compose" / f"{name}.yml" for name in ("proxy", "stack")}
ELSEWHERE = ("./secrets/", "/var/run/docker.sock")  # the operator's, the engine's
GRACE = {"70s": 70}

Service = dict[str, Any]


def services(file: str) -> dict[str, Service]:
    [document] = documents(FILES[file])
    found: dict[str, Service] = document["services"]
    return found


EVERY = [(file, name) for file in FILES for name in services(file)]
PROXIES = [(file, "cerebras-proxy") for file in FILES]


def test_the_specification_allows_them() -> None:
    check = ("check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = subprocess.run(
        (sys.executable, "-m", *check, *map(str, FILES.values())),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_every_service_is_confined(file: str, name: str) -> None:
    service = services(file)[name]
    limits = service["deploy"]["resources"]["limits"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(limits) == {"cpus", "memory", "pids"}


@pytest.mark.parametrize(("file", "name"), EVERY)
def test_every_image_is_built_here_or_has_a_version(file: str, name: str) -> None:
    service = services(file)[name]
    if "build" in service:
        assert (FILES[file].parent / service["build"] / "Dockerfile").is_file()
    else:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_there(file: str) -> None:
    [document] = documents(FILES[file])
    mounts = [mount for service in services(file).values() for mount in service.get("volumes", ())]
    sources = [mount.split(":")[0] for mount in mounts]
    sources += [secret["file"] for secret in document.get("secrets", {}).values()]
    named = set(document.get("volumes", ()))
    ours = [path for path in sources if path not in named and not path.startswith(ELSEWHERE)]
    assert not [path for path in ours if not (FILES[file].parent / path).exists()]


@pytest.mark.parametrize("file", FILES)
def test_what_is_depended_on_is_there(file: str) -> None:
    for service in services(file).values():
        assert set(service.get("depends_on", ())) <= set(services(file))


@pytest.mark.parametrize(("file", "name"), PROXIES)
def test_the_proxy_knows_its_settings(file: str, name: str, tmp_path: Path) -> None:
    """And has the time that it takes to drain."""
    service = services(file)[name]
    config = config_of(service["environment"], tmp_path)
    assert config.graceful_shutdown_timeout + 5 <= GRACE[service["stop_grace_period"]]
    assert (config.port, config.metrics_port, config.metrics_on_main_port) == (8000, 8002, False)
    assert service["healthcheck"]["test"] == ["CMD", "curl", "-f", "http://localhost:8000/health"]


def test_secrets_are_files_of_the_container() -> None:
    [document] = documents(FILES["proxy"])
    service = services("proxy")["cerebras-proxy"]
    files = {path for name, path in service["environment"].items() if name.endswith("_FILE")}
    assert set(service["secrets"]) == set(document["secrets"])
    assert files == {f"/run/secrets/{name}" for name in service["secrets"]}


def test_services_are_named_as_they_are() -> None:
    """The balancer, which also outlasts the proxies' drain; Prometheus; the collector; Grafana."""
    stack = services("stack")
    proxy, config = stack["cerebras-proxy"], CONTRIB / "prometheus/prometheus.yml"
    [job] = documents(config)[0]["scrape_configs"]
    assert job["dns_sd_configs"] == [{"names": ["cerebras-proxy"], "type": "A", "port": 8002}]
    assert "cerebras-proxy:8000 resolvers" in (CONTRIB / "haproxy/haproxy.cfg").read_text()
    assert stack["haproxy"]["stop_grace_period"] == proxy["stop_grace_period"]
    assert proxy["environment"]["CEREBRAS_BASE_URL"] == "http://simulator:8001"
    assert stack["simulator"]["command"][:5] == ["simulate", "--host", "0.0.0.0", "--port", "8001"]
    assert stack["agents"]["command"][0] == "http://haproxy:8000"
    assert "compose.service=cerebras-proxy" in (CONTRIB / "loki/config.alloy").read_text()
    datasources = CONTRIB / "grafana/provisioning/datasources/cerebras-proxy.yml"
    urls = [source["url"] for source in documents(datasources)[0]["datasources"]]
    assert urls == ["http://prometheus:9090", "http://loki:3100"]


@contextmanager
def agents_of(port: int, number: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ("sh", str(CONTRIB / "compose/agents.sh"), f"http://127.0.0.1:{port}", str(number))
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as agents:
        try:
            yield agents
        finally:
            with suppress(ProcessLookupError):
                os.killpg(agents.pid, signal.SIGKILL)


@pytest.mark.parametrize("backend", ["asyncio"])  # the stack's own
def test_no_alert_comes_of_the_agents(backend: str, tmp_path: Path) -> None:
    """With the settings of the stack, whatever an alert waits for. Times are the machine's."""
    tool("prometheus", "prometheus")
    stack = services("stack")
    arguments = [str(each) for each in stack["simulator"]["command"][5:]]
    settings = {**stack["cerebras-proxy"]["environment"], "METRICS_PORT": "0", "BACKEND": backend}
    [document] = documents(CONTRIB / "prometheus" / "alerts.yml")
    alerts = {rule["alert"]: rule["expr"] for rule in document["groups"][0]["rules"]}
    with (
        serving("simulate", *arguments) as simulator,
        serving(
            "serve", **settings | {"CEREBRAS_BASE_URL": f"http://127.0.0.1:{simulator.port}"}
        ) as served,
        watching_prometheus(served, tmp_path) as server,
        agents_of(served.port, 4),
    ):
        refused = 'cerebras_proxy_outcomes_total{outcome="upstream_rejected"}'
        until(lambda: server.query(refused), "the agents do not get to their last request")
        reserved = "sum(increase(cerebras_proxy_reserved_tokens_total[1h])) > 0"
        rate = "job:cerebras_proxy_requests:rate5m > 0"
        for needed in (reserved, rate):
            until(lambda needed=needed: server.query(needed), needed)  # type: ignore[misc]
        raised = {name for name, expression in alerts.items() if server.query(expression)}
    assert raised <= {"CerebrasProxyTTFTOverTarget", "CerebrasProxyLoopLag"}


def test_the_agents_get_their_responses(demo: Served) -> None:
    """As streams and plain responses; and one of their requests is refused. SIGTERM ends all of
    them."""
    with agents_of(demo.port, 2) as agents:
        wanted = {(200, True), (200, False), (404, True)}
        while wanted:
            line = demo.line("outcome")
            assert line["intended_start_lag_seconds"] >= 0
            wanted.discard((line["status_code"], line["stream"]))
        agents.terminate()
        agents.communicate(timeout=TIMEOUT)  # to the end of the output, which all of them share
        assert agents.returncode == 0
