"""An evaluation on a cluster: what it asks for, and how its errors come back."""

from pathlib import Path
from typing import Any

import pytest

from service.config import ClusterConfig, Config, DataConfig
from service.errors import ClusterError, RunError
from service.orchestration import evaluating
from service.orchestration.evaluating import evaluate_there, one_worker
from service.orchestration.room import worker_resources
from service.orchestration.runs import Run, create_run
from service.settings import override


def test_an_evaluation_takes_one_worker_of_the_run_on_the_cluster_of_its_job():
    cluster = ClusterConfig(
        address="10.0.0.1:6379",
        num_workers=8,
        min_workers=4,
        cpus_per_worker=6,
        gpus_per_worker=1,
        wait_s=60,
    )
    found = one_worker(cluster)
    assert (found.address, found.fewest_workers, found.num_workers) == (None, 1, 1)
    assert worker_resources(found) == worker_resources(cluster)
    assert found.wait_s == 60


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(override(Config(data=DataConfig(records="r")), [f"run.storage={tmp_path}"]))


def test_nothing_is_accepted_that_the_cluster_has_no_room_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: Any, **__: Any) -> None:
        raise ClusterError("the run needs 1 GPU")

    monkeypatch.setattr(evaluating, "connected", lambda cluster: pytest.MonkeyPatch.context())
    monkeypatch.setattr(evaluating, "require", refused)
    said: list[str] = []
    with pytest.raises(ClusterError, match="needs 1 GPU"):
        evaluate_there(run, "last", said.append, said.append)
    assert said == []


def test_what_is_wrong_with_the_run_comes_back_from_the_task_as_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    answer = evaluating._evaluated("nobody", "last", "cpu")
    monkeypatch.setattr(evaluating.ray, "wait", lambda tasks, timeout: (tasks, []))
    monkeypatch.setattr(evaluating.ray, "get", lambda task: answer)
    with pytest.raises(RunError, match="no run 'nobody'"):
        evaluating._waited(None, run.config.cluster, lambda line: None)
