"""Which runs Prometheus sees running, and what changed since the last look."""

import contextlib
import time

from service.errors import WatchError
from service.watching.prometheus import Prometheus

_RUNNING = "count by (run) (reid_train_running == 1)"
_ENDED = "max by (run) (last_over_time(reid_train_running[2m])) == 0"
"""Runs whose trials have all said that they ended."""


class Runs:
    """A look every so often at the Prometheus at `url`; every_s: seconds between two looks."""

    def __init__(self, url: str, every_s: float) -> None:
        self._prometheus = Prometheus(url, timeout_s=5.0)
        self._every_s = every_s
        self._next = time.monotonic()
        self._seen: set[str] = set()

    def changes(self) -> list[str]:
        """A line for each run that came or went, when it is time for a look."""
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + self._every_s
        # A Prometheus that does not answer is busy, or has ended, which others tell.
        with contextlib.suppress(WatchError):
            return self._compare(self._runs(_RUNNING), self._runs(_ENDED))
        return []

    def _runs(self, expr: str) -> set[str]:
        return {one.labels["run"] for one in self._prometheus.at(expr, time.time())}

    def _compare(self, running: set[str], ended: set[str]) -> list[str]:
        before, self._seen = self._seen, running
        came, went = sorted(running - before), sorted(before - running)
        lines = [f"{'running':<8}  {run}" for run in came]
        lines += [f"{'over':<8}  {run} has ended" for run in went if run in ended]
        return lines + [f"{'gone':<8}  {run}, without a word" for run in went if run not in ended]
