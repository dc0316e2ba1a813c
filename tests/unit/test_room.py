"""Whether a run fits: by machine, before anything starts, and while machines are waited for."""

import itertools
import re
from typing import Any

import pytest
import ray
import ray.autoscaler.sdk
from hypothesis import given
from hypothesis import strategies as st

from service.config import ClusterConfig
from service.doctor.check import Status
from service.doctor.cluster import _resources
from service.errors import ClusterError
from service.orchestration import room as module
from service.orchestration.room import require, room
from service.settings import override
from tests.reports import CONFIG


def cluster_of(patch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
    """Live machines, and one that has died, which holds nothing any more."""
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    patch.setattr(ray, "nodes", lambda: [*nodes, dead])
    patch.setattr(ray, "cluster_resources", lambda: machines[0] if machines else {})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of 2 CPUs and no GPU."""
    cluster_of(monkeypatch, {"CPU": 2.0, "memory": 1e9})


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("values", "trials", "words"),
    [
        (
            {"num_workers": 8},
            1,
            r"8 CPUs \(8 workers x 1\).* has 2; try cluster.num_workers=2",
        ),
        ({"num_workers": 1, "cpus_per_worker": 4}, 1, "needs 4 CPUs .* larger machine"),
        ({"num_workers": 2, "gpus_per_worker": 1}, 1, "needs 2 GPUs .* has 0"),
        ({"num_workers": 2}, 2, r"\(2 trials x 2 workers x 1\).*tune.max_concurrent=1 or"),
        ({"num_workers": 1}, 3, r"try tune.max_concurrent=2 or"),
        ({"num_workers": 3}, 2, r"try cluster.num_workers=2 and tune.max_concurrent=1$"),
    ],
)
def test_a_run_that_could_never_fit_is_refused(values: dict[str, Any], trials: int, words: str):
    with pytest.raises(ClusterError, match=words):
        require(ClusterConfig(**values), trials)


QUARTERS = st.integers(0, 16).map(lambda n: n / 4)


@given(
    machines=st.lists(
        st.fixed_dictionaries(
            {"CPU": st.integers(0, 40).map(float), "GPU": st.integers(0, 8).map(float)}
        ),
        max_size=4,
    ),
    workers=st.integers(1, 6),
    cpus_each=QUARTERS.filter(bool),
    gpus_each=QUARTERS,
    trials=st.integers(1, 12),
)
def test_what_is_advised_fits_and_is_the_most_that_does(
    machines: list[dict[str, float]], workers: int, cpus_each: float, gpus_each: float, trials: int
):
    def asking(workers: int) -> ClusterConfig:
        return ClusterConfig(
            num_workers=workers, cpus_per_worker=cpus_each, gpus_per_worker=gpus_each
        )

    with pytest.MonkeyPatch.context() as patch:
        cluster_of(patch, *machines)
        try:
            require(asking(workers), trials)
        except ClusterError as error:
            told = str(error)
        else:
            return
        trials_told = re.search(r"tune\.max_concurrent=(\d+)", told)
        workers_told = re.search(r"cluster\.num_workers=(\d+)", told)
        advised = int(workers_told[1]) if workers_told else workers
        together = int(trials_told[1]) if trials_told else 1
        if not (trials_told or workers_told):
            with pytest.raises(ClusterError):
                require(asking(1))
            return
        require(asking(advised), together)
        more = (advised + 1, together) if workers_told else (advised, together + 1)
        with pytest.raises(ClusterError):
            require(asking(more[0]), more[1])


@pytest.mark.usefixtures("machine")
def test_the_doctor_counts_every_trial_that_a_sweep_runs_at_a_time():
    space = "{run.seed: {grid: [1, 2, 3]}}"
    sweep = override(CONFIG, [f"tune.space={space}", "tune.max_concurrent=2"])
    fits = _resources(sweep)
    assert fits.status is Status.OK
    assert "the sweep asks for 2 trials x 1 x 1 CPUs" in fits.found
    found = _resources(override(sweep, ["tune.max_concurrent=9"]))
    assert found.status is Status.FAIL
    assert "needs 3 CPUs (3 trials x 1 worker x 1)" in found.found
    assert _resources(override(CONFIG, ["tune.max_concurrent=9"])).status is Status.OK


@pytest.mark.usefixtures("machine")
def test_a_run_that_fits_exactly_is_not_refused():
    require(ClusterConfig(num_workers=2))
    require(ClusterConfig(num_workers=1), trials=2)


SIZES = st.fixed_dictionaries(
    {"CPU": st.integers(0, 5).map(float), "GPU": st.integers(0, 3).map(float)}
)


@given(machines=st.lists(SIZES, max_size=3), cpus=st.integers(1, 3), gpus=st.integers(0, 2))
def test_room_is_what_putting_workers_one_by_one_onto_machines_gives(
    machines: list[dict[str, float]], cpus: int, gpus: int
):
    left = [dict(machine) for machine in machines]
    placed = 0
    for machine in left:
        while machine["CPU"] >= cpus and machine["GPU"] >= gpus:
            machine["CPU"] -= cpus
            machine["GPU"] -= gpus
            placed += 1
    worker = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    assert room(machines, worker) == placed


def test_shares_of_a_cpu_add_up():
    assert room([{"CPU": 0.3}], {"CPU": 0.1}) == 3


def test_a_worker_that_no_single_machine_holds_is_refused(monkeypatch: pytest.MonkeyPatch):
    cluster_of(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0})
    with pytest.raises(ClusterError) as told:
        require(ClusterConfig(num_workers=1, gpus_per_worker=2))
    assert str(told.value) == (
        "the run needs room for 1 worker with 1 CPUs, 2 GPUs each on one machine, but the "
        "cluster's machines hold 0: 1 x (4 CPUs, 0 GPUs), 2 x (8 CPUs, 1 GPUs); try a larger "
        "machine, or fewer cpus_per_worker and gpus_per_worker under cluster:"
    )


def test_room_for_the_fewest_workers_is_enough(monkeypatch: pytest.MonkeyPatch):
    cluster_of(monkeypatch, {"CPU": 2.0})
    require(ClusterConfig(num_workers=8, min_workers=2))
    with pytest.raises(ClusterError, match=r"needs 3 CPUs .*; try cluster\.min_workers=2"):
        require(ClusterConfig(num_workers=8, min_workers=3))


class Autoscaler:
    """Starts a machine of 2 CPUs at every look from the third on, when somebody asks for them."""

    def __init__(self, patch: pytest.MonkeyPatch, starts: bool) -> None:
        self.asked: list[Any] = []
        self.clock = itertools.count()
        looks = itertools.count(1)

        def machines() -> list[dict[str, float]]:
            seen = next(looks)
            return [{"CPU": 2.0}] * (1 + max(0, seen - 2) * (starts and bool(self.asked)))

        patch.setattr(module, "machines_now", machines)
        patch.setattr(
            ray.autoscaler.sdk, "request_resources", lambda bundles: self.asked.append(bundles)
        )
        patch.setattr(module.time, "monotonic", lambda: float(next(self.clock)))
        patch.setattr(module.time, "sleep", lambda seconds: None)


WAITING = ClusterConfig(num_workers=6, wait_s=30.0)


def test_machines_that_an_autoscaler_starts_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    autoscaler, said = Autoscaler(monkeypatch, starts=True), list[str]()
    require(WAITING, say=said.append)
    *asked, last = autoscaler.asked
    assert asked == [[{"CPU": 1.0}] * 6] * len(asked) != []
    assert last == []
    assert said == [
        "waiting for machines: room for 2 of 6 workers with 1 CPUs each on 1 machine; 1 of 30 s"
    ]


def test_machines_that_do_not_come_are_refused_after_the_wait_and_asked_for_no_longer(
    monkeypatch: pytest.MonkeyPatch,
):
    autoscaler, said = Autoscaler(monkeypatch, starts=False), list[str]()
    words = r"needs 6 CPUs .* has 2 after cluster\.wait_s=30 s; try cluster\.num_workers=2$"
    with pytest.raises(ClusterError, match=words):
        require(WAITING, say=said.append)
    assert autoscaler.asked[-1] == []
    told_at = [line.rpartition("; ")[2] for line in said]
    assert told_at == [f"{second} of 30 s" for second in range(1, 30, 5)]


def test_without_wait_s_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    autoscaler = Autoscaler(monkeypatch, starts=True)
    with pytest.raises(ClusterError):
        require(ClusterConfig(num_workers=6))
    assert autoscaler.asked == []


def test_a_share_of_a_gpu_lies_on_one_gpu():
    machine = {"CPU": 16.0, "GPU": 2.0}
    assert [room([machine], {"CPU": 1, "GPU": each}) for each in (0.6, 0.5, 0.3, 1, 2)] == [
        2, 4, 6, 2, 1,
    ]  # fmt: skip
