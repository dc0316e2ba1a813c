"""Looks at a run: in its folder where that is seen from here, else by a small job on the head."""

import contextlib
import json
import secrets
from pathlib import Path

from service.errors import ClusterError, RunError
from service.orchestration.cluster_jobs import ClusterJobs
from service.orchestration.ending_jobs import forget, until_ended
from service.orchestration.job import FOLDER, KIND, RUN, Job
from service.orchestration.packing import packed
from service.orchestration.reading import ANSWER
from service.orchestration.standing import Life, Standing, State

_ANSWER_S = 60.0
"""Seconds that the small job may take."""


def life_of(job: Job | None) -> Life:
    """What the run's newest job says of it."""
    return Life() if job is None else Life(job=job.state, since=job.began)


def look_there(jobs: ClusterJobs, folder: str, job: Job | None) -> Standing:
    """Where the run in `folder` stands, as the head of the cluster sees it.

    A small job reads it there, and is forgotten afterwards.

    Raises:
        RunError: there is no such run.
        ClusterError: the job gave no answer.
    """
    if job is not None and job.state == "PENDING":
        return Standing(job.run, State.WAITING, folder)
    life = life_of(job)
    words = ["jobs.status", folder, "--since", str(life.since)]
    words += ["--job", life.job] if life.job else []
    name = f"crossreid-status-{secrets.token_hex(4)}"
    run = Path(folder).name
    metadata = {RUN: run, KIND: "status", FOLDER: folder}
    try:
        with packed() as package:
            jobs.submit(name, words, package=package.folder, variables={}, metadata=metadata)
        found = until_ended(jobs, name, _ANSWER_S)
        answer = _answer(jobs.log(name))
    finally:
        with contextlib.suppress(ClusterError):
            forget(jobs, name, _ANSWER_S)
    if answer is not None:
        return answer
    if job is not None and not job.has_ended:
        return Standing(run, State.STARTING, folder)
    if job is not None:
        raise RunError(
            f"run {run} never began: its job {job.job_id} ended with exit code {job.exit_code}; "
            f"crossreid logs {run} says why"
        )
    if found.exit_code == RunError.exit_code:
        raise RunError(f"the head of the cluster sees no run in {folder}; is it on shared storage?")
    raise ClusterError(
        f"the cluster did not say where run {run} stands: {found.how_lost or found.message}"
    )


def _answer(log: str) -> Standing | None:
    lines = [line for line in log.splitlines() if line.startswith(ANSWER)]
    return Standing.from_dict(json.loads(lines[-1].removeprefix(ANSWER))) if lines else None
