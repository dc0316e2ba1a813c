"""The driver's main thread during a sweep."""

import contextlib
import time
from typing import Any

from ray import tune

from service.background import Background
from service.orchestration.control import ControlReader
from service.orchestration.monitor import Monitor
from service.orchestration.orphans import QUIET_S, actor_is_dead, remove_orphans
from service.orchestration.scheduler import GoNoGoScheduler
from service.orchestration.train import LOOK_S, stop_trials
from service.orchestration.worker import error_name

_DEAD_S = 60.0
"""Seconds after which what a killed trial ran in counts as dead, whatever Ray says of it."""


class Watch:
    """Looks at the trials until their sweep ends, and frees what killed ones hold.

    Trials that have ended when it is made ended under an earlier driver, which told how.
    """

    def __init__(
        self,
        task: Background[tune.ResultGrid],
        scheduler: GoNoGoScheduler,
        monitor: Monitor,
        reader: ControlReader,
    ) -> None:
        self._task = task
        self._scheduler = scheduler
        self._monitor = monitor
        self._reader = reader
        self._killed_at: dict[str, float] = {}
        self._quiet_since: dict[str, float] = {}
        self._freed: set[str] = set()
        trials = list(scheduler.trials.items())
        self._over_before = {key for key, record in trials if record.outcome is not None}

    def until_end(self) -> tuple[list[Any], bool]:
        """Tune's results, and whether the user interrupted; no results then.

        Raises:
            Exception: the one that ended the sweep.
        """
        try:
            while not self._task.wait(LOOK_S):
                self._look()
                self._free()
            self._look()
            while not self._free():
                time.sleep(LOOK_S)
                self._look()
            results = self._task.result()
            return [results[i] for i in range(len(results))], False
        except KeyboardInterrupt:
            self._scheduler.is_closed = True
            with contextlib.suppress(KeyboardInterrupt):
                stop_trials(self._task, self._monitor, self._reader, self._going)
            return [], True
        except Exception as error:
            for key in self._monitor.started:
                if key in self._going():
                    self._monitor.failed(key, error_name(error))
            raise

    def _going(self) -> list[str]:
        """The trials that have not ended."""
        records = list(self._scheduler.trials.items())
        return [key for key, record in records if record.outcome is None]

    def _look(self) -> None:
        """What a trial told before it ended is heard before it counts as ended."""
        ended = tuple(self._scheduler.ended)
        for key, record in list(self._scheduler.trials.items()):
            self._monitor.sampled(key, record.sample)
        self._monitor.look(self._reader)
        for key in ended:
            failure = self._scheduler.trials[key].failure if key in self._scheduler.trials else ""
            if failure and key not in self._over_before:
                self._monitor.failed(key, failure)
            self._monitor.ended(key)

    def _free(self) -> bool:
        """Gives back what killed trials still hold; True when there is nothing left to give.

        Trials that stopped by themselves hold nothing. Ray's own cleaner does this only where its
        dashboard runs. While a killed trial's process or controller lives, it answers the loss of
        what it started with a new one; what they leave belongs to nobody once both are dead.
        """
        trials = list(self._scheduler.trials.items())
        killed = {
            key: (record.process, record.controller) for key, record in trials if record.killed
        }
        going = killed.keys() - self._freed
        is_busy = bool(going) and bool(remove_orphans())
        now = time.monotonic()
        for key in going:
            killed_at = self._killed_at.setdefault(key, now)
            lives = now - killed_at < _DEAD_S and not all(map(actor_is_dead, killed[key]))
            if is_busy or lives:
                self._quiet_since[key] = now
            elif now - self._quiet_since.setdefault(key, now) >= QUIET_S:
                self._freed.add(key)
        return going <= self._freed
