"""What a driver tells of its trials while they run, and how a log shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.telemetry import logs

MAIN_TRIAL = "main"
"""The key of a plain training, which is one trial."""

SWEEP = "sweep"
"""The key under which messages about a whole sweep come; its total counts trials."""

_SAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Update:
    """What one trial told since the last look.

    trial: its key. step, total: 0 before the first step. line: the loop's latest numbers.
    messages: log lines for people, in order. restarts: times its workers were started again.
    sample: what a sweep drew for it, empty in a plain training. ended: it makes no more steps.
    folder: where the run or sweep lies, said once when nothing more stands in its way.
    """

    trial: str
    step: int = 0
    total: int = 0
    line: dict[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    restarts: int = 0
    sample: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    folder: str = ""


OnProgress = Callable[[Update], None]


def rows_progress(on_progress: OnProgress, name: str) -> Callable[[int, int], None]:
    """What counts rows, shown through `on_progress` under `name`."""
    return lambda done, total: on_progress(Update(trial=name, step=done, total=total))


def teller(on_progress: OnProgress, trial: str) -> Callable[[str], None]:
    """What says one line, through `on_progress` under the key `trial`."""
    return lambda line: on_progress(Update(trial=trial, messages=(line,)))


def ignore(update: Update) -> None:
    """An `OnProgress` that shows nothing."""


class PlainProgress:
    """An `OnProgress` for logs: every message, and one line with ETA every `every_s` seconds.

    clock: seconds, rising.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        every_s: float = _SAY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._every_s = every_s
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, update: Update) -> None:
        prefix = "" if update.trial == MAIN_TRIAL else f"{update.trial}  "
        for message in update.messages:
            self._write(prefix + message)
        if update.step and self._is_due(update):
            eta = self._eta_s(update)
            line = logs.progress_line(update.step, update.total, update.line, eta)
            self._write(prefix + line)

    def _is_due(self, update: Update) -> bool:
        """Every few seconds while steps are made, and at the last step."""
        now = self._clock()
        at, step = self._said.get(update.trial, (float("-inf"), 0))
        if update.step == step or (now - at < self._every_s and update.step < update.total):
            return False
        self._said[update.trial] = (now, update.step)
        return True

    def _eta_s(self, update: Update) -> float | None:
        """From the pace since the first step seen; None until there is one."""
        now = self._clock()
        began, first = self._first.setdefault(update.trial, (now, update.step))
        if update.step <= first or now <= began:
            self._first[update.trial] = (now, update.step)
            return None
        return (update.total - update.step) * (now - began) / (update.step - first)
