"""The custom resources against their CRDs, made strict. They are not part of this project:

    kubectl get crd rayclusters.ray.io rayjobs.ray.io podmonitors.monitoring.coreos.com \\
      prometheusrules.monitoring.coreos.com -o yaml > crds.yaml
    CRDS=crds.yaml pytest tests/deploy/test_crds.py

CRDS is a file or a folder of files. Without it tests/deploy/fields.py stands for them.
"""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.deploy.kustomize import Json, of_kind, rendered
from tests.deploy.test_manifests import CUSTOM, named

CRDS = os.environ.get("CRDS", "")
needs_crds = pytest.mark.skipif(
    not CRDS, reason="CRDS names no CRDs; tests/deploy/fields.py is used"
)


def definitions(place: Path) -> Iterator[Json]:
    """Every CRD in a file or a folder, also in a List as kubectl prints it."""
    for path in sorted(place.glob("*.y*ml")) if place.is_dir() else [place]:
        for found in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            yield from found["items"] if found["kind"] == "List" else [found]


def schema(crds: list[Json], api: str, kind: str) -> Json:
    """The strict schema of one version of one kind."""
    group, _, version = api.rpartition("/")
    for crd in crds:
        if crd["spec"]["group"] == group and crd["spec"]["names"]["kind"] == kind:
            (one,) = (v for v in crd["spec"]["versions"] if v["name"] == version)
            return strict(one["schema"]["openAPIV3Schema"])
    raise AssertionError(f"{CRDS} lacks {api} {kind}")


def strict(node: Any) -> Any:
    """The schema, with keys that it does not name refused, as `kubectl --validate=strict` does.

    Metadata is checked by Kubernetes itself, and its schema in a CRD is empty.
    """
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if isinstance(node.get("properties"), dict) and node.get("type") == "object":
        is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        if not is_open:
            made["additionalProperties"] = False
    return made


def complaints(crds: list[Json], found: Json) -> list[str]:
    checker = Draft202012Validator(schema(crds, found["apiVersion"], found["kind"]))
    return [
        f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in checker.iter_errors(found)
    ]


@pytest.fixture(scope="module")
def crds() -> list[Json]:
    return list(definitions(Path(CRDS)))


@needs_crds
@pytest.mark.parametrize("found", CUSTOM, ids=named)
def test_custom_resources_fit_their_crds(crds: list[Json], found: Json):
    assert complaints(crds, found) == []


def head(job: Json) -> Json:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def misspelt_field(job: Json) -> None:
    job["spec"]["ttlSecondsAfterFinish"] = 1


def text_for_a_number(job: Json) -> None:
    job["spec"]["submitterConfig"]["backoffLimit"] = "4"


def misspelt_in_a_container(job: Json) -> None:
    head(job)["containers"][0]["volumeMount"] = []


def misspelt_context(job: Json) -> None:
    head(job)["securityContext"]["runAsNotRoot"] = True


def unknown_mode(job: Json) -> None:
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"


FAULTS: tuple[Callable[[Json], None], ...] = (
    misspelt_field, text_for_a_number, misspelt_in_a_container, misspelt_context, unknown_mode,
)  # fmt: skip


@needs_crds
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found_by_the_crds(crds: list[Json], plant: Callable[[Json], None]):
    (job,) = of_kind(copy.deepcopy(rendered("job")), "RayJob")
    plant(job)
    assert complaints(crds, job)


def test_a_strict_schema_refuses_what_it_does_not_name():
    known = {"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": True}}}
    free = {"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}
    checker = Draft202012Validator(
        strict({**known, "properties": {**known["properties"], "b": free}})
    )
    assert checker.is_valid({"a": 1, "b": {"c": "d"}})
    assert checker.is_valid({"a": "1"})
    assert not checker.is_valid({"c": 1})
    assert not checker.is_valid({"b": {"c": 1}})
