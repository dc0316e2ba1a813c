"""What the controller makes of failed workers: a fault ends the training, a loss is told.

Ray starts all workers again after a loss. Who was lost is written into the run's journal and told
to the driver, through the control plane.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, RestartingState

from service.errors import LostRankError
from service.orchestration.cluster import first_line
from service.orchestration.control import ControlClient, find_control
from service.orchestration.worker import Job, WorkerFault
from service.training.journal import Journal, last_attempt, read_journal

_ANSWER_S = 3.0
"""Seconds in which a worker answers Ray, whatever its training does."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Why all workers have to be started again.

    ranks: those that were lost; empty when that is not known. words: who, and how. hangs: whether
    their processes may still be there.
    """

    ranks: tuple[int, ...]
    words: str
    hangs: bool = False


class OnFailure(WorkerGroupCallback, ControllerCallback):
    """Ends the training at a `WorkerFault`, where Ray would start the workers again; tells of
    losses, and clears away what hangs.

    An error raised here is a controller's error for Ray, and those are final. A fault next to a
    process that was lost is left to the retry.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._group: Any = None
        self._workers: list[Any] = []
        self._judged: set[int] = set()

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group, self._judged = worker_group, set()
        self._workers = list(worker_group.get_workers())

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Ray looks again and again while it waits for the end of a machine's notice."""
        errors = worker_group_status.errors
        if set(errors) - self._judged:
            self._judged |= set(errors)
            self._judge(errors, self._workers)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """A machine's notice has ended: Ray starts again without it, and without an error of any
        worker."""
        was_announced = isinstance(previous_state, PreemptingState)
        if was_announced and isinstance(current_state, RestartingState) and not self._judged:
            ranks = tuple(sorted(previous_state.preemption_info.preempted_ranks))
            names = ", ".join(_rank_name(rank, self._workers) for rank in ranks)
            tell_loss(self._job, Loss(ranks, f"the machine of {names} is taken away"))

    def _judge(self, errors: Mapping[int, Exception], workers: Sequence[Any]) -> None:
        """errors: by rank, of those that failed. workers: all ranks, as Ray Train keeps them.

        Raises:
            WorkerFault: one failed with it, and nobody was lost.
        """
        loss = loss_in(errors, workers)
        faults = [error for error in errors.values() if isinstance(error, WorkerFault)]
        if not loss.ranks and len(faults) < len(errors):
            loss = unanswering(workers) or loss
        if faults and not loss.ranks:
            raise faults[0]
        tell_loss(self._job, loss)
        if loss.hangs:
            # Ends its workers at once. Ray would first ask a process that hangs to leave its
            # process group and then to end, in vain for ten seconds.
            self._group.get_worker_group_state().placement_group_handle.shutdown()


def unanswering(workers: Sequence[Any]) -> Loss | None:
    """Those that Ray reaches no more: with a machine that is lost, it hears of that much later."""
    asked = [worker.actor.get_metadata.remote() for worker in workers]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)
    lost = tuple(rank for rank, call in enumerate(asked) if not _answers(call, answered))
    names = ", ".join(_rank_name(rank, workers) for rank in lost)
    return Loss(lost, f"{names} cannot be reached any more", hangs=True) if lost else None


def _answers(call: Any, answered: Sequence[Any]) -> bool:
    if call not in answered:
        return False
    try:
        ray.get(call)
    except RayError:
        return False
    return True


def loss_in(errors: Mapping[int, Exception], workers: Sequence[Any] = ()) -> Loss:
    """Who was lost, by what each rank failed with; nobody is named when that does not tell.

    A process that ended comes first: Ray knows it for sure, and its peers fail because of it.
    """
    ended = {rank: error for rank, error in sorted(errors.items()) if _has_ended(error)}
    if ended:
        told = [f"{_rank_name(rank, workers)} {_how(error)}" for rank, error in ended.items()]
        return Loss(tuple(ended), "; ".join(told))
    named = [error for error in errors.values() if isinstance(error, LostRankError)]
    if named:
        best = max(named, key=lambda error: len(error.ranks))
        return Loss(best.ranks, str(best), hangs=bool(best.ranks))
    silent = tuple(sorted(rank for rank, error in errors.items() if _is_silent(error)))
    if silent:
        names = ", ".join(_rank_name(rank, workers) for rank in silent)
        return Loss(silent, f"{names} does not answer Ray any more: it hangs", hangs=True)
    first = "; ".join(f"rank {rank}: {first_line(error)}" for rank, error in errors.items())
    return Loss((), first)


def tell_loss(job: Job, loss: Loss) -> None:
    """Writes the loss into the run's journal, and tells the driver.

    Never fails: the workers are started again whether or not it could be told.
    """
    event = {"event": "lost", "ranks": list(loss.ranks), "words": loss.words}
    with contextlib.suppress(OSError):
        folder = Path(job.run_dir)
        journal = Journal(folder, last_attempt(read_journal(folder)))
        journal.append(event)
        journal.close()
    with contextlib.suppress(RayError, ValueError):
        ControlClient(find_control(job.control), job.key).report(event)


def _has_ended(error: Exception) -> bool:
    return isinstance(error, RayError | WorkerHealthCheckFailedError)


def _is_silent(error: Exception) -> bool:
    return isinstance(error, WorkerHealthCheckTimeoutError)


def _rank_name(rank: int, workers: Sequence[Any]) -> str:
    if rank >= len(workers):
        return f"rank {rank}"
    found = workers[rank].metadata
    return f"rank {rank} (pid {found.pid} on {found.hostname})"


def _how(error: Exception) -> str:
    """What Ray's long texts say somewhere inside."""
    text = str(error).lower()
    cause = getattr(error, "health_check_failure", error)
    if isinstance(cause, RayActorError) and cause.preempted:
        return "was taken away with its machine"
    if "low on memory" in text:
        return "was killed because its machine ran out of memory"
    if "its node has died" in text or "node was terminated" in text:
        return "was lost with its machine"
    return "ended without a word: killed, often for memory, or lost with its machine"
