"""Ends a run's job: asked to, with time for a checkpoint, or killed at once."""

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path

from service.errors import ClusterError, RunError
from service.orchestration.cluster_jobs import ClusterJobs
from service.orchestration.job import KIND, RUN, Job
from service.orchestration.packing import packed

_STOP_LIMIT_S = 1100.0
"""Seconds within which a run that was asked to end has ended, or Ray has killed it."""
_LIMIT_S = 240.0
"""The same of the small jobs that look or kill."""
_LOOK_S = 0.5


def end_job(jobs: ClusterJobs, job: Job, *, now: bool) -> Job:
    """Ends a job that runs and gives it as it ended.

    now: its process is killed; else it is asked to end, for which it has the time that its
    submitter gave it.

    Raises:
        ClusterError: it has not ended in time.
    """
    if now and job.driver_pid is not None:
        _kill(jobs, job, job.driver_pid)
    jobs.stop(job.job_id)
    return until_ended(jobs, job.job_id, _STOP_LIMIT_S)


def until_ended(jobs: ClusterJobs, job_id: str, limit_s: float) -> Job:
    """The job once it has ended.

    Raises:
        ClusterError: it has not within `limit_s` seconds, or the cluster has forgotten it.
    """
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        job = jobs.get(job_id)
        if job is None:
            raise ClusterError(f"the cluster does not know the job {job_id} any more")
        if job.has_ended:
            return job
        time.sleep(_LOOK_S)
    raise ClusterError(
        f"the job {job_id} has not ended within {limit_s:g} s; the cluster's head may be "
        "overloaded: see its dashboard"
    )


def forget(jobs: ClusterJobs, job_id: str, limit_s: float) -> None:
    """Ends a small job of ours if it still runs, and makes the cluster forget it."""
    job = jobs.get(job_id)
    if job is None:
        return
    if not job.has_ended:
        jobs.stop(job_id)
        until_ended(jobs, job_id, limit_s)
    jobs.delete(job_id)


def kill_process(pid: int, run: str) -> None:
    """Kills a job's process on this machine.

    Raises:
        RunError: `pid` is no process that trains `run`.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError as error:
        raise RunError(f"there is no process {pid} any more") from error
    if not any(word.startswith("jobs.") for word in words) or run not in " ".join(words):
        raise RunError(f"process {pid} does not train run {run}; nothing was killed")
    os.kill(pid, signal.SIGKILL)


def _kill(jobs: ClusterJobs, job: Job, pid: int) -> None:
    """By a small job, since only the head reaches the process."""
    name = f"crossreid-kill-{secrets.token_hex(4)}"
    words = ["jobs.kill", str(pid), job.run]
    try:
        with packed() as package:
            told = {RUN: job.run, KIND: "kill"}
            jobs.submit(name, words, package=package.folder, variables={}, metadata=told)
        until_ended(jobs, name, _LIMIT_S)
    finally:
        with contextlib.suppress(ClusterError):
            forget(jobs, name, _LIMIT_S)
