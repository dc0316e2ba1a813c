"""The fields of custom resources that our manifests use, with their types; others are refused.

Written down from the CRDs of KubeRay 1.7.0 and prometheus-operator 0.93.0, which test_crds.py holds
the manifests against where they are at hand. What a pod may say is left to Kubernetes' own schema.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, strict=True)]
Params = dict[str, Annotated[str, Field(strict=True)]]
Json = dict[str, Any]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Auth(_Fields):
    mode: Literal["token"]
    secretName: str


class Autoscaler(_Fields):
    version: Literal["v2"]
    idleTimeoutSeconds: Count
    securityContext: Json
    resources: Json
    volumeMounts: list[Json]


class Template(_Fields):
    metadata: Json
    spec: Json


class Head(_Fields):
    rayStartParams: Params
    template: Template


class Group(_Fields):
    groupName: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    rayStartParams: Params
    template: Template


class Cluster(_Fields):
    rayVersion: str
    authOptions: Auth
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: Head
    workerGroupSpecs: list[Group]


class Submitter(_Fields):
    backoffLimit: Count


class Job(_Fields):
    entrypoint: str
    # The CRD takes any text.
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]
    submitterConfig: Submitter
    submitterPodTemplate: Template
    backoffLimit: Count
    preRunningDeadlineSeconds: Annotated[int, Field(gt=0)]
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Count
    rayClusterSpec: Cluster


class Relabeling(_Fields):
    sourceLabels: list[str] = []
    targetLabel: str | None = None
    action: Literal["replace", "keep", "drop", "labeldrop", "labelkeep"] = "replace"
    regex: str | None = None


class Endpoint(_Fields):
    port: str
    interval: Annotated[str, Field(pattern=r"^\d+[smh]$")]
    relabelings: list[Relabeling]


class Selector(_Fields):
    matchLabels: dict[str, str]


class PodMonitor(_Fields):
    jobLabel: str
    selector: Selector
    podMetricsEndpoints: list[Endpoint]
    sampleLimit: Count
    labelLimit: Count
    labelNameLengthLimit: Count
    labelValueLengthLimit: Count


class Rule(_Fields):
    record: str | None = None
    alert: str | None = None
    expr: str
    for_: Annotated[str | None, Field(alias="for")] = None
    keep_firing_for: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RuleGroup(_Fields):
    name: str
    rules: list[Rule]


class Rules(_Fields):
    groups: list[RuleGroup]


SPECS: Mapping[tuple[str, str], type[_Fields]] = {
    ("ray.io/v1", "RayCluster"): Cluster,
    ("ray.io/v1", "RayJob"): Job,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): Rules,
}


def complaints(found: Json) -> list[str]:
    """What is wrong with a custom resource's fields; an unknown kind is wrong."""
    model = SPECS.get((found["apiVersion"], found["kind"]))
    if model is None:
        return [f"unknown kind {found['apiVersion']} {found['kind']}"]
    if found.keys() - {"apiVersion", "kind", "metadata", "spec"}:
        return [f"unknown keys {sorted(found)}"]
    try:
        model.model_validate(found["spec"])
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []
