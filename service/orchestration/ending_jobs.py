"""Ends a run's job: asked to, with time for a checkpoint, or killed at once."""

import contextlib
import os
import re
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import ClusterError, ExitCode, RunError
from service.orchestration.cluster_jobs import GIVE_UP_S, ClusterJobs
from service.orchestration.driver import JOB_VARIABLE, submission_of
from service.orchestration.job import KIND, RUN, Job
from service.orchestration.packing import packed
from service.orchestration.versions import REFUSED

_MARGIN_S = 200.0
"""Seconds beyond the time that a job has to end, in which Ray says that it has."""
_LIMIT_S = 240.0
"""Seconds that the small jobs that look or kill may take."""
_LOOK_S = 0.5
_HEAD = re.compile(rf"^(\d\d:\d\d:\d\d )?({REFUSED})?")


def end_job(jobs: ClusterJobs, job: Job, *, now: bool, say: Callable[[str], None]) -> Job:
    """Ends a job that runs and gives it as it ended.

    now: its process is killed; else it is asked to end, for which it has the time that its
    submitter gave it. say: takes what was done.

    Raises:
        ClusterError: it could not be killed, or has not ended in time.
    """
    if now:
        _kill(jobs, job)
    jobs.stop(job.job_id)
    asked = "asked it to write a checkpoint and end" if job.trains else "asked it to end"
    say("killed it" if now else f"{asked}; --now would kill it")
    try:
        return until_ended(jobs, job.job_id, job.stop_s + _MARGIN_S)
    except ClusterError as error:
        told = f"{error}. It was asked to end; crossreid list says whether it has"
        raise ClusterError(told) from error


def until_ended(jobs: ClusterJobs, job_id: str, limit_s: float) -> Job:
    """The job once it has ended. The cluster may be away for `GIVE_UP_S` seconds meanwhile.

    Raises:
        ClusterError: it has not within `limit_s` seconds, or the cluster has forgotten it or stays
            away.
    """
    until, heard_at = time.monotonic() + limit_s, time.monotonic()
    while time.monotonic() < until:
        try:
            job, heard_at = jobs.get(job_id), time.monotonic()
        except ClusterError:
            if time.monotonic() - heard_at > GIVE_UP_S:
                raise
        else:
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


def last_line(jobs: ClusterJobs, job: Job) -> str:
    """The last that a small job has printed, or how it was lost."""
    lines = [line for line in jobs.log(job.job_id).splitlines() if line.strip()]
    last = _HEAD.sub("", lines[-1]) if lines else ""
    return job.how_lost or last or f"exit code {job.exit_code}"


def kill_job(job_id: str) -> None:
    """Kills the processes of a job on this machine.

    Raises:
        RunError: there are none, or none that this user may see.
    """
    found = [pid for pid in _pids() if _works_for(pid, job_id)]
    if not found:
        raise RunError(f"this user has no process of the job {job_id} here; nothing was killed")
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill(jobs: ClusterJobs, job: Job) -> None:
    """By a small job, since only the head reaches the process."""
    name = f"crossreid-kill-{secrets.token_hex(4)}"
    words = ["jobs.kill", job.job_id]
    try:
        with packed() as package:
            told = {RUN: job.run, KIND: "kill"}
            jobs.submit(name, words, package=package, variables={}, metadata=told)
        killer = until_ended(jobs, name, _LIMIT_S)
        if killer.exit_code != ExitCode.OK and not _has_ended(jobs, job):
            raise ClusterError(
                f"the job {job.job_id} could not be killed: {last_line(jobs, killer)}; without "
                "--now it is asked to end"
            )
    finally:
        with contextlib.suppress(ClusterError):
            forget(jobs, name, _LIMIT_S)


def _has_ended(jobs: ClusterJobs, job: Job) -> bool:
    found = jobs.get(job.job_id)
    return found is None or found.has_ended


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _works_for(pid: int, job_id: str) -> bool:
    """Whether the process is what a job was started as; those that look at the job are not."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    told = [v.removeprefix(f"{JOB_VARIABLE}=") for v in variables if v.startswith(JOB_VARIABLE)]
    return b"-m" in words and any(submission_of(text) == job_id for text in told)
