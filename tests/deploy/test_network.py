"""Who reaches whom, by the network policies."""

import copy
from collections.abc import Callable

import pytest

from service.config import TelemetryConfig
from tests.deploy.kustomize import RUNNABLE, Json, of_kind, rendered
from tests.deploy.pods import PART_OF, pods

METRICS = TelemetryConfig().port
POLICIES = of_kind(rendered("base"), "NetworkPolicy")
HEAD, WORKER = ({**PART_OF, "ray.io/node-type": role} for role in ("head", "worker"))
SUBMITTER = PART_OF
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
# KubeRay gives the pods of every Ray cluster this name, which is also that of its operator.
STRANGER = {"app.kubernetes.io/name": "kuberay", "ray.io/node-type": "worker"}
OPERATOR = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}
RAYS_PORTS = (6379, 8265, 10001, 8080, 10002, 19999, 52365, 44217)


def matches(selector: Json, labels: dict[str, str]) -> bool:
    """A label selector as Kubernetes reads it; an empty one matches everything."""
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def reaches(
    policies: list[Json], source: dict[str, str], target: dict[str, str], port: int, outside: bool
) -> bool:
    """Whether a pod reaches another's port; outside: it is in another namespace.

    What no policy selects is open to all; else one rule of one policy must allow it.
    """
    own = [p["spec"] for p in policies if matches(p["spec"]["podSelector"], target)]
    if not own:
        return True
    rules = [rule for spec in own for rule in spec.get("ingress", ())]
    return any(admits(rule, source, port, outside) for rule in rules)


def admits(rule: Json, source: dict[str, str], port: int, outside: bool) -> bool:
    ports = [(said["port"], said.get("endPort", said["port"])) for said in rule.get("ports", ())]
    if ports and not any(low <= port <= high for low, high in ports):
        return False
    peers = rule.get("from", [{}])
    return any(
        ("namespaceSelector" in peer or not outside)
        and matches(peer.get("podSelector", {}), source)
        for peer in peers
    )


def wrong(policies: list[Json]) -> list[str]:
    """Ways that are open and should be closed, and the other way round."""
    ways: list[tuple[str, dict[str, str], dict[str, str], int, bool, bool]] = []
    for target in (HEAD, WORKER):
        for port in RAYS_PORTS:
            ways += [("own pod", peer, target, port, False, True) for peer in (HEAD, WORKER)]
            ways += [("stranger", STRANGER, target, port, out, False) for out in (False, True)]
            ways.append(("same labels elsewhere", WORKER, target, port, True, False))
    ways.append(("Prometheus", PROMETHEUS, HEAD, METRICS, True, True))
    ways += [("Prometheus", PROMETHEUS, HEAD, port, True, False) for port in RAYS_PORTS]
    for name, peer in (("stranger", STRANGER), ("worker", WORKER), ("submitter", SUBMITTER)):
        ways.append((f"{name} at the exporter", peer, HEAD, METRICS, False, False))
    ways.append(("submitter", SUBMITTER, HEAD, 8265, False, True))
    ways.append(("operator", OPERATOR, HEAD, 8265, True, True))
    ways.append(("operator", OPERATOR, HEAD, 6379, True, False))
    return [
        f"{name} to {port}"
        for name, source, target, port, outside, wanted in ways
        if reaches(policies, source, target, port, outside) != wanted
    ]


def test_only_who_must_reaches_the_pods():
    assert wrong(POLICIES) == []


@pytest.mark.parametrize("variant", RUNNABLE)
def test_every_pod_is_under_a_policy(variant: str):
    found = [pod for one in rendered(variant) for pod in pods(one)]
    assert found
    for pod in found:
        assert any(matches(p["spec"]["podSelector"], pod.labels) for p in POLICIES), pod.name


def all_ports(policies: list[Json]) -> None:
    del policies[0]["spec"]["ingress"][0]["ports"]


def everybody(policies: list[Json]) -> None:
    del policies[1]["spec"]["ingress"][1]["from"]


def other_namespaces(policies: list[Json]) -> None:
    policies[0]["spec"]["ingress"][0]["from"][0]["namespaceSelector"] = {}


def prometheus_within(policies: list[Json]) -> None:
    del policies[1]["spec"]["ingress"][1]["from"][0]["namespaceSelector"]


def misspelt_selector(policies: list[Json]) -> None:
    policies[0]["spec"]["podSelector"]["matchLabels"] = {"app.kubernetes.io/part-of": "crossread"}


def no_operator(policies: list[Json]) -> None:
    policies[1]["spec"]["ingress"].pop(0)


def any_ray_pod(policies: list[Json]) -> None:
    peer = policies[1]["spec"]["ingress"][0]["from"][0]
    peer["podSelector"] = {"matchLabels": {"app.kubernetes.io/name": "kuberay"}}


def short_range(policies: list[Json]) -> None:
    policies[0]["spec"]["ingress"][0]["ports"][1]["endPort"] = 19000


FAULTS: tuple[Callable[[list[Json]], None], ...] = (
    all_ports, everybody, other_namespaces, prometheus_within, misspelt_selector, no_operator,
    any_ray_pod, short_range,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_the_policies_are_found(plant: Callable[[list[Json]], None]):
    policies = copy.deepcopy(POLICIES)
    plant(policies)
    assert wrong(policies)
