"""Jobs for a Ray cluster: sent with the code as it lies here, never two for one run at a time."""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service import __version__
from service.config import Config
from service.errors import ClusterError, RunError
from service.orchestration.cluster_jobs import STOP_VARIABLE, ClusterJobs, TakenError
from service.orchestration.job import (
    FOLDER,
    KIND,
    LINGER_S,
    RUN,
    SENDING,
    STOP_S,
    WRITES,
    Job,
    job_name,
    jobs_of,
)
from service.orchestration.orders import Order
from service.orchestration.packing import packed
from service.orchestration.versions import misfit, wanted

Say = Callable[[str], None]

_NAMES_TRIED = 5


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that the cluster has taken. job_id: Ray's name for it."""

    run: str
    kind: str
    job_id: str
    folder: str


def send(jobs: ClusterJobs, order: Order, *, any_versions: bool, say: Say) -> Submitted:
    """Starts the job on the cluster's head.

    any_versions: other versions of Ray, Python and torch are told of and taken. say: takes notes.

    Raises:
        RunError: a job trains the run already, or there was one of a new run's name.
        ClusterError: the cluster has another Ray, or does not take the job.
    """
    image = _image(order.config)
    found = misfit({"Ray": jobs.ray_version}, image)
    if found and not any_versions:
        raise ClusterError(f"{found}; or go on all the same with --any-versions")
    if found:
        say(f"going on with other versions, as --any-versions says: {found}")
    known = jobs.all()
    _refuse_taken(order, known)
    config = order.config.to_yaml() if order.config else None
    variables = _variables(order.config) | wanted(image, any_versions=any_versions)
    taken, tried = [job.job_id for job in known], list[str]()
    with packed(config) as package:
        for _ in range(_NAMES_TRIED):
            name = job_name(order.run, order.kind, [*taken, *tried])
            try:
                _start(jobs, name, order, package, variables, say)
                return Submitted(order.run, order.kind, name, order.folder)
            except TakenError:
                # Somebody was faster, or the job was deleted and Ray remembers its name.
                _refuse_taken(order, jobs.all())
                tried.append(name)
    raise ClusterError(
        f"the cluster takes no name for the job of run {order.run}: {', '.join(tried)} belong "
        "to jobs that it does not list; take another --run-id"
    )


def _start(
    jobs: ClusterJobs, name: str, order: Order, package: Path, variables: dict[str, str], say: Say
) -> None:
    """Starts the job under this name. Where the answer is lost, or not waited for, the cluster is
    asked whether it has the job all the same."""
    sending = secrets.token_hex(8)
    metadata = {RUN: order.run, KIND: order.kind, FOLDER: order.folder, SENDING: sending}
    try:
        jobs.submit(
            name, order.words, package=package, variables=variables, metadata=metadata, say=say
        )
    except ClusterError:
        if not _has_come(jobs, name, sending):
            raise
    except KeyboardInterrupt:
        if _has_come(jobs, name, sending):
            say(f"the job {name} has begun all the same; end it with crossreid stop {order.run}")
        raise


def _has_come(jobs: ClusterJobs, name: str, sending: str) -> bool:
    try:
        job = jobs.get(name)
    except ClusterError:
        return False
    return job is not None and job.sending == sending


def _image(config: Config | None) -> str:
    """The image that has this machine's versions."""
    if config is None:
        return f"crossreid:{__version__}-cuda or crossreid:{__version__}-cpu"
    return f"crossreid:{__version__}-{'cuda' if config.cluster.gpus_per_worker else 'cpu'}"


def _variables(config: Config | None) -> dict[str, str]:
    """The job's environment: how long its driver may take to stop, which includes waiting until
    Prometheus has seen the end.

    What Ray's own processes read, the driver says itself when it joins the cluster; Ray refuses a
    variable that both name, even with one value.
    """
    linger_s = config.telemetry.linger_s if config else LINGER_S
    return {STOP_VARIABLE: str(math.ceil(STOP_S + linger_s))}


def _refuse_taken(order: Order, known: list[Job]) -> None:
    """One job at a time changes a run, and a new run has had none.

    A job that was refused does not count: the next one sees itself whether there is a folder.
    """
    found = jobs_of(known, order.run).training
    going = [job for job in found if not job.has_ended]
    if going and order.kind in WRITES:
        raise RunError(
            f"run {order.run} is being trained already, by job {going[-1].job_id} "
            f"({going[-1].state}); look at it with crossreid status {order.run}, end it with "
            f"crossreid stop {order.run}, or take another --run-id"
        )
    if found and order.is_new:
        raise RunError(
            f"run {order.run} was there before, as job {found[-1].job_id} ({found[-1].state}); go "
            f"on with it by --resume {order.run}, or take another --run-id"
        )
