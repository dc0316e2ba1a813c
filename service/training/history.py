"""What a run has behind it: its folder as an earlier attempt left it, and the state in between."""

from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from service.errors import CheckpointError
from service.health import HealthReport, StepSample
from service.training.checkpoint import State
from service.training.journal import Event, Journal, last_attempt, read_journal
from service.training.parts import Parts
from service.training.state import Progress


class Past(NamedTuple):
    """What the earlier attempts' journal tells; empty on other ranks than 0.

    journal: open for the attempt that begins now. directives: lines of those applied so far. ends:
    steps at which an earlier command came to its end and told its user, who goes on on purpose.
    written: step of the newest checkpoint. is_new: no attempt has begun to train.
    """

    journal: Journal | None
    directives: list[Event]
    ends: list[int]
    written: int
    is_new: bool = False


def look_back(run_dir: Path, rank: int, told: int | None = None) -> Past:
    """What rank 0 finds in the run's folder; nothing on the other ranks, which must not look.

    told: the last attempt whose end the user has heard of; of all when None.

    Raises:
        CheckpointError: if the folder cannot be read or written.
    """
    if rank != 0:
        return Past(None, [], [], 0)
    try:
        events = read_journal(run_dir)
        journal = Journal(run_dir, last_attempt(events) + 1)
    except OSError as error:
        raise unwritable(error) from error
    is_new = not any(event["event"] == "start" for event in events)
    given = [event for event in events if event["event"] == "directive"]
    ends = [
        event["step"]
        for event in events
        if event["event"] == "end" and (told is None or event["attempt"] <= told)
    ]
    return Past(journal, given, ends, _newest_written(events), is_new)


def _newest_written(events: list[Event]) -> int:
    """Step of the newest checkpoint; an attempt that began after an older one supersedes it."""
    newest = 0
    for event in events:
        if event["event"] == "start":
            newest = event["step"]
        elif event["event"] == "checkpoint":
            newest = max(newest, event["step"])
    return newest


def unwritable(error: OSError) -> CheckpointError:
    """The error for a run's folder that cannot be used."""
    return CheckpointError(
        f"the run's folder cannot be read or written: {error}; free space or check its rights, "
        "then --resume"
    )


def pack(
    parts: Parts, progress: Progress, report: HealthReport | None, unlogged: list[StepSample]
) -> State:
    """The train state as a checkpoint holds it. unlogged: steps since the last event `steps`."""
    return {
        "progress": progress.to_dict(),
        "model": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "health": parts.health.state_dict(),
        "memory": parts.memory.state_dict() if parts.memory else None,
        "report": report.to_dict() if report else None,
        "unlogged": [astuple(sample) for sample in unlogged],
    }


def unpack(parts: Parts, state: State) -> tuple[Progress, HealthReport | None, list[StepSample]]:
    """Puts a packed state into `parts`; returns the rest of what was packed."""
    parts.model.load_state_dict(state["model"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.health.load_state_dict(state["health"])
    if parts.memory is not None:
        parts.memory.load_state_dict(state["memory"])
    report = state["report"]
    return (
        Progress.from_dict(state["progress"]),
        report and HealthReport.from_dict(report),
        [StepSample(*values) for values in state["unlogged"]],
    )
