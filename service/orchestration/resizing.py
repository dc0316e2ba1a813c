"""What Ray's controller does without a word: it changes the number of workers, starts them over and
over, and waits: for room, and for one that hangs.

Before a change the workers save: Ray itself would end them where they are.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)

from service.orchestration.cluster import first_line
from service.orchestration.control import ControlClient, find_control
from service.orchestration.failures import Loss, tell_loss
from service.orchestration.orphans import remove_own
from service.orchestration.worker import Job
from service.training.journal import Event, read_journal

_PATIENCE_S = 30.0
"""Seconds that a resize waits for the checkpoint: the workers ask every 5 s whether they leave, and
hear the answer when they ask again."""
_LOOK_S = 0.2

START_TRIES = 10
"""Groups of workers in a row that may fail to start before a run gives up."""
_TRAINING = (RunningState, PreemptingState)

_TELL_S = 30.0
_WITHOUT_WORKERS = (InitializingState, SchedulingState, ReschedulingState, RestartingState)


class SaveFirst(ControllerCallback, WorkerGroupCallback):
    """Announces a resize to the running workers, and holds it until they have saved.

    Meanwhile it looks at the workers in the controller's place: one that reports waits for that.
    Those that do not save in time are started again from an older checkpoint.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ResizingState):
            return
        # An error here would be final for Ray.
        with suppress(RayError, ValueError, OSError):
            decision: Any = current_state.scaling_decision
            self._save_first(decision.num_workers)

    def _save_first(self, workers: int) -> None:
        folder = Path(self._job.run_dir)
        before = read_journal(folder)
        client = ControlClient(find_control(self._job.control), self._job.key)
        client.announce(f"the number of workers changes to {workers}")
        until = time.monotonic() + _PATIENCE_S
        while not has_saved(read_journal(folder), len(before)) and time.monotonic() < until:
            status = self._group.poll_status(timeout=_LOOK_S)
            if status.errors or status.finished:
                return
            time.sleep(_LOOK_S)


class TellWaiting(ControllerCallback):
    """Tells the driver, every `_TELL_S`, that no workers run since there is no room for them.

    fewest: workers that there must be room for. clock: seconds, rising.
    """

    def __init__(self, job: Job, fewest: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._job = job
        self._fewest = fewest
        self._clock = clock
        self._since = self._told_at = clock()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        now = self._clock()
        if not isinstance(current_state, _WITHOUT_WORKERS):
            self._since = self._told_at = now
        elif now - self._told_at >= _TELL_S:
            self._told_at = now
            waits = {"event": "waiting", "workers": self._fewest, "seconds": now - self._since}
            _report(self._job, waits)


class LimitStarts(ControllerCallback):
    """Tells the driver of workers that fail to start; ends a training whose workers do so
    `START_TRIES` times in a row, or find no room for `room_s`.

    Ray's own limit counts over the controller's life, and takes a wait for room for a failure; one
    for enough machines, with a changing number of workers, it never ends.
    clock: seconds, rising.

    Raises:
        RuntimeError: in Ray's controller, for which it is final.
    """

    def __init__(
        self, job: Job, room_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._room_s = room_s
        self._clock = clock
        self._since = clock()
        self._failed = 0

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, _TRAINING) or isinstance(previous_state, _TRAINING):
            self._since, self._failed = self._clock(), 0
        if not isinstance(current_state, _WITHOUT_WORKERS):
            return
        # While there are too few machines Ray sets the same state again and again.
        waits = current_state is previous_state
        failure = None if waits else _failure_to_start(current_state)
        waited_s = self._clock() - self._since
        if failure is not None and not isinstance(failure, WorkerGroupStartupTimeoutError):
            self._failed += 1
            words = first_line(failure)
            if self._failed >= START_TRIES:
                raise RuntimeError(f"{self._failed} tries in a row; the last one: {words}")
            _report(self._job, {"event": "start_failed", "tries": self._failed, "words": words})
        elif (waits or failure is not None) and waited_s >= self._room_s:
            raise RuntimeError(f"no room for them within {waited_s:.0f} s")


def _report(job: Job, event: Event) -> None:
    """Tells the driver; an error here would be final for Ray."""
    with suppress(RayError, ValueError):
        ControlClient(find_control(job.control), job.key).report(event)


def _failure_to_start(state: Any) -> Exception | None:
    """Why the workers did not come up; None where that is not what Ray answers."""
    if not isinstance(state, ReschedulingState):
        return None
    error: Any = state.training_failed_error
    return error.controller_failure


class ClearStuckStart(WorkerGroupCallback):
    """Clears away workers that are not all told to train within `limit_s`, and tells of it: Ray
    waits without limit for a process that hangs before, and starts others once they are gone.

    clear: removes the room of these workers, with all that runs there, if they have got it yet.
    """

    def __init__(
        self, job: Job, limit_s: float, clear: Callable[[], Collection[Any]] = remove_own
    ) -> None:
        self._job = job
        self._limit_s = limit_s
        self._clear = clear
        self._timer: threading.Timer | None = None

    @contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        self._watch()
        try:
            yield
        except BaseException:
            self._stop()
            raise

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._stop()

    def _watch(self) -> None:
        self._timer = threading.Timer(self._limit_s, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _end(self) -> None:
        if self._clear():
            words = f"a worker did not begin to train within {self._limit_s:g} s: it hangs"
            tell_loss(self._job, Loss((), words))
        else:
            self._watch()


def has_saved(events: list[Event], known: int) -> bool:
    """Whether the workers have heeded an announcement, by all lines of the journal.

    known: how many there were before it. What is to be saved may have been before, or be what the
    attempt began with.
    """
    left = [event for event in events[known:] if event["event"] == "leaving"]
    if not left:
        return False
    attempt, step = left[-1]["attempt"], left[-1]["step"]
    return any(
        event["step"] >= step
        for event in events
        if event["attempt"] == attempt and event["event"] in ("start", "checkpoint")
    )
