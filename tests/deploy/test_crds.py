"""The custom resources against their CRDs: every fault that a cluster would refuse, or drop in
silence, is found here."""

import copy
from collections.abc import Callable

import pytest
from jsonschema import Draft202012Validator

from tests.deploy.crds import complaints, is_custom, strict
from tests.deploy.kustomize import Json, every_object, named, of_kind, rendered

CUSTOM = [found for _, found in every_object() if is_custom(found)]


def test_all_kinds_are_among_them():
    kinds = {found["kind"] for found in CUSTOM}
    assert kinds == {"RayCluster", "RayJob", "PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("found", CUSTOM, ids=named)
def test_custom_resources_fit_their_crds(found: Json):
    assert complaints(found) == []


@pytest.mark.parametrize("found", CUSTOM, ids=named)
def test_an_unknown_field_of_any_custom_resource_is_found(found: Json):
    assert complaints({**found, "spec": {**found["spec"], "unknown": 1}})


def head(job: Json) -> Json:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def misspelt_field(job: Json) -> None:
    job["spec"]["ttlSecondsAfterFinish"] = 1


def text_for_a_number(job: Json) -> None:
    job["spec"]["submitterConfig"]["backoffLimit"] = "4"


def number_as_parameter(job: Json) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def misspelt_group(job: Json) -> None:
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1


def misspelt_in_a_container(job: Json) -> None:
    head(job)["containers"][0]["volumeMount"] = []


def misspelt_context(job: Json) -> None:
    head(job)["securityContext"]["runAsNotRoot"] = True


def unknown_mode(job: Json) -> None:
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "tokens"


def other_kind(job: Json) -> None:
    job["kind"] = "RayJobs"


FAULTS: tuple[Callable[[Json], None], ...] = (
    misspelt_field, text_for_a_number, number_as_parameter, misspelt_group,
    misspelt_in_a_container, misspelt_context, unknown_mode, other_kind,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found(plant: Callable[[Json], None]):
    (job,) = of_kind(copy.deepcopy(rendered("job")), "RayJob")
    assert complaints(job) == []
    plant(job)
    assert complaints(job)


def test_a_version_that_is_to_go_is_unknown():
    (job,) = of_kind(rendered("job"), "RayJob")
    job["apiVersion"] = "ray.io/v1alpha1"
    assert complaints(job) == ["unknown kind ray.io/v1alpha1 RayJob"]


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
