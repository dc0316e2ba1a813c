"""Where a run stands, as its journal tells: pure, so that whoever reads the folder can say.

What Ray or the lock know is asked elsewhere and comes in as plain values.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from service.causes import Cause
from service.redaction import redacted
from service.telemetry import logs
from service.training.journal import Event

_RECENT = 5
"""Events `steps` over which the pace is taken."""
_PAUSED = "PAUSE"
STOPPED = "STOPPED"
"""The verdict of a run that was told to stop, as in service/training/ending.py, which loads torch.
"""
_ALIVE = ("PENDING", "RUNNING")


class State(StrEnum):
    """WAITING: for the cluster. STARTING: its workers come up. TRAINING, EVALUATING: what it does.
    ENDED: with a verdict. PAUSED, STOPPED: with a checkpoint, and `--resume` goes on. FAILED: an
    error ended it. LOST: it ended without a word."""

    WAITING = "waiting"
    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    ENDED = "ended"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Life:
    """What others than the journal know of the run.

    held: a driver holds its folder's lock. job, job_id: state and name of its newest job on the
    cluster, as Ray says them, None and empty where nobody knows of one. is_taken: the last driver
    that took the folder is that job's, as far as is known. attempts: how often the workers had been
    started before that driver took it; what those journaled is an earlier driver's.
    """

    held: bool = False
    job: str | None = None
    job_id: str = ""
    is_taken: bool = True
    attempts: int = 0

    @property
    def is_alive(self) -> bool:
        return self.held or self.job in _ALIVE


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one run stands; None where nothing was said yet.

    verdict, cause, words, remedy: as the run ended, or as last decided. step, total: for a sweep,
    trials that ended, of all. eta_s: seconds of training left at the pace of the last steps.
    ce_fraction: cross-entropy over that of chance. attempt: how often its workers were started.
    begun: its newest job or driver has trained; else what is told is an earlier one's, or nothing.
    checkpoint_step, checkpoint_at, checkpoint_age_s: the newest checkpoint, where it lies, and how
    old it is. silent_s: seconds since the journal's last line. newest: the newest error or decision
    in words. summary: the run's `summary.json`. trials: of a sweep.
    """

    run: str
    state: State
    folder: str = ""
    verdict: str = ""
    cause: str = ""
    words: str = ""
    remedy: str = ""
    step: int = 0
    total: int | None = None
    eta_s: float | None = None
    epoch: int | None = None
    ce_fraction: float | None = None
    top1: float | None = None
    sdm_weight: float | None = None
    images_per_second: float | None = None
    world_size: int | None = None
    attempt: int = 0
    begun: bool = True
    checkpoint_step: int | None = None
    checkpoint_at: str = ""
    checkpoint_age_s: float | None = None
    silent_s: float | None = None
    newest: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    trials: tuple["Standing", ...] = ()

    @property
    def restarts(self) -> int:
        return max(self.attempt - 1, 0)

    @property
    def is_going(self) -> bool:
        going = (State.WAITING, State.STARTING, State.TRAINING, State.EVALUATING)
        return self.state in going

    @property
    def can_resume(self) -> bool:
        return self.state in (State.PAUSED, State.STOPPED, State.FAILED, State.LOST)

    def at(self, folder: str) -> "Standing":
        """The same, of a run that lies in `folder`."""
        return replace(self, folder=folder)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"state": str(self.state), "restarts": self.restarts}
        return values | {"trials": [trial.to_dict() for trial in self.trials]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Standing":
        """What `to_dict` gave, also that of a version with other fields."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        trials = tuple(cls.from_dict(trial) for trial in values.get("trials", ()))
        changed: dict[str, Any] = {"state": State(values["state"]), "trials": trials}
        return cls(**(known | changed))


def standing(
    run: str,
    events: Iterable[Event],
    *,
    now: float,
    life: Life,
    summary: Mapping[str, Any] | None = None,
    place: Callable[[int], str] = str,
) -> Standing:
    """Where the run stands whose journal holds `events`, oldest first.

    now: Unix seconds. summary: its `summary.json`, if there is one. place: where the checkpoint of
    a step lies.
    """
    seen = _Seen()
    for event in counting(events):
        seen.take(event)
    state = _state(seen, summary or {}, life)
    saved, pace = seen.checkpoint, _pace(seen.steps)
    total = seen.total
    left = None if total is None or pace is None else max(total - seen.step, 0) * pace
    told = _told(seen, summary or {}, state)
    return Standing(
        run=run,
        state=state,
        verdict=told.verdict,
        cause=told.cause,
        words=told.words,
        remedy=told.remedy,
        step=seen.step,
        total=total,
        eta_s=left if state is State.TRAINING else None,
        epoch=seen.epoch,
        ce_fraction=seen.ce_fraction,
        top1=seen.steps[-1]["top1"] if seen.steps else None,
        sdm_weight=seen.sdm_weight,
        images_per_second=_images_per_second(seen.steps),
        world_size=(seen.start or {}).get("world_size"),
        attempt=seen.attempt,
        begun=(seen.start or {}).get("attempt", 0) > life.attempts,
        checkpoint_step=saved[0] if saved else None,
        checkpoint_at=place(saved[0]) if saved else "",
        # The clocks of two machines may differ.
        checkpoint_age_s=max(now - saved[1], 0.0) if saved and saved[1] is not None else None,
        silent_s=max(now - seen.last["time"], 0.0) if seen.last else None,
        newest=seen.newest,
        summary=dict(summary or {}),
    )


def counting(events: Iterable[Event]) -> list[Event]:
    """The events that count: a resumed attempt supersedes what was written past its start."""
    found: list[Event] = []
    for event in events:
        if event["event"] == "start":
            found = [before for before in found if before.get("step", 0) <= event["step"]]
        found.append(event)
    return found


class _Seen:
    """What the events of a journal that count tell."""

    def __init__(self) -> None:
        self.start: Event | None = None
        self.attempt = 0
        self.step = 0
        self.total: int | None = None
        self.epoch: int | None = None
        self.num_classes = 0
        self.sdm_weight: float | None = None
        self.steps: list[Event] = []
        self.written: dict[int, float | None] = {}
        self.decision: Event = {}
        self.ending: Event | None = None
        self.newest = ""
        self.last: Event | None = None

    @property
    def checkpoint(self) -> tuple[int, float | None] | None:
        """The newest one's step, and when it was written, where that is known."""
        return max(self.written.items(), default=None)

    @property
    def ce_fraction(self) -> float | None:
        if not self.steps or self.num_classes < 2:
            return None
        return self.steps[-1]["ce"] / math.log(self.num_classes)

    def take(self, event: Event) -> None:
        self.last = event
        self.attempt = max(self.attempt, event.get("attempt", 0))
        self.newest = event_words(event) or self.newest
        match event["event"]:
            case "start":
                self._begin(event)
            case "steps":
                self.steps.append(event)
                self.step = event["step"]
            case "epoch":
                self.epoch, self.sdm_weight = event["epoch"], event["sdm_weight"]
            case "health":
                self.step, self.total = event["step"], event["health"]["total_steps"]
                self.sdm_weight = event["health"]["sdm_weight"]
            case "checkpoint":
                self.written[event["step"]] = event["time"]
                self.step = max(self.step, event["step"])
            case "decision":
                self.decision = event
            case "end" | "error":
                self.ending = event
                self.step = event.get("step", self.step)
            case _:
                pass

    def _begin(self, event: Event) -> None:
        self.start, self.ending = event, None
        self.step = step = event["step"]
        # The pace is that of these workers.
        self.steps.clear()
        self.total = event.get("total_steps", self.total)
        self.num_classes = event.get("num_classes", 0)
        at = self.written.get(step)
        self.written = {step: at} if step else {}


def _state(seen: _Seen, summary: Mapping[str, Any], life: Life) -> State:
    if life.job == "PENDING" and not life.held:
        return State.WAITING
    if not life.is_alive:
        return _ended(seen, summary)
    if seen.start is None or not life.is_taken or seen.attempt <= life.attempts:
        return State.STARTING
    if seen.ending is not None:
        # A driver stays a little to show the end.
        return _ended(seen, summary)
    is_done = seen.total is not None and seen.step >= seen.total
    return State.EVALUATING if is_done else State.TRAINING


def _ended(seen: _Seen, summary: Mapping[str, Any]) -> State:
    ending = seen.ending or {}
    if ending.get("event") == "error":
        return State.FAILED
    verdict = ending.get("verdict") or summary.get("verdict")
    if verdict is None or (not ending and seen.start and summary.get("steps") != seen.step):
        return State.LOST
    return {_PAUSED: State.PAUSED, STOPPED: State.STOPPED}.get(verdict, State.ENDED)


class _Told(NamedTuple):
    verdict: str
    cause: str
    words: str
    remedy: str


def _told(seen: _Seen, summary: Mapping[str, Any], state: State) -> _Told:
    """Of the end if it has come, else of the last decision."""
    found: Mapping[str, Any] = seen.decision or seen.start or {}
    if seen.ending is not None and state not in (State.STARTING, State.WAITING):
        found = seen.ending
    elif state is State.ENDED:
        found = summary
    if found.get("event") == "error":
        return _Told("ERROR", found.get("name", ""), redacted(found.get("message", "")), "")
    cause = found.get("cause", "")
    return _Told(
        verdict=found.get("verdict", ""),
        cause="" if cause == Cause.NONE else cause,
        words=found.get("words", ""),
        remedy=found.get("remedy", ""),
    )


def event_words(event: Event) -> str:
    """What is worth telling of an event: an error, a decision, what was asked; else nothing."""
    match event["event"]:
        case "decision":
            has_more = event["verdict"] != "WAIT" or event.get("words")
            return logs.decision_line(event) if has_more else ""
        case "directive":
            return logs.directive_line(event["step"], event["directive"])
        case "error":
            return redacted(f"{event.get('kind', 'error')}: {event.get('message', '')}")
        case name if "message" in event:
            where = f"step={event['step']} " if "step" in event else ""
            return redacted(f"[{name}] {where}{event['message']}")
        case _:
            return ""


def _pace(steps: list[Event]) -> float | None:
    """Mean seconds of one of the last steps."""
    recent = steps[-_RECENT:]
    count = sum(event["count"] for event in recent)
    return sum(event["seconds"] * event["count"] for event in recent) / count if count else None


def _images_per_second(steps: list[Event]) -> float | None:
    recent = steps[-_RECENT:]
    seconds = sum(event["seconds"] * event["count"] for event in recent)
    return sum(event["images"] for event in recent) / seconds if seconds > 0 else None
