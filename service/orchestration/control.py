"""The control plane: directives go down to running trials, progress comes up, nobody waits.

One actor, made by the driver outside any placement group. A trial's directives carry rising
numbers, so repeating one changes nothing; rank 0 asks with the number that it applied last, which
is the echo. The actor keeps nothing that its callers cannot send again: after a restart the
scheduler repeats its directive until the echo comes, and the trial tells its next progress.
"""

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from service.gonogo import Directive
from service.orchestration.cluster import NAMESPACE

_KEPT_EVENTS = 256
"""Reports of one trial that wait for the driver; a driver reads every half second."""


@dataclass(slots=True)
class _Trial:
    directive: dict[str, Any] | None = None
    applied: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    events: deque[tuple[int, dict[str, Any]]] = field(
        default_factory=lambda: deque(maxlen=_KEPT_EVENTS)
    )
    told: int = 0


class ControlState:
    """What the actor holds; keys name trials, or the one run of a plain training."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        self._life = uuid.uuid4().hex

    def put(self, key: str, directive: dict[str, Any]) -> None:
        """Sets the trial's directive, unless it has one of the same or a higher number."""
        trial = self._trial(key)
        if trial.directive is None or directive["number"] > trial.directive["number"]:
            trial.directive = directive

    def get(self, key: str, applied: int) -> dict[str, Any] | None:
        """Notes the echo, and gives the trial's directive when it is newer."""
        trial = self._trial(key)
        trial.applied = max(trial.applied, applied)
        newer = trial.directive is not None and trial.directive["number"] > applied
        return trial.directive if newer else None

    def tell(self, key: str, progress: dict[str, Any]) -> None:
        """Replaces the trial's progress."""
        self._trial(key).progress = progress

    def report(self, key: str, event: dict[str, Any]) -> None:
        """Queues an event for the driver; the oldest are dropped when nobody reads."""
        trial = self._trial(key)
        trial.told += 1
        trial.events.append((trial.told, event))

    def read(
        self, life: str, seen: Mapping[str, int]
    ) -> tuple[str, dict[str, tuple[int, dict[str, Any], list[tuple[int, dict[str, Any]]]]]]:
        """This actor's life, and by trial its echo, progress and events after number `seen[key]`.

        A restarted actor numbers events anew: what was seen in another `life` says nothing.
        """
        after = seen if life == self._life else {}
        return self._life, {
            key: (
                trial.applied,
                trial.progress,
                [item for item in trial.events if item[0] > after.get(key, 0)],
            )
            for key, trial in self._trials.items()
        }

    def _trial(self, key: str) -> _Trial:
        return self._trials.setdefault(key, _Trial())


def start_control(name: str) -> Any:
    """The control plane's actor; the caller must keep the handle, or the actor ends."""
    return (
        ray.remote(ControlState)
        .options(
            name=name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy="DEFAULT",
        )
        .remote()
    )


def find_control(name: str) -> Any:
    """The actor that the driver started under `name`."""
    return ray.get_actor(name, namespace=NAMESPACE)


class ControlClient:
    """Rank 0's end: no call ever waits.

    progress_s: least seconds between two progress messages. clock: seconds, rising.
    """

    def __init__(
        self,
        control: Any,
        key: str,
        *,
        progress_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._key = key
        self._progress_s = progress_s
        self._clock = clock
        self._told_at = float("-inf")
        self._pending: ray.ObjectRef | None = None

    def poll(self, applied: int) -> Directive | None:
        """The newest directive above `applied` that has arrived; asks for the next one."""
        if self._pending is None:
            self._pending = self._control.get.remote(self._key, applied)
            return None
        if not ray.wait([self._pending], timeout=0)[0]:
            return None
        values = None
        with contextlib.suppress(RayError):
            values = ray.get(self._pending)
        self._pending = self._control.get.remote(self._key, applied)
        directive = None if values is None else Directive.from_dict(values)
        return directive if directive and directive.number > applied else None

    def tell(self, progress: dict[str, Any], *, at_once: bool = False) -> None:
        """Sends progress, at most every `progress_s` seconds unless `at_once`."""
        now = self._clock()
        if at_once or now - self._told_at >= self._progress_s:
            self._told_at = now
            self._control.tell.remote(self._key, progress)

    def report(self, event: dict[str, Any]) -> None:
        """Queues an event for the driver."""
        self._control.report.remote(self._key, event)


@dataclass(frozen=True, slots=True)
class News:
    """What one trial told since the last look: progress now, and events in order."""

    key: str
    applied: int
    progress: dict[str, Any]
    events: tuple[dict[str, Any], ...]


class ControlReader:
    """The driver's end: what happened since it looked last."""

    def __init__(self, control: Any, *, timeout_s: float = 10.0) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._life = ""
        self._seen: dict[str, int] = {}

    def put(self, key: str, directive: Directive) -> None:
        """Sends a directive; returns before it arrives."""
        self._control.put.remote(key, directive.to_dict())

    def read(self) -> list[News]:
        """News of every trial; none when the actor does not answer in time."""
        try:
            call = self._control.read.remote(self._life, self._seen)
            life, trials = ray.get(call, timeout=self._timeout_s)
        except RayError:
            return []
        if life != self._life:
            self._life, self._seen = life, {}
        for key, (_, _, events) in trials.items():
            self._seen[key] = events[-1][0] if events else self._seen.get(key, 0)
        return [
            News(key, applied, progress, tuple(event for _, event in events))
            for key, (applied, progress, events) in trials.items()
        ]
