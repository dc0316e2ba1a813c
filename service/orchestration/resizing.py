"""What Ray's controller does without a word: it changes the number of workers, waits for room, and
starts them over and over.

Before a change the workers save: Ray itself would end them where they are.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from service.orchestration.cluster import first_line
from service.orchestration.control import ControlClient, find_control
from service.orchestration.worker import Job
from service.training.journal import Event, read_journal

_PATIENCE_S = 30.0
"""Seconds that a resize waits for the checkpoint: the workers ask every 5 s whether they leave."""
_LOOK_S = 0.2
_RESIZING = "ResizingState"
"""Ray Train's name for the state between the decision to resize and the end of the workers."""

START_TRIES = 10
"""Groups of workers in a row that may fail to start before a run gives up."""
_TRAINING = {"RunningState", "PreemptingState"}
_START_FAILED = "ReschedulingState"
_NO_ROOM = "WorkerGroupStartupTimeoutError"

_TELL_S = 30.0
_WITHOUT_WORKERS = ("InitializingState", "SchedulingState", "ReschedulingState", "RestartingState")


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
        if type(current_state).__name__ != _RESIZING:
            return
        # An error here would be final for Ray.
        with suppress(RayError, ValueError, OSError):
            self._save_first(current_state.scaling_decision.num_workers)

    def _save_first(self, workers: int) -> None:
        folder = Path(self._job.run_dir)
        known = len(read_journal(folder))
        client = ControlClient(find_control(self._job.control), self._job.key)
        client.announce(f"the number of workers changes to {workers}")
        until = time.monotonic() + _PATIENCE_S
        while not has_saved(read_journal(folder)[known:]) and time.monotonic() < until:
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
        if type(current_state).__name__ not in _WITHOUT_WORKERS:
            self._since = self._told_at = now
        elif now - self._told_at >= _TELL_S:
            self._told_at = now
            event = {"event": "waiting", "workers": self._fewest, "seconds": now - self._since}
            with suppress(RayError, ValueError):
                ControlClient(find_control(self._job.control), self._job.key).report(event)


class LimitStarts(ControllerCallback):
    """Ends a training whose workers fail to start `START_TRIES` times in a row, or find no room for
    `room_s`.

    Ray's own limit counts over the controller's life, and takes a wait for room for a failure.
    clock: seconds, rising.

    Raises:
        RuntimeError: in Ray's controller, for which it is final.
    """

    def __init__(self, room_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._room_s = room_s
        self._clock = clock
        self._since = clock()
        self._failed = 0

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        state = type(current_state).__name__
        if _TRAINING & {state, type(previous_state).__name__}:
            self._since, self._failed = self._clock(), 0
        # While there is no room Ray sets the same state again and again.
        if state != _START_FAILED or current_state is previous_state:
            return
        failure = current_state.training_failed_error.controller_failure
        waited_s = self._clock() - self._since
        if type(failure).__name__ != _NO_ROOM:
            self._failed += 1
        elif waited_s >= self._room_s:
            raise RuntimeError(f"no room for them within {waited_s:.0f} s")
        if self._failed >= START_TRIES:
            raise RuntimeError(
                f"{self._failed} tries in a row; the last one: {first_line(failure)}"
            )


def has_saved(events: list[Event]) -> bool:
    """Whether the workers have heeded an announcement, as the journal says since then."""
    left = [event["step"] for event in events if event["event"] == "leaving"]
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    return bool(left) and max(saved, default=-1) >= left[-1]
