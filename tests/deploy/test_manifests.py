"""The manifests are what the tested files say, and have only fields that exist."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import service
from deploy import compose
from deploy.kuberay import build
from tests.deploy.crds import is_custom
from tests.deploy.kustomize import FOLDER, Json, every_object, named, of_kind, rendered
from tests.deploy.pods import cluster_spec, pods
from tests.deploy.secrets import secrets

KUBERNETES = "1.34"
OBJECTS = every_object()
CUSTOM = [found for _, found in OBJECTS if is_custom(found)]
CORE = [found for _, found in OBJECTS if not is_custom(found)]
LARGEST = 262_144
"""Bytes: kubectl apply keeps a copy of the object in an annotation, which may be no longer."""


def constrained(package: str) -> str:
    text = Path("constraints.txt").read_text()
    return re.findall(rf"^{re.escape(package)}==(\S+)$", text, re.M)[0]


def as_pods(found: Json) -> list[Json]:
    metadata = {"name": "pod"}
    kind = {"apiVersion": "v1", "kind": "Pod"}
    return [
        {**kind, "metadata": {**metadata, "labels": p.labels}, "spec": p.spec} for p in pods(found)
    ]


@pytest.mark.parametrize("made", [build, compose], ids=["kuberay", "compose"])
def test_what_is_committed_is_what_make_manifests_writes(made: Any):
    for name, content in made.files().items():
        assert (made.FOLDER / name).read_text("utf-8") == content, name


def test_a_changed_rule_or_dashboard_changes_what_is_made(monkeypatch: Any, tmp_path: Path):
    before = build.files()
    rules, dashboards = tmp_path / "rules", tmp_path / "dashboards"
    for source, copied in ((build.RULES, rules), (build.DASHBOARDS, dashboards)):
        copied.mkdir()
        for path in source.iterdir():
            (copied / path.name).write_text(path.read_text().replace("reid_train_", "other_"))
    monkeypatch.setattr(build, "RULES", rules)
    monkeypatch.setattr(build, "DASHBOARDS", dashboards)
    after = build.files()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith("monitoring/")}


def test_the_rules_are_those_that_promtool_tests():
    (rules,) = of_kind(rendered("monitoring"), "PrometheusRule")
    files = sorted(Path("deploy/prometheus/rules").glob("*.yml"))
    wanted = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    assert rules["spec"]["groups"] == wanted
    names = [group["name"] for group in wanted]
    assert len(set(names)) == len(names)


def test_the_dashboards_are_grafanas():
    maps = of_kind(rendered("monitoring"), "ConfigMap")
    found = {name: json.loads(text) for m in maps for name, text in m["data"].items()}
    files = Path("deploy/grafana/dashboards").glob("*.json")
    assert found == {f"crossreid-{path.name}": json.loads(path.read_text()) for path in files}
    assert all(m["metadata"]["labels"]["grafana_dashboard"] == "1" for m in maps)


@pytest.mark.parametrize("found", [found for _, found in OBJECTS], ids=named)
def test_every_object_is_small_enough_to_apply(found: Json):
    assert len(json.dumps(found)) < LARGEST


@pytest.mark.parametrize("found", CORE, ids=named)
def test_core_objects_are_what_kubernetes_takes(found: Json):
    kubernetes_validate.validate(found, KUBERNETES, strict=True)


@pytest.mark.parametrize("found", CUSTOM, ids=named)
def test_pods_of_custom_resources_are_what_kubernetes_takes(found: Json):
    for pod in as_pods(found):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_ray_and_our_version_are_the_same_everywhere():
    for _, found in OBJECTS:
        spec = cluster_spec(found)
        if spec is not None:
            assert spec["rayVersion"] == constrained("ray")
        for pod in pods(found):
            for container in (*pod.spec.get("initContainers", ()), *pod.spec["containers"]):
                assert container["image"].endswith(f"/crossreid:{service.__version__}-cuda")


def test_no_secret_is_written_down():
    """Secrets are made by a command; the files only name them."""
    assert {found["kind"] for _, found in OBJECTS}.isdisjoint({"Secret"})
    for path in FOLDER.glob("*/*.yaml"):
        if not path.name.startswith("dashboard-"):
            assert secrets(path.read_text()) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN: 8c1f4e0a9d2b",
        "value: 0123456789abcdef0123456789abcdef",
        'GF_SECURITY_ADMIN_PASSWORD: "correct-horse"',
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI",
        "auth_token: crossword12345",
        "{name: AWS_SECRET_ACCESS_KEY, value: wJalrXUtnFEMI}",
        "- name: RAY_AUTH_TOKEN\n    value: sesame",
    ],
)
def test_a_planted_secret_is_found(line: str):
    assert secrets(f"spec:\n  {line}\n")


@pytest.mark.parametrize("found", CORE, ids=named)
def test_an_unknown_field_of_any_core_object_is_found(found: Json):
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**found, "unknown": 1}, KUBERNETES, strict=True)


def test_planted_faults_in_a_pod_are_found_by_kubernetes_schema():
    (job,) = of_kind(copy.deepcopy(rendered("job")), "RayJob")
    head = as_pods(job)[1]
    head["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(head, KUBERNETES, strict=True)
