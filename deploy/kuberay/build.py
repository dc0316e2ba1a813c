"""Writes the manifests that repeat tested files: `python -m deploy.kuberay.build`.

`make manifests` does it too. Rules come from deploy/prometheus/rules, dashboards from
deploy/grafana/dashboards, and the long-lived cluster from the job: the same machines, but with an
autoscaler.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
RULES = FOLDER.parent / "prometheus/rules"
DASHBOARDS = FOLDER.parent / "grafana/dashboards"
JOB = FOLDER / "job/rayjob.yaml"

Json = dict[str, Any]

_MADE = "# Made by make manifests from {source}; change that.\n"
_CLUSTER = """\
# A long-lived Ray cluster, to which jobs are submitted.
# Without a run there is no GPU machine: the autoscaler adds machines for a run that waits for them
# (cluster.wait_s=1800), and takes them away after ten idle minutes.
"""
_MAX_MACHINES = 4
_IDLE_S = 600


def files() -> dict[str, str]:
    """Path below this folder to content, of every manifest that is made."""
    made = {
        "cluster/raycluster.yaml": _text(cluster(_read(JOB)), "job/rayjob.yaml", _CLUSTER),
        "monitoring/rules.yaml": _text(rules(), "deploy/prometheus/rules"),
    }
    for path in sorted(DASHBOARDS.glob("*.json")):
        source = f"deploy/grafana/dashboards/{path.name}"
        made[f"monitoring/dashboard-{path.stem}.yaml"] = _text(dashboard(path), source)
    return made


def rules() -> Json:
    """All rule files as one PrometheusRule."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in _read(path)["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "crossreid"},
        "spec": {"groups": groups},
    }


def dashboard(path: Path) -> Json:
    """A ConfigMap that the sidecar of Grafana's Helm chart loads."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"crossreid-dashboard-{path.stem}",
            "labels": {"grafana_dashboard": "1"},
            "annotations": {"grafana_folder": "crossreid"},
        },
        "data": {f"crossreid-{path.stem}.json": path.read_text("utf-8")},
    }


def cluster(job: Json) -> Json:
    """The RayCluster of `job`, a RayJob, with an autoscaler beside its head."""
    spec = copy.deepcopy(job["spec"]["rayClusterSpec"])
    # KubeRay gives the head an account whose token the autoscaler needs.
    pod = spec["headGroupSpec"]["template"]["spec"]
    del pod["automountServiceAccountToken"]
    head = pod["containers"][0]
    spec["enableInTreeAutoscaling"] = True
    spec["autoscalerOptions"] = {
        "version": "v2",
        "idleTimeoutSeconds": _IDLE_S,
        "securityContext": head["securityContext"],
        "resources": {bound: {"cpu": "1", "memory": "1Gi"} for bound in ("requests", "limits")},
        "volumeMounts": [m for m in head["volumeMounts"] if m["name"] in ("tmp", "home")],
    }
    for group in spec["workerGroupSpecs"]:
        group |= {"replicas": 0, "minReplicas": 0, "maxReplicas": _MAX_MACHINES}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "crossreid"},
        "spec": spec,
    }


class _Dumper(yaml.SafeDumper):
    """Lines stay lines, and nothing is written as a reference to something above."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _write_string)


def _text(manifest: Json, source: str, about: str = "") -> str:
    body = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return about + _MADE.format(source=source) + body


def _read(path: Path) -> Json:
    return yaml.safe_load(path.read_text("utf-8"))


def main() -> None:
    """Writes every manifest that is made to its place."""
    for name, content in files().items():
        (FOLDER / name).write_text(content, "utf-8")


if __name__ == "__main__":
    main()
