"""What a run has behind it: its folder as an earlier attempt left it, and the state in between."""

from pathlib import Path
from typing import Any, NamedTuple

from service.errors import CheckpointError
from service.health import HealthReport
from service.training.checkpoint import State, checkpoints, step_of
from service.training.journal import Event, Journal, last_attempt, read_journal
from service.training.parts import Parts
from service.training.state import Progress


class Past(NamedTuple):
    """checkpoint: the newest complete one. directives: journal lines of those applied so far.
    journal: open for the attempt that begins now, on rank 0 only. was_told: an attempt came to its
    end at that checkpoint and told its user, who continues it on purpose."""

    checkpoint: Path | None
    directives: list[Event]
    journal: Journal | None
    was_told: bool


def look_back(run_dir: Path, rank: int) -> Past:
    """What rank 0 finds in the run's folder; nothing on the other ranks, which must not look.

    Raises:
        CheckpointError: if the folder cannot be read or written.
    """
    if rank != 0:
        return Past(None, [], None, False)
    try:
        events = read_journal(run_dir)
        journal = Journal(run_dir, last_attempt(events) + 1)
        found = checkpoints(run_dir)
    except OSError as error:
        raise unwritable(error) from error
    given = [event for event in events if event["event"] == "directive"]
    at = step_of(found[-1]) if found else 0
    was_told = any(event["event"] == "end" and event["step"] == at for event in events)
    return Past(found[-1] if found else None, given, journal, was_told)


def unwritable(error: OSError) -> CheckpointError:
    """The error for a run's folder that cannot be used."""
    return CheckpointError(
        f"the run's folder cannot be read or written: {error}; free space or check its rights, "
        "then --resume"
    )


def pack(parts: Parts, progress: Progress, report: HealthReport | None) -> State:
    """The train state as a checkpoint holds it."""
    return {
        "progress": progress.to_dict(),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "health": parts.health.state_dict(),
        "memory": parts.memory.state_dict() if parts.memory else None,
        "report": report.to_dict() if report else None,
    }


def unpack(parts: Parts, state: dict[str, Any]) -> tuple[Progress, HealthReport | None]:
    """Puts a packed state into `parts`; returns the progress and the last report."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.health.load_state_dict(state["health"])
    if parts.memory is not None:
        parts.memory.load_state_dict(state["memory"])
    report = state["report"]
    return Progress.from_dict(state["progress"]), report and HealthReport.from_dict(report)
