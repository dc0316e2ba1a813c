"""Sweeps on Ray as tests look at them: their journals, their processes, and what they hold.

    python -m tests.ray.sweeping RECORDS FOLDER NUMBER

stops NUMBER trials in a row on a Ray of its own that has its dashboard, and prints what it measured
as JSON.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from service.config import ClusterConfig
from service.orchestration.cluster import NAMESPACE, environment
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal
from service.orchestration.tune import launch_tuning
from service.settings import override
from service.training.journal import read_journal
from tests.small import small_config

Lines = list[dict[str, Any]]


def lines_of(sweep: Path, event: str) -> Lines:
    """The lines of that kind in the sweep's journal."""
    return [x for x in SweepJournal(sweep / FILE_NAME).read() if x.get("event") == event]


def check_nothing_decided_twice(sweep: Path) -> None:
    """No report was judged twice, no directive number given twice, no trial ended twice."""
    decisions = lines_of(sweep, "decision")
    judged = [(line["trial"], line["step"]) for line in decisions]
    assert len(judged) == len(set(judged))
    for trial in {trial for trial, _ in judged}:
        steps = [line["step"] for line in decisions if line["trial"] == trial]
        assert steps == sorted(steps)
        given = [x["directive"] for x in decisions if x["trial"] == trial and x["directive"]]
        numbers = [directive["number"] for directive in given]
        assert numbers == sorted(set(numbers))
    for event in ("trial", "end"):
        named = [line["trial"] for line in lines_of(sweep, event)]
        assert len(named) == len(set(named))


def processes_with(variable: str, value: str) -> list[int]:
    """Processes, whoever's children, that were given this environment variable."""
    wanted = f"{variable}={value}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                given = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in given:
                found.append(int(path.name))
    return found


class Eye:
    """Notes, some twenty times a second, when something was first seen."""

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.applied: dict[str, float] = {}
        self.freed: dict[str, float] = {}

    def __enter__(self) -> "Eye":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            now = time.time()
            for folder in self._sweep.glob("*_*/journal.jsonl"):
                events = read_journal(folder.parent)
                if any(event["event"] == "directive" for event in events):
                    self.applied.setdefault(folder.parent.name, now)
            for key, group in worker_groups().items():
                if group["state"] == "REMOVED":
                    self.freed.setdefault(key, now)


def worker_groups() -> dict[str, dict[str, Any]]:
    """Placement groups that hold a training's workers, by id; a trial's own holds no CPU."""
    groups: dict[str, dict[str, Any]] = ray.util.placement_group_table()
    return {
        key: group
        for key, group in groups.items()
        if any(bundle.get("CPU") for bundle in group["bundles"].values())
    }


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until `condition` held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"after {seconds} s still not: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def alive(*classes: str) -> list[str]:
    """Actors of these classes that live."""
    from ray._private import state

    found = state.actors(actor_state_name="ALIVE").values()
    return [actor["ActorClassName"] for actor in found if actor["ActorClassName"] in classes]


def stop_in_a_row(records: Path, folder: Path, number: int) -> dict[str, float]:
    """Runs `number` stuck trials, two at a time, and checks that nothing of them is left.

    Gives the seconds from a NO_GO to the step at which the trial obeyed, and to the moment its
    workers' resources were free: the longest of each.
    """
    settings = override(
        small_config(records),
        [
            f"run.storage={folder}",
            "cluster.poll_s=0.1",
            "optim.head_lr=1e-6",
            f"tune.space={{run.seed: {{grid: {list(range(number))}}}}}",
            "tune.max_concurrent=2",
            "train.max_steps=5000",
        ],
    )
    before = set(worker_groups())
    with Eye(folder / "row") as eye:
        sweep = launch_tuning(settings, experiment_id="row")
        wait_for(lambda: ray.available_resources().get("CPU", 0) >= 2, 5, "all CPUs are free")
    assert [row.verdict for row in sweep.rows] == ["NO_GO"] * number
    assert max(row.steps for row in sweep.rows) < 5000
    check_nothing_decided_twice(sweep.path)
    held = {k: g for k, g in worker_groups().items() if g["state"] != "REMOVED"}
    assert held == {}
    wait_for(
        lambda: not alive("ImplicitFunc", "TrainController", "RayTrainWorker"), 5, "no trial lives"
    )
    stops = {x["trial"]: x["time"] for x in lines_of(sweep.path, "decision") if x["directive"]}
    freed = sorted(at for key, at in eye.freed.items() if key not in before)
    assert len(stops) == len(freed) == number
    return {
        "decision_to_effect_s": max(eye.applied[key] - at for key, at in stops.items()),
        "stop_to_free_s": max(b - a for a, b in zip(sorted(stops.values()), freed, strict=True)),
    }


@contextmanager
def with_dashboard() -> Iterator[None]:
    """A Ray of two CPUs on this machine, with its dashboard."""
    os.environ.update(environment(ClusterConfig(poll_s=0.1)))
    ray.init(
        address="local",
        num_cpus=2,
        namespace=NAMESPACE,
        include_dashboard=True,
        object_store_memory=150_000_000,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


if __name__ == "__main__":
    with with_dashboard():
        measured = stop_in_a_row(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps(measured) + "\n")
