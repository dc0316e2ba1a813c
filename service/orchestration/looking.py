"""Looks at a run: in its folder where that is seen from here, else by a small job on the head."""

import contextlib
import json
import secrets
from pathlib import Path

from service.errors import ClusterError, RunError
from service.orchestration.cluster_jobs import ClusterJobs
from service.orchestration.ending_jobs import forget, last_line, until_ended
from service.orchestration.job import FOLDER, KIND, RUN, Job
from service.orchestration.packing import packed
from service.orchestration.reading import ANSWER
from service.orchestration.standing import Life, Standing, State

_ANSWER_S = 60.0
"""Seconds that the small job may take."""


def life_of(job: Job | None) -> Life:
    """What the run's newest job says of it."""
    return Life() if job is None else Life(job=job.state, job_id=job.job_id)


def look_there(jobs: ClusterJobs, folder: str, job: Job | None) -> Standing:
    """Where the run in `folder` stands, as the head of the cluster sees it.

    job: the run's newest that trains it. A small job reads the folder there, and is forgotten
    afterwards.

    Raises:
        RunError: there is no such run.
        ClusterError: the small job gave no answer, and what it said instead.
    """
    run = Path(folder).name
    if job is not None and job.state == "PENDING":
        return Standing(run, State.WAITING, folder)
    found = _read_there(jobs, folder, job)
    if found is not None:
        return found
    if job is None:
        raise RunError(f"the head of the cluster sees no run in {folder}; is it on shared storage?")
    if job.has_ended:
        raise RunError(
            f"run {run} never began: its job {job.job_id} ended with exit code {job.exit_code}; "
            f"crossreid logs {run} says why"
        )
    return Standing(run, State.STARTING, folder)


def _read_there(jobs: ClusterJobs, folder: str, job: Job | None) -> Standing | None:
    """What the head reads in `folder`; None where it finds no run there."""
    name, run = f"crossreid-status-{secrets.token_hex(4)}", Path(folder).name
    words = ["jobs.status", folder]
    words += ["--job", job.job_id, "--state", job.state] if job else []
    metadata = {RUN: run, KIND: "status", FOLDER: folder}
    try:
        with packed() as package:
            jobs.submit(name, words, package=package, variables={}, metadata=metadata)
        small = until_ended(jobs, name, _ANSWER_S)
        log = jobs.log(name)
        answers = [line for line in log.splitlines() if line.startswith(ANSWER)]
        if not answers:
            raise ClusterError(
                f"the cluster did not say where run {run} stands: {last_line(jobs, small)}"
            )
    finally:
        with contextlib.suppress(ClusterError):
            forget(jobs, name, _ANSWER_S)
    values = json.loads(answers[-1].removeprefix(ANSWER))
    return None if values is None else Standing.from_dict(values)
