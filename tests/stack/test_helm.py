"""The Helm chart: Helm's own engine finds nothing wrong with it, and it renders what
``contrib/kubernetes`` has. The engine is Helm 4's SDK; it runs in a process of its own, for the Go
runtime in it."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import orjson
import pytest
from deployment_files import CONTRIB, config_of, documents, documents_in

from ape_cerebras.version import VERSION

CHART = CONTRIB / "helm" / "cerebras-proxy"
PLAIN = CONTRIB / "kubernetes"
NAME = "cerebras-proxy"
MONITORING: dict[str, Any] = {
    name: {"enabled": True} for name in ("serviceMonitor", "prometheusRule", "dashboards")
}
KEDA = {"autoscaling": {"enabled": False}, "keda": {"enabled": True}}
FEWEST: dict[str, Any] = {
    name: {"enabled": False} for name in ("autoscaling", "podDisruptionBudget", "networkPolicy")
} | {"service": {"headless": False}}
EVERYTHING: dict[str, Any] = MONITORING | {
    "image": {"tag": "2", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "fullnameOverride": "llm",
    "secret": {"clientKey": ""},
    "settings": {"APE_API_KEYS_FILE": "/run/secrets/cerebras-proxy/keys.toml"},
    "podAnnotations": {"a.example/b": "c"},
    "podLabels": {"team": "agents"},
    "nodeSelector": {"pool": "proxies"},
    "tolerations": [{"key": "proxies", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "serviceAccountName": "agents",
    "extraVolumes": [{"name": "certificates", "configMap": {"name": "authority"}}],
    "extraVolumeMounts": [{"name": "certificates", "mountPath": "/etc/authority"}],
    "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a.example/b": "c"}},
    "networkPolicy": {"egressPorts": [443, 6379]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
}
CHOICES = {
    "defaults": {},
    "monitoring": MONITORING,
    "keda": KEDA,
    "fewest": FEWEST,
    "everything": EVERYTHING,
}
# What a package has no schema of: kinds of the Prometheus operator and of KEDA.
WITHOUT_SCHEMA = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
HELM = """
import sys, json, helm_python as helm
for line in sys.stdin:
    path, values, release = json.loads(line)
    report = {"lint": helm.lint(path, values, strict=True)}
    try:
        with helm.Chart.load(path) as chart:
            report["rendered"] = chart.render(values, name=release, namespace="agents")
    except helm.HelmValuesError as failure:
        report["refused"] = str(failure)
    print(json.dumps(report), flush=True)
"""

pytestmark = pytest.mark.skipif(
    find_spec("helm_python") is None, reason="helm-python-sdk has no wheel for this platform"
)


@cache
def _engine() -> subprocess.Popen[bytes]:
    """Helm's process, which reads a line and prints one."""
    pipe = subprocess.PIPE
    return subprocess.Popen((sys.executable, "-c", HELM), stdin=pipe, stdout=pipe)


@pytest.fixture(scope="module", autouse=True)
def _end_of_the_engine() -> Iterator[None]:
    yield
    if _engine.cache_info().currsize:
        _engine().communicate()
        assert _engine().returncode == 0
        _engine.cache_clear()
    _helm.cache_clear()
    _rendered.cache_clear()


@cache
def _helm(values: bytes, release: str) -> Any:
    engine = _engine()
    assert engine.stdin is not None
    assert engine.stdout is not None
    engine.stdin.write(orjson.dumps([str(CHART), orjson.loads(values), release]) + b"\n")
    engine.stdin.flush()
    return orjson.loads(engine.stdout.readline())


def helm(values: dict[str, Any], release: str = NAME) -> Any:
    return _helm(orjson.dumps(values), release)


def rendered(values: dict[str, Any], release: str = NAME) -> dict[tuple[str, str], dict[str, Any]]:
    """The documents, by kind and name; the caller's own."""
    return deepcopy(_rendered(orjson.dumps(values), release))


@cache
def _rendered(values: bytes, release: str) -> dict[tuple[str, str], dict[str, Any]]:
    files: dict[str, str] = _helm(values, release)["rendered"]
    found = [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in documents_in(text)
        if document
    ]
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(by_name) == len(found)
    return by_name


def plain(file: str) -> dict[str, Any]:
    return documents(PLAIN / file)[0]


def test_it_has_the_version_of_the_proxy() -> None:
    [chart] = documents(CHART / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


@pytest.mark.parametrize("values", CHOICES.values(), ids=CHOICES)
def test_helm_finds_nothing_wrong(values: dict[str, Any]) -> None:
    report = helm(values)["lint"]
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", CHOICES.values(), ids=CHOICES)
def test_the_schemas_of_kubernetes_allow_it(values: dict[str, Any]) -> None:
    for (kind, _), manifest in rendered(values).items():
        if kind not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(
                manifest, kubernetes_validate.latest_version(), strict=True
            )


@pytest.mark.parametrize(
    "values",
    [
        {"imag": {"tag": "1"}},
        {"keda": {"enabled": True}},  # beside autoscaling
        {"settings": {"APE_API_KEY": "a-key"}},
        {"settings": {"RETRY_ATTEMPTS": 1}},  # a large number would become 1e+06
        {"replicaCount": "two"},
        {"serviceMonitor": {"interval": "soon"}},
    ],
    ids=str,
)
def test_the_schema_refuses_values_that_mean_nothing(values: dict[str, Any]) -> None:
    assert "rendered" not in helm(values)
    assert helm(values)["refused"]


def test_kinds_are_switched_by_values() -> None:
    every = {kind for kind, _ in rendered(MONITORING)}
    assert every == {
        *("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
        *("NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ConfigMap"),
    }
    assert {kind for kind, _ in rendered(FEWEST)} == {"Deployment", "Service"}
    kinds = {kind for kind, _ in rendered(KEDA)}
    assert "ScaledObject" in kinds
    assert "HorizontalPodAutoscaler" not in kinds
    assert "replicas" not in rendered({})["Deployment", NAME]["spec"]
    assert rendered(FEWEST)["Deployment", NAME]["spec"]["replicas"] == 2


def test_every_value_has_its_place() -> None:
    manifests = rendered(EVERYTHING)
    assert all(name == "llm" or name.startswith("llm-") for _, name in manifests)
    spec = manifests["Deployment", "llm"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    for name in ("nodeSelector", "tolerations", "affinity", "imagePullSecrets"):
        assert spec[name] == EVERYTHING[name]
    assert (spec["priorityClassName"], spec["serviceAccountName"]) == ("high", "agents")
    assert spec["volumes"][1:] == EVERYTHING["extraVolumes"]
    assert container["volumeMounts"][1:] == EVERYTHING["extraVolumeMounts"]
    assert container["image"].endswith(":2")
    assert "APE_API_KEY_FILE" not in {row["name"] for row in container["env"]}
    service = manifests["Service", "llm"]
    assert (service["spec"]["type"], service["spec"]["ports"][0]["port"]) == ("LoadBalancer", 80)
    opened = manifests["NetworkPolicy", "llm"]["spec"]["egress"][1]["ports"]
    assert [each["port"] for each in opened] == [443, 6379]
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert manifests[kind, "llm"]["metadata"]["labels"]["release"] == "prometheus"


def without_instance(value: Any) -> Any:
    """A manifest without the label that distinguishes several releases."""
    if isinstance(value, list):
        return [without_instance(each) for each in value]
    if isinstance(value, dict):
        apart = "app.kubernetes.io/instance"
        return {name: without_instance(each) for name, each in value.items() if name != apart}
    return value


def test_the_deployment_is_the_plain_one() -> None:
    chart = without_instance(rendered({})["Deployment", NAME])["spec"]
    [container] = chart["template"]["spec"]["containers"]
    assert container.pop("imagePullPolicy") == "IfNotPresent"
    [kustomized] = plain("kustomization.yaml")["images"]
    assert container["image"] == f"{kustomized['newName']}:{kustomized['newTag']}"
    container["image"] = NAME
    assert chart == plain("deployment.yaml")["spec"]


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("hpa.yaml", {}),
        ("pdb.yaml", {}),
        ("networkpolicy.yaml", {}),
        ("servicemonitor.yaml", MONITORING),
        ("monitoring/prometheusrule.yaml", MONITORING),
    ],
)
def test_what_belongs_to_it_is_the_plain_one(file: str, values: dict[str, Any]) -> None:
    expected = plain(file)
    found = rendered(values)[expected["kind"], NAME]
    assert without_instance(found["spec"]) == expected["spec"]


def test_the_services_are_the_plain_ones() -> None:
    for expected in documents(PLAIN / "service.yaml"):
        found = without_instance(rendered({})["Service", expected["metadata"]["name"]])
        assert found["spec"] == {**expected["spec"]} | (
            {} if "clusterIP" in expected["spec"] else {"type": "ClusterIP"}
        )
        assert found["metadata"]["labels"].items() >= expected["metadata"]["labels"].items()


def test_keda_scales_as_the_plain_example_in_the_namespace_of_the_release() -> None:
    expected = plain("scaledobject.yaml")["spec"]
    [trigger] = expected["triggers"]
    query = trigger["metadata"]["query"]
    trigger["metadata"]["query"] = query.replace('namespace="cerebras-proxy"', 'namespace="agents"')
    assert trigger["metadata"]["query"] != query
    assert rendered(KEDA)["ScaledObject", NAME]["spec"] == expected


def test_the_dashboards_are_those_of_contrib() -> None:
    for name in ("operator", "load-test"):
        found = rendered(MONITORING)["ConfigMap", f"{NAME}-{name}"]
        text = (CONTRIB / "grafana" / "dashboards" / f"{name}.json").read_text("utf-8")
        assert orjson.loads(found["data"][f"{name}.json"]) == orjson.loads(text)
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_package_has_what_the_chart_links_to(tmp_path: Path) -> None:
    """``contrib`` is not there where the package is."""
    program = "from helm_python import package; package({!r}, destination={!r})"
    command = (sys.executable, "-c", program.format(str(CHART), str(tmp_path)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    links = {path.name: path for path in (CHART / "files").iterdir()}
    assert set(links) == {"rules.yml", "alerts.yml", "operator.json", "load-test.json"}
    with tarfile.open(tmp_path / f"{NAME}-{VERSION}.tgz") as package:
        for name, path in links.items():
            packed = package.extractfile(f"{NAME}/files/{name}")
            assert packed is not None
            assert packed.read() == path.read_bytes()


def test_settings_reach_the_proxy(tmp_path: Path) -> None:
    """As a ConfigMap beside the fixed ones; another value gives the pods another annotation."""
    manifests = rendered({"settings": {"LOG_LEVEL": "debug"}, "gracefulShutdownSeconds": 20})
    spec = manifests["Deployment", NAME]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": NAME}}]
    fixed = {row["name"]: row["value"] for row in container["env"]}
    config = config_of({**manifests["ConfigMap", NAME]["data"], **fixed}, tmp_path)
    assert (config.log_level, config.graceful_shutdown_timeout) == ("debug", 20)
    assert spec["terminationGracePeriodSeconds"] == 30
    sums = {
        rendered({"settings": {"LOG_LEVEL": level}})["Deployment", NAME]["spec"]["template"][
            "metadata"
        ]["annotations"]["checksum/settings"]
        for level in ("debug", "info")
    }
    assert len(sums) == 2


def test_two_releases_in_a_namespace_have_nothing_in_common() -> None:
    one, other = rendered(MONITORING, "one"), rendered(MONITORING, "other")
    assert not set(one) & set(other)
    for manifests, release in ((one, "one"), (other, "other")):
        name = f"{release}-{NAME}"
        selector = manifests["Deployment", name]["spec"]["selector"]["matchLabels"]
        assert selector["app.kubernetes.io/instance"] == release
        assert manifests["Service", name]["spec"]["selector"] == selector
        assert manifests["ServiceMonitor", name]["spec"]["selector"]["matchLabels"] == selector
        assert manifests["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"] == selector
