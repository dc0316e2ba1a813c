"""A job of ours on a cluster, and all those of one run, as values; and how a job is named.

A run's jobs are named after it: `RUN`, then `RUN.2` and so on for later attempts, since Ray takes
no name twice; `RUN.evaluate`, `RUN.evaluate2` for evaluations.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.errors import ExitCode
from service.orchestration.versions import REFUSED

RUN, KIND, FOLDER = "crossreid_run", "crossreid_kind", "crossreid_folder"
"""Keys of a job's metadata: the run, what the job does for it, and where the run lies."""
SENDING = "crossreid_sending"
"""Key of a word by which the one who sent a job knows it again."""
ACCEPTED = "accepted: "
"""How the line begins by which a job says that nothing more stands in its way."""
WRITES = ("train", "tune")
"""Kinds of jobs that change a run; only one of them at a time."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_S = 900.0
"""Seconds that a driver has to write its checkpoint and leave the cluster, before it is killed."""
LINGER_S = 60.0
"""Seconds beyond that in which Prometheus sees the end, where nobody says otherwise."""
_REFUSAL = re.compile(rf"^(\d\d:\d\d:\d\d )?{REFUSED}", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Job:
    """One job of ours.

    kind: train, tune, evaluate, ingest, status or kill. state: Ray's word, PENDING, RUNNING,
    SUCCEEDED, FAILED or STOPPED. folder: of the run on the cluster, empty where nobody said.
    driver_exit: its process's exit code, negative for a signal, None while it runs or when Ray does
    not know it. message: Ray's, with the last ten lines of the log of a failed job. began, ended:
    Unix seconds of the head's clock. stop_s: seconds that it has to end when it is asked to, as
    far as is known. sending: the word of who sent it.
    """

    job_id: str
    run: str
    kind: str
    state: str
    folder: str = ""
    driver_exit: int | None = None
    message: str = ""
    began: float = 0.0
    ended: float | None = None
    stop_s: float = STOP_S + LINGER_S
    sending: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def was_refused(self) -> bool:
        """Whether it ended over something that its user has to put right, and changed nothing."""
        is_mistake = self.state == "FAILED" and self.driver_exit == ExitCode.USER_ERROR
        return is_mistake and _REFUSAL.search(self.message) is not None

    @property
    def trains(self) -> bool:
        return self.kind in WRITES

    @property
    def is_runs(self) -> bool:
        """Whether it works on a run; others only look at one, or kill a job."""
        return self.kind in (*WRITES, "evaluate", "ingest")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code if self.has_ended else None}

    @property
    def exit_code(self) -> int:
        """What a command ends with that waited for the job: its own; 1 if killed or lost."""
        if self.state == "SUCCEEDED":
            return ExitCode.OK
        if self.state == "STOPPED":
            return ExitCode.INTERRUPTED
        code = self.driver_exit
        return code if code and code in set(ExitCode) else 1

    @property
    def how_lost(self) -> str:
        """How a job ended that could not say so itself; empty for one that could."""
        if self.state != "FAILED":
            return ""
        if self.driver_exit is None:
            return f"the job was lost: {first_line(self.message) or 'Ray does not say why'}"
        if not self.signal:
            return ""
        why = "; by hand, or the head ran out of memory" if self.signal == 9 else ""
        return f"the job's process was killed by signal {self.signal}{why}"

    @property
    def signal(self) -> int:
        """What killed its process, 0 if nothing did; a shell in between adds 128."""
        code = self.driver_exit or 0
        if code == ExitCode.INTERRUPTED:
            return 0
        return -code if code < 0 else max(code - 128, 0)


@dataclass(frozen=True, slots=True)
class RunJobs:
    """The jobs that a cluster remembers of one run, oldest first."""

    jobs: tuple[Job, ...]

    @property
    def training(self) -> tuple[Job, ...]:
        """Those that trained the run, which a refused one did not."""
        return tuple(job for job in self.jobs if job.trains and not job.was_refused)

    @property
    def running(self) -> Job | None:
        """The one that has not ended; of several, the newest of those that train the run."""
        going = [job for job in self.jobs if not job.has_ended]
        return _last(job for job in going if job.trains) or _last(going)

    @property
    def newest(self) -> Job | None:
        """The one that says how the run stands: the last that trained it; where there is none, the
        last that was to."""
        return _last(self.training) or _last(job for job in self.jobs if job.trains)

    @property
    def shown(self) -> Job | None:
        """The one whose log is the run's: that which runs, else the last attempt, else the last."""
        return self.running or _last(job for job in self.jobs if job.trains) or _last(self.jobs)

    @property
    def folder(self) -> str:
        """Where the run lies: as the last job says that trained it, else as any does."""
        told = (*self.jobs, *self.training)
        return next((job.folder for job in reversed(told) if job.folder), "")


def jobs_of(known: Iterable[Job], run: str, folder: str = "") -> RunJobs:
    """The jobs that work on `run`. known: the cluster's, oldest first.

    folder: leaves those out that say to work on a run of that name elsewhere.
    """
    ours = (job for job in known if job.run == run and job.is_runs)
    return RunJobs(tuple(job for job in ours if not folder or job.folder in ("", folder)))


def newest_jobs(known: Sequence[Job]) -> list[Job]:
    """The last job of each kind of each run, the oldest first; one that was refused only where
    there is no other."""
    refused_first = sorted(known, key=lambda job: not job.was_refused)
    newest = {(job.run, job.kind): job for job in refused_first if job.is_runs}
    return sorted(newest.values(), key=lambda job: job.began)


def _last(jobs: Iterable[Job]) -> Job | None:
    return next(reversed(tuple(jobs)), None)


def job_name(run: str, kind: str, taken: Sequence[str]) -> str:
    """The name of the next job of `run`. taken: those of jobs that there were."""
    first, later = (f"{run}.{kind}",) * 2 if kind == "evaluate" else (run, f"{run}.")
    if first not in taken:
        return first
    number = 2
    while f"{later}{number}" in taken:
        number += 1
    return f"{later}{number}"


def first_line(text: str) -> str:
    """The line that says most: the last of a traceback, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    return (lines[-1] if "Traceback" in text else lines[0])[:300]
