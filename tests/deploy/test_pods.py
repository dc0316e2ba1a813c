"""Every pod has few rights, known limits and room for Ray; KubeRay accepts what it is given."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.config import TelemetryConfig
from tests.deploy.kustomize import Json, every_object, of_kind, rendered
from tests.deploy.pods import Pod, cluster_spec, complaints, in_bytes, pods

ALL = [pod for _, found in every_object() for pod in pods(found)]
CLUSTERS = [spec for _, found in every_object() if (spec := cluster_spec(found)) is not None]


@pytest.mark.parametrize("pod", ALL, ids=lambda pod: pod.name)
def test_pods_are_as_they_must_be(pod: Pod):
    assert complaints(pod) == []


def test_all_roles_are_there():
    assert {pod.role for pod in ALL} == {"head", "worker", "submitter", "job", "copy"}


@pytest.mark.parametrize("pod", [p for p in ALL if p.role == "head"], ids=lambda pod: pod.name)
def test_the_head_drives_and_does_not_train(pod: Pod):
    assert (pod.params["num-cpus"], pod.params["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in pod.main["resources"]["limits"]
    ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
    assert ports["reid-metrics"] == TelemetryConfig().port
    assert ports["dashboard"] == 8265


@pytest.mark.parametrize("pod", [p for p in ALL if p.role == "worker"], ids=lambda pod: pod.name)
def test_workers_leave_their_resources_to_kuberay(pod: Pod):
    """It reads CPUs, GPUs and memory from the limits."""
    assert pod.params.keys() == {"object-store-memory"}


@pytest.mark.parametrize("pod", ALL, ids=lambda pod: pod.name)
def test_no_pod_holds_an_account_of_the_cluster_without_need(pod: Pod):
    """Only the head of an autoscaling cluster does: it asks for pods."""
    needs = pod.name == "RayCluster crossreid head"
    assert pod.spec.get("automountServiceAccountToken", True) is needs


@pytest.mark.parametrize("spec", CLUSTERS)
def test_groups_hold_what_kuberay_demands(spec: Json):
    autoscales = spec.get("enableInTreeAutoscaling", False)
    for group in spec["workerGroupSpecs"]:
        least = 0 if autoscales else 1
        assert least <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert autoscales == (group["minReplicas"] < group["maxReplicas"])
        # The second autoscaler replaces pods itself.
        assert "restartPolicy" not in group["template"]["spec"]
    assert ("autoscalerOptions" in spec) == autoscales


def test_the_long_lived_cluster_scales_and_the_autoscaler_has_few_rights():
    (cluster,) = of_kind(rendered("cluster"), "RayCluster")
    options = cluster["spec"]["autoscalerOptions"]
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert options["securityContext"] == head["securityContext"]
    assert options["resources"]["requests"] == options["resources"]["limits"]
    assert {m["mountPath"] for m in options["volumeMounts"]} == {"/tmp", "/home/crossreid"}


def test_the_cluster_has_the_machines_of_the_job():
    (job,), (cluster,) = (
        of_kind(rendered("job"), "RayJob"),
        of_kind(rendered("cluster"), "RayCluster"),
    )
    of_job, of_cluster = ([(p.role, p.main) for p in pods(f)] for f in (job, cluster))
    assert of_job[1:] == of_cluster


def test_names_leave_room_for_what_kuberay_appends():
    for _, found in every_object():
        if found["kind"] in ("RayJob", "RayCluster"):
            assert len(found["metadata"]["name"]) <= 47


def test_claims_secrets_and_priorities_are_made_or_told_how_to_make():
    made = {"crossreid-ray-token", "crossreid-s3"}
    readme = Path("deploy/README.md").read_text()
    objects = {(o["kind"], o["metadata"]["name"]) for o in rendered("base")}
    for _, found in every_object():
        for pod in pods(found):
            for volume in pod.spec["volumes"]:
                if "persistentVolumeClaim" in volume:
                    claim = volume["persistentVolumeClaim"]["claimName"]
                    assert ("PersistentVolumeClaim", claim) in objects
            if "priorityClassName" in pod.spec:
                assert ("PriorityClass", pod.spec["priorityClassName"]) in objects
            for source in pod.main.get("envFrom", ()):
                assert source["secretRef"]["name"] in made
        if (spec := cluster_spec(found)) is not None:
            assert spec["authOptions"]["secretName"] in made
    for name in made:
        assert f"create secret generic {name}" in readme


def test_s3_keys_reach_every_node_of_the_cluster_and_nobody_else():
    (job,) = of_kind(rendered("job-s3"), "RayJob")
    has = {pod.role: "envFrom" in pod.main for pod in pods(job)}
    assert has == {"submitter": False, "head": True, "worker": True}
    (ingest,) = of_kind(rendered("ingest-s3"), "Job")
    assert all("envFrom" in pod.main for pod in pods(ingest))


@pytest.mark.parametrize(("text", "wanted"), [("2Gi", 2**31), ("512Mi", 2**29)])
def test_quantities_are_read_as_bytes(text: str, wanted: int):
    assert in_bytes(text) == wanted


def long_port(pod: Pod) -> None:
    pod.main["ports"][2]["name"] = "reid-metrics-port"


def root(pod: Pod) -> None:
    pod.spec["securityContext"]["runAsUser"] = 0


def no_seccomp(pod: Pod) -> None:
    del pod.spec["securityContext"]["seccompProfile"]


def rights(pod: Pod) -> None:
    pod.main["securityContext"]["capabilities"]["add"] = ["SYS_ADMIN"]


def escalation(pod: Pod) -> None:
    del pod.main["securityContext"]["allowPrivilegeEscalation"]


def writable(pod: Pod) -> None:
    pod.main["securityContext"]["readOnlyRootFilesystem"] = False


def latest(pod: Pod) -> None:
    pod.main["image"] = "registry.example.org/crossreid:latest"


def burst(pod: Pod) -> None:
    pod.main["resources"] = {**pod.main["resources"], "requests": {"cpu": "1", "memory": "1Gi"}}


def small_shm(pod: Pod) -> None:
    pod.spec["volumes"][1]["emptyDir"]["sizeLimit"] = "64Mi"


def disk_shm(pod: Pod) -> None:
    del pod.spec["volumes"][1]["emptyDir"]["medium"]


def host_path(pod: Pod) -> None:
    pod.spec["volumes"][0] = {"name": "data", "hostPath": {"path": "/"}}


def host_network(pod: Pod) -> None:
    pod.spec["hostNetwork"] = True


def unknown_volume(pod: Pod) -> None:
    pod.main["volumeMounts"][0]["name"] = "date"


def no_tmp(pod: Pod) -> None:
    pod.main["volumeMounts"] = pod.main["volumeMounts"][:1]


def token(pod: Pod) -> None:
    pod.main["env"].append({"name": "RAY_AUTH_TOKEN", "value": "abc"})


def stranger(pod: Pod) -> None:
    pod.labels["app.kubernetes.io/part-of"] = "other"


def killed_at_once(pod: Pod) -> None:
    pod.main["env"] = [v for v in pod.main["env"] if v["name"] != "RAY_JOB_STOP_WAIT_TIME_S"]


FAULTS: tuple[Callable[[Pod], None], ...] = (
    long_port, root, no_seccomp, rights, escalation, writable, latest, burst, small_shm, disk_shm,
    host_path, host_network, unknown_volume, no_tmp, token, stranger, killed_at_once,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_a_pod_are_found(plant: Callable[[Any], None]):
    (job,) = of_kind(copy.deepcopy(rendered("job")), "RayJob")
    head = next(pod for pod in pods(job) if pod.role == "head")
    assert complaints(head) == []
    plant(head)
    assert complaints(head)


def no_toleration(pod: Pod) -> None:
    del pod.spec["tolerations"]


def only_unreachable(pod: Pod) -> None:
    pod.spec["tolerations"].pop()


def for_ever(pod: Pod) -> None:
    del pod.spec["tolerations"][-1]["tolerationSeconds"]


def as_kubernetes(pod: Pod) -> None:
    pod.spec["tolerations"][-1]["tolerationSeconds"] = 300


OF_WORKERS: tuple[Callable[[Pod], None], ...] = (
    no_toleration, only_unreachable, for_ever, as_kubernetes,
)  # fmt: skip


@pytest.mark.parametrize("plant", OF_WORKERS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_a_worker_are_found(plant: Callable[[Any], None]):
    (job,) = of_kind(copy.deepcopy(rendered("job")), "RayJob")
    worker = next(pod for pod in pods(job) if pod.role == "worker")
    assert complaints(worker) == []
    plant(worker)
    assert complaints(worker)
