"""A cluster's job server in memory, for commands that need no more of a cluster."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.errors import ClusterError
from service.orchestration.cluster_jobs import TakenError
from service.orchestration.job import FOLDER, KIND, RUN, SENDING, Job
from service.orchestration.versions import versions

Small = Callable[[Sequence[str]], tuple[int, str]]
"""What a small job does with its words: its exit code and what it prints."""


class JobServer:
    """As `ClusterJobs`, with jobs that end when they are stopped.

    small: what small jobs do. stops: what a job becomes that is asked to end. remembered: names
    that are refused though no such job is listed. fails: the next calls of `get` that raise. lost:
    an answer to `submit` that does not come back; what is raised instead, and whether the job is
    there all the same.
    """

    address = "http://head:8265"
    tells_token = False

    def __init__(
        self,
        *jobs: Job,
        small: Small = lambda words: (0, ""),
        stops: Callable[[Job], Job] = lambda job: replace(job, state="STOPPED"),
        remembered: tuple[str, ...] = (),
        fails: int = 0,
        lost: tuple[BaseException, bool] | None = None,
    ) -> None:
        self.jobs = {job.job_id: job for job in jobs}
        self.logs: dict[str, str] = {}
        self.ray_version = versions()["Ray"]
        self.sent: list[dict[str, Any]] = []
        self._small, self._stops, self._remembered = small, stops, remembered
        self._fails, self._lost = fails, lost

    def all(self) -> list[Job]:
        return sorted(self.jobs.values(), key=lambda job: job.began)

    def get(self, job_id: str) -> Job | None:
        if self._fails:
            self._fails -= 1
            raise ClusterError("nobody answers")
        return self.jobs.get(job_id)

    def submit(
        self,
        job_id: str,
        words: Sequence[str],
        *,
        package: Path,
        metadata: Any,
        variables: Any,
        say: Any = None,
    ) -> None:
        if job_id in self._remembered:
            raise TakenError(job_id)
        file = package / "config.yaml"
        config = file.read_text() if file.exists() else None
        told = {"metadata": metadata, "variables": variables}
        self.sent.append({"job_id": job_id, "words": words, "config": config, **told})
        if self._lost is None or self._lost[1]:
            self._start(job_id, words, metadata)
        if self._lost is not None:
            raise self._lost[0]

    def stop(self, job_id: str) -> None:
        if not self.jobs[job_id].has_ended:
            self.jobs[job_id] = self._stops(self.jobs[job_id])

    def delete(self, job_id: str) -> None:
        del self.jobs[job_id]

    def log(self, job_id: str) -> str:
        return self.logs[job_id]

    def _start(self, job_id: str, words: Sequence[str], told: dict[str, str]) -> None:
        job = Job(job_id, told[RUN], told[KIND], "RUNNING", told.get(FOLDER, ""))
        if not job.is_runs:
            code, self.logs[job_id] = self._small(words)
            job = replace(job, state="FAILED" if code else "SUCCEEDED", driver_exit=code)
        self.jobs[job_id] = replace(job, sending=told.get(SENDING, ""))
