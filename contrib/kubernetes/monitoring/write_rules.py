"""Writes ``prometheusrule.yaml`` from the rules and alerts of ``contrib/prometheus``, as kustomize
cannot place a file inside another document."""

from pathlib import Path
from textwrap import indent

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER.parents[1] / "prometheus" / name for name in ("rules.yml", "alerts.yml"))
HEAD = """\
# Written by write_rules.py from contrib/prometheus: change the files there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cerebras-proxy
spec:
  groups:
"""


def prometheus_rule() -> str:
    groups = [path.read_text("utf-8").partition("\ngroups:\n")[2] for path in SOURCES]
    return HEAD + indent("\n".join(groups), "  ")


if __name__ == "__main__":
    (FOLDER / "prometheusrule.yaml").write_text(prometheus_rule(), "utf-8")
