"""Which runs Prometheus sees running, and what changed since the last look."""

import contextlib
import time
from collections.abc import Iterable

from service.errors import WatchError
from service.watching.prometheus import Prometheus

_RUNNING = "count by (run) (reid_train_running == 1)"


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
            series = self._prometheus.at(_RUNNING, time.time())
            return self._compare(one.labels["run"] for one in series)
        return []

    def _compare(self, running: Iterable[str]) -> list[str]:
        before, self._seen = self._seen, set(running)
        came, went = sorted(self._seen - before), sorted(before - self._seen)
        lines = [f"{'running':<8}  {run}" for run in came]
        return lines + [f"{'over':<8}  {run} is no longer seen running" for run in went]
