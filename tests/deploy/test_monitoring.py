"""The PodMonitor finds the exporters, and gives their series the labels that the rules expect."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomize import Json, every_object, of_kind, rendered
from tests.deploy.pods import pods
from tests.deploy.test_network import matches

(MONITOR,) = of_kind(rendered("monitoring"), "PodMonitor")
WITHOUT = yaml.safe_load(Path("deploy/prometheus/kubernetes.yml").read_text())
(SCRAPE,) = WITHOUT["scrape_configs"]
PODS = [pod for _, found in every_object() for pod in pods(found)]
LIMITS = {
    "sampleLimit": "sample_limit",
    "labelLimit": "label_limit",
    "labelNameLengthLimit": "label_name_length_limit",
    "labelValueLengthLimit": "label_value_length_limit",
}
OF_OPERATOR = {"pod", "container", "endpoint"}
"""What the operator adds beyond job, instance and namespace."""


def complaints(monitor: Json) -> list[str]:
    """What keeps the monitor from scraping every head, and nothing else, as kubernetes.yml does."""
    spec, wrong = monitor["spec"], []
    (endpoint,) = spec["podMetricsEndpoints"]
    for pod in PODS:
        has_port = endpoint["port"] in {port["name"] for port in pod.main.get("ports", ())}
        is_found = matches(spec["selector"], pod.labels)
        if (is_found and has_port) != (pod.role == "head"):
            wrong.append(f"{pod.name} is {'scraped' if is_found and has_port else 'missed'}")
        if is_found and pod.labels.get(spec["jobLabel"]) != SCRAPE["job_name"]:
            wrong.append(f"{pod.name} is not job {SCRAPE['job_name']}")
    wrong += [f"{ours} differs" for ours, name in LIMITS.items() if spec.get(ours) != SCRAPE[name]]
    if endpoint["interval"] != WITHOUT["global"]["scrape_interval"]:
        wrong.append("the interval differs")
    return wrong + labels(endpoint["relabelings"])


def labels(relabelings: list[Json]) -> list[str]:
    added = {said["targetLabel"] for said in relabelings if "targetLabel" in said}
    dropped = {
        name for said in relabelings if said.get("action") == "labeldrop"
        for name in said["regex"].split("|")
    }  # fmt: skip
    wanted = {said["target_label"] for said in SCRAPE["relabel_configs"] if "target_label" in said}
    found = {"namespace"} | (OF_OPERATOR - dropped) | added
    return [] if found == wanted else [f"labels {sorted(found)}, expected {sorted(wanted)}"]


def test_the_monitor_scrapes_every_head_as_without_the_operator():
    assert complaints(MONITOR) == []


def test_what_prometheus_reads_bears_its_releases_label():
    for found in rendered("monitoring"):
        assert found["metadata"]["labels"]["release"] == "prometheus"
        assert found["metadata"]["namespace"] == "crossreid"


def test_without_the_operator_alerts_leave_the_pod_and_pods_may_be_seen():
    """Nothing else listens on the loopback of Prometheus' pod, and its account sees no pods."""
    targets = [
        target
        for manager in WITHOUT["alerting"]["alertmanagers"]
        for target in manager["static_configs"][0]["targets"]
    ]
    assert targets
    assert not [target for target in targets if target.startswith(("127.", "localhost"))]
    (discovery,) = SCRAPE["kubernetes_sd_configs"]
    (namespace,) = discovery["namespaces"]["names"]
    asks = f"kubectl -n {namespace} create role see-pods --verb=get,list,watch --resource=pods"
    assert asks in Path("deploy/prometheus/kubernetes.yml").read_text()


def test_grafana_reads_the_folder_that_the_dashboards_name():
    (annotations,) = {
        tuple(found["metadata"]["annotations"].items())
        for found in of_kind(rendered("monitoring"), "ConfigMap")
    }
    ((key, folder),) = annotations
    readme = Path("deploy/README.md").read_text()
    assert f"--set grafana.sidecar.dashboards.folderAnnotation={key} " in readme
    assert "dashboards.provider.foldersFromFilesStructure=true" in readme
    assert f"folder `{folder}`" in readme


def wrong_port(monitor: Json) -> None:
    monitor["spec"]["podMetricsEndpoints"][0]["port"] = "metrics"


def dashboards_port(monitor: Json) -> None:
    monitor["spec"]["podMetricsEndpoints"][0]["port"] = "dashboard"
    monitor["spec"]["jobLabel"] = "ray.io/node-type"


def wrong_label(monitor: Json) -> None:
    monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"] = "worker"


def other_job(monitor: Json) -> None:
    monitor["spec"]["jobLabel"] = "ray.io/node-type"


def other_limit(monitor: Json) -> None:
    monitor["spec"]["sampleLimit"] = 1000


def pod_kept(monitor: Json) -> None:
    monitor["spec"]["podMetricsEndpoints"][0]["relabelings"].pop()


def no_cluster(monitor: Json) -> None:
    monitor["spec"]["podMetricsEndpoints"][0]["relabelings"].pop(0)


FAULTS: tuple[Callable[[Json], None], ...] = (
    wrong_port, dashboards_port, wrong_label, other_job, other_limit, pod_kept, no_cluster,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_the_monitor_are_found(plant: Callable[[Any], None]):
    monitor = copy.deepcopy(MONITOR)
    plant(monitor)
    assert complaints(monitor)
