"""The control plane: directives go down to running trials, progress comes up, nobody waits.

One actor, made by the driver outside any placement group. A trial's directives carry rising
numbers, so repeating one changes nothing; rank 0 asks with the number that it applied last, which
is the echo. A request to stop may come from the scheduler or from the user: it stands whatever its
number, and nothing replaces it. The actor keeps nothing that its callers cannot send again: after a
restart the scheduler repeats its directive until the echo comes, and the trial tells its next
progress.
"""

import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.decisions import Directive
from service.errors import RunError
from service.orchestration.cluster import NAMESPACE
from service.telemetry.logs import LOGGER

_MANY_FAILURES = 5
_NAME = "control-{run}"
_GONE_S = 10.0
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
    announced: str = ""


class ControlState:
    """What the actor holds; keys name trials, or the one run of a plain training."""

    def __init__(self) -> None:
        self._trials: dict[str, _Trial] = {}
        self._life = uuid.uuid4().hex

    def put(self, key: str, directive: dict[str, Any]) -> None:
        """Sets the trial's directive, unless it has one of the same or a higher number.

        A stop needs no number, and stays.
        """
        trial = self._trial(key)
        last = trial.directive
        is_newer = last is None or directive["number"] > last["number"]
        if (is_newer or directive["stop"]) and not (last and last["stop"]):
            trial.directive = directive

    def get(self, key: str, applied: int) -> dict[str, Any] | None:
        """Notes the echo, and gives the trial's directive when it is newer.

        A trial that asks has not stopped: a stop gets a number that it will obey.
        """
        trial = self._trial(key)
        trial.applied = max(trial.applied, applied)
        found = trial.directive
        if found is not None and found["stop"]:
            return {**found, "number": max(found["number"], applied + 1)}
        return found if found is not None and found["number"] > applied else None

    def tell(self, key: str, progress: dict[str, Any]) -> None:
        """Replaces the trial's progress."""
        self._trial(key).progress = progress

    def report(self, key: str, event: dict[str, Any]) -> None:
        """Queues an event for the driver; the oldest are dropped when nobody reads."""
        trial = self._trial(key)
        if event.get("event") == "workers":
            trial.announced = ""
        trial.told += 1
        trial.events.append((trial.told, event))

    def announce(self, key: str, words: str) -> None:
        """Notes what will be taken from the trial's workers; it is past when others come up."""
        self._trial(key).announced = words

    def announced(self, key: str) -> str:
        return self._trial(key).announced

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


def start_control(run: str, *, patience_s: float = _GONE_S) -> Any:
    """The run's control plane; the caller must keep the handle, or the actor ends.

    patience_s: seconds in which the one of a driver that was lost is gone.

    Raises:
        RunError: a run of this name is going on on this cluster.
    """
    options = {
        "name": _NAME.format(run=run),
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        # On the driver's machine: with it the run ends anyway, and a worker's machine that is to be
        # taken away does not end by itself while an actor lives there. Ray keeps no soft wish of an
        # actor that asks for no resources.
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    }
    until = time.monotonic() + patience_s
    while True:
        try:
            return ray.remote(ControlState).options(**options).remote()
        except ValueError as error:
            if time.monotonic() > until:
                raise RunError(
                    f"a run named {run} is going on on this cluster, from another storage; its "
                    "numbers and directives could not be told apart. Take another --run-id, or "
                    "wait for its end. If its driver's machine was lost, try again in a minute"
                ) from error
            time.sleep(0.5)


def find_control(run: str) -> Any:
    """The control plane that the run's driver started."""
    return ray.get_actor(_NAME.format(run=run), namespace=NAMESPACE)


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
        self._asked: ray.ObjectRef | None = None
        self._announced = ""
        self._failures = 0

    def poll(self, applied: int) -> Directive | None:
        """The newest directive above `applied` that has arrived; asks for the next one."""
        if self._pending is None:
            self._pending = self._control.get.remote(self._key, applied)
            return None
        if not ray.wait([self._pending], timeout=0)[0]:
            return None
        values = self._answer(self._pending)
        self._pending = self._control.get.remote(self._key, applied)
        directive = None if values is None else Directive.from_dict(values)
        return directive if directive and directive.number > applied else None

    def _answer(self, call: ray.ObjectRef) -> Any:
        """What the actor said; nothing when it is gone, which a worker's log says once."""
        try:
            values = ray.get(call)
        except RayError as error:
            self._failures += 1
            if self._failures == _MANY_FAILURES:
                logging.getLogger(LOGGER).warning("no directives come any more: %s", error)
            return None
        self._failures = 0
        return values

    def tell(self, progress: dict[str, Any], *, at_once: bool = False) -> None:
        """Sends progress, at most every `progress_s` seconds unless `at_once`."""
        now = self._clock()
        if at_once or now - self._told_at >= self._progress_s:
            self._told_at = now
            self._control.tell.remote(self._key, progress)

    def report(self, event: dict[str, Any]) -> None:
        """Queues an event for the driver."""
        self._control.report.remote(self._key, event)

    def announce(self, words: str) -> None:
        """Says to the trial's workers what will be taken from them soon."""
        self._control.announce.remote(self._key, words)

    def announced(self) -> str:
        """What was announced when this was last asked, if the answer has arrived; asks again."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            self._announced, self._asked = self._answer(self._asked) or "", None
        if self._asked is None:
            self._asked = self._control.announced.remote(self._key)
        return self._announced


@dataclass(frozen=True, slots=True)
class News:
    """What one trial told since the last look: progress now, and events in order.

    missed: events before these that the actor dropped, since nobody read them in time.
    """

    key: str
    applied: int
    progress: dict[str, Any]
    events: tuple[dict[str, Any], ...]
    missed: int = 0


class ControlReader:
    """The driver's end: what happened since it looked last.

    failures: looks without an answer since the last one that had one.
    """

    def __init__(self, control: Any, *, timeout_s: float = 10.0) -> None:
        self._control = control
        self._timeout_s = timeout_s
        self._life = ""
        self._seen: dict[str, int] = {}
        self.failures = 0

    def put(self, key: str, directive: Directive) -> None:
        """Sends a directive; returns before it arrives."""
        self._control.put.remote(key, directive.to_dict())

    def read(self) -> list[News]:
        """News of every trial; none when the actor does not answer in time."""
        try:
            call = self._control.read.remote(self._life, self._seen)
            life, trials = ray.get(call, timeout=self._timeout_s)
        except RayError:
            self.failures += 1
            return []
        self.failures = 0
        if life != self._life:
            self._life, self._seen = life, {}
        return [self._news(key, *told) for key, told in trials.items()]

    def _news(
        self,
        key: str,
        applied: int,
        progress: dict[str, Any],
        events: list[tuple[int, dict[str, Any]]],
    ) -> News:
        seen = self._seen.get(key, 0)
        first, last = (events[0][0], events[-1][0]) if events else (seen + 1, seen)
        self._seen[key] = last
        kept = tuple(event for _, event in events)
        return News(key, applied, progress, kept, missed=first - seen - 1)
