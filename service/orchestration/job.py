"""A job of ours on a cluster, as a value, and its name.

A run's jobs are named after it: `RUN`, then `RUN.2` and so on for later attempts, since Ray takes
no name twice; `RUN.evaluate`, `RUN.evaluate2` for evaluations.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.errors import ExitCode

RUN, KIND, FOLDER = "crossreid_run", "crossreid_kind", "crossreid_folder"
"""Keys of a job's metadata: the run, what the job does for it, and where the run lies."""
WRITES = ("train", "tune")
"""Kinds of jobs that change a run; only one of them at a time."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, slots=True)
class Job:
    """One job of ours.

    kind: train, tune, evaluate, ingest or status. state: Ray's word, PENDING, RUNNING, SUCCEEDED,
    FAILED or STOPPED. folder: of the run on the cluster, empty where nobody said. driver_exit: its
    process's exit code, negative for a signal, None while it runs or when Ray does not know it.
    message: Ray's, with the end of the log of a failed job. began, ended: Unix seconds.
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
    driver_pid: int | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def was_refused(self) -> bool:
        """Whether it ended over something that its user has to put right."""
        return self.state == "FAILED" and self.driver_exit == ExitCode.USER_ERROR

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
