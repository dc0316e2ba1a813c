"""Evaluating a run on a cluster: one task with what one of the run's workers takes."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from service.config import ClusterConfig
from service.errors import ClusterError, CrossReidError
from service.orchestration.cluster import connected, first_line
from service.orchestration.evaluate import evaluate_run
from service.orchestration.room import require, worker_resources
from service.orchestration.runs import Run
from service.orchestration.worker import error_values, rebuilt

Say = Callable[[str], None]

_TELL_S = 60.0


def evaluate_there(run: Run, checkpoint: str, accept: Say, say: Say) -> dict[str, Any]:
    """Evaluates a checkpoint of `run` on the cluster that this process is a job of; the summary.

    checkpoint: as in `evaluate_run`. accept: hears where the run lies, once nothing more stands in
    the way. say: takes notes.

    Raises:
        ClusterError: no machine holds one worker of the run, or the one that evaluated was lost.
        CrossReidError: as `evaluate_run`.
    """
    cluster = one_worker(run.config.cluster)
    with connected(cluster):
        require(cluster, say=say)
        accept(str(run.path))
        task = (
            ray.remote(_evaluated)
            .options(
                num_cpus=cluster.cpus_per_worker,
                num_gpus=cluster.gpus_per_worker,
                max_retries=0,
            )
            .remote(str(run.path), checkpoint, "cuda" if cluster.gpus_per_worker else "cpu")
        )
        return _waited(task, cluster, say)


def one_worker(cluster: ClusterConfig) -> ClusterConfig:
    """The same with one worker, on the cluster that the job runs on."""
    alone = {"address": None, "num_workers": 1, "min_workers": None}
    return cluster.model_copy(update=alone)


def _evaluated(run: str, checkpoint: str, device: str) -> dict[str, Any]:
    """In the task: the summary, or the error as values, which cross processes."""
    try:
        return {"summary": evaluate_run(run, checkpoint=checkpoint, device=device)[1]}
    except CrossReidError as error:
        return {"error": error_values(error)}


def _waited(task: Any, cluster: ClusterConfig, say: Say) -> dict[str, Any]:
    worker = ", ".join(f"{each:g} {kind}s" for kind, each in worker_resources(cluster).items())
    say(f"evaluating on a machine with {worker} free, or waiting for one")
    began = time.monotonic()
    try:
        while not ray.wait([task], timeout=_TELL_S)[0]:
            say(f"evaluating for {time.monotonic() - began:.0f} s")
        found: dict[str, Any] = ray.get(task)
    except RayTaskError:
        raise
    except RayError as error:
        raise ClusterError(
            f"the process that evaluated was lost: {first_line(error)}; submit it again. One that "
            "was killed often ran out of memory"
        ) from error
    if "error" in found:
        raise rebuilt(found["error"])
    return found["summary"]
