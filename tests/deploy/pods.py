"""The pods that the manifests lead to, and what must hold for each."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.orchestration.submit import _variables
from tests.deploy.kustomize import Json

PART_OF = {"app.kubernetes.io/part-of": "crossreid"}
WRITABLE = ("/tmp", "/home/crossreid")
"""What Ray writes to besides /dev/shm and the data; all else of the image is read-only."""
OF_A_STOPPED_JOB = _variables(None)
"""What `crossreid submit` gives a job, so that one that is stopped can write its checkpoint."""
GONE_S = 60
"""Seconds after which the pods of a lost machine are made again; Kubernetes waits for 300."""
_PINNED = re.compile(r"[\w.-]+(?:/[\w.-]+)+:\d+\.\d+\.\d+[\w.-]*(?:@sha256:[0-9a-f]{64})?")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True, slots=True)
class Pod:
    """role: head, worker, submitter, job or copy. labels: those that it has in the end."""

    name: str
    role: str
    labels: dict[str, str]
    spec: Json
    params: dict[str, str]
    """Of `ray start`; none where Ray is not started."""

    @property
    def main(self) -> Json:
        return self.spec["containers"][0]


def cluster_spec(found: Json) -> Json | None:
    """The Ray cluster that the object makes, if it makes one."""
    if found["kind"] == "RayCluster":
        return found["spec"]
    return found["spec"]["rayClusterSpec"] if found["kind"] == "RayJob" else None


def pods(found: Json) -> Iterator[Pod]:
    """Every pod template of one object; KubeRay's own labels are added."""
    name = f"{found['kind']} {found['metadata']['name']}"
    if found["kind"] == "Pod":
        yield _pod(name, "copy", found)
    if found["kind"] == "Job":
        yield _pod(f"{name} pod", "job", found["spec"]["template"])
    if found["kind"] == "RayJob":
        yield _pod(f"{name} submitter", "submitter", found["spec"]["submitterPodTemplate"])
    spec = cluster_spec(found)
    if spec is None:
        return
    yield _pod(f"{name} head", "head", **_group(spec["headGroupSpec"]))
    for group in spec["workerGroupSpecs"]:
        yield _pod(f"{name} {group['groupName']}", "worker", **_group(group))


def _group(group: Json) -> dict[str, Any]:
    return {"template": group["template"], "params": group["rayStartParams"]}


def _pod(name: str, role: str, template: Json, params: dict[str, str] | None = None) -> Pod:
    labels = dict(template["metadata"]["labels"])
    if role in ("head", "worker"):
        labels["ray.io/node-type"] = role
    return Pod(name, role, labels, template["spec"], params or {})


def complaints(pod: Pod) -> list[str]:
    """What is wrong with a pod, beyond what Kubernetes' schema says."""
    found = [] if PART_OF.items() <= pod.labels.items() else ["is not part of crossreid"]
    found += _of_the_pod(pod)
    if pod.role == "head":
        found += _of_the_head(pod)
    if pod.role == "worker":
        found += _of_a_lost_machine(pod)
    for container in (*pod.spec.get("initContainers", ()), *pod.spec["containers"]):
        found += [f"{container['name']} {said}" for said in _of_container(pod, container)]
    return [f"{pod.name}: {said}" for said in found]


def _of_the_pod(pod: Pod) -> Iterator[str]:
    context = pod.spec.get("securityContext", {})
    if not context.get("runAsNonRoot") or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key):
            yield f"has {key}"
    for volume in pod.spec["volumes"]:
        if not volume.keys() & {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}:
            yield f"has a volume of {sorted(volume)}"
    yield from _of_shared_memory(pod)


def _of_the_head(pod: Pod) -> Iterator[str]:
    """Jobs run here, with this environment."""
    given = {variable["name"]: variable.get("value") for variable in pod.main["env"]}
    for name, value in OF_A_STOPPED_JOB.items():
        if given.get(name) != value:
            yield f"has {name} {given.get(name)}, expected {value}"


def _of_a_lost_machine(pod: Pod) -> Iterator[str]:
    stays = {
        said["key"]: said.get("tolerationSeconds", math.inf)
        for said in pod.spec.get("tolerations", ())
        if said["effect"] == "NoExecute"
    }
    for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"):
        if stays.get(key, math.inf) > GONE_S:
            yield f"stays too long on a machine that is {key.partition('/')[2]}"


def _of_shared_memory(pod: Pod) -> Iterator[str]:
    """Ray's object store lies in /dev/shm, which is counted as the container's memory."""
    if not pod.params:
        return
    mounted = {m["mountPath"]: m["name"] for m in pod.main["volumeMounts"]}
    volumes = {v["name"]: v.get("emptyDir", {}) for v in pod.spec["volumes"]}
    shm = volumes.get(mounted.get("/dev/shm", ""), {})
    if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
        yield "has no /dev/shm in memory with a size"
        return
    if int(pod.params["object-store-memory"]) > in_bytes(shm["sizeLimit"]):
        yield "has an object store larger than /dev/shm"
    if in_bytes(shm["sizeLimit"]) > in_bytes(pod.main["resources"]["limits"]["memory"]) / 2:
        yield "gives more than half of its memory to /dev/shm"


def in_bytes(text: str) -> int:
    """A quantity as Kubernetes writes it."""
    return int(text[:-2]) * _UNITS[text[-2:]]


def _of_container(pod: Pod, container: Json) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may escalate its rights"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to the image"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("limits", {}).keys():
        yield "has no limits"
    if resources.get("requests") != resources.get("limits"):
        yield "requests something else than its limits"
    if not _PINNED.fullmatch(container["image"]):
        yield f"has the image {container['image']} without a version"
    yield from _of_ports(container)
    yield from _of_mounts(pod, container)
    for variable in container.get("env", ()):
        if re.search("TOKEN|PASSWORD|SECRET|KEY", variable["name"]) and "value" in variable:
            yield f"has {variable['name']} as a literal"


def _of_ports(container: Json) -> Iterator[str]:
    for port in container.get("ports", ()):
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9](-?[a-z0-9])*", port["name"]):
            yield f"has the port name {port['name']}"
        if len(port["name"]) > 15:
            yield f"has the port name {port['name']}, longer than 15"


def _of_mounts(pod: Pod, container: Json) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec["volumes"]}
    mounts = container.get("volumeMounts", ())
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"mounts {mount['name']}, which is no volume"
    for path in WRITABLE:
        if path not in {mount["mountPath"] for mount in mounts}:
            yield f"cannot write to {path}"
