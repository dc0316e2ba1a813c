"""Where each trial stands, for the head of a page: verdict, cause, progress, and when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from service.causes import WORDS, Cause
from service.decisions import Verdict
from service.telemetry.panels.panel import RUN, latest, series, verdict_last_seen
from service.watching.asking import Answers, Question
from service.watching.prometheus import Series

SILENT_S = 120.0
"""Seconds without a step after which a trial that should train counts as silent."""
GONE_S = 90.0
"""Seconds without a sample after which a trial has gone, even if scraped once a minute."""
_PACE_S = 600.0
"""Over the last so many seconds the pace is taken."""

_ENDS = {Verdict.NO_GO: "stopped", Verdict.PAUSE: "paused"}

_VERDICT = Question(verdict_last_seen(RUN), True)
_VERDICT_NOW = Question(f"timestamp({series('verdict_info', RUN)}) * 1000", True)
"""The same at the very end, where the other one may be seconds behind."""
_RUNNING = Question(latest("running", RUN), True)
_TOTAL = Question(latest("total_steps", RUN), True)
_STEP = Question(latest("global_step", RUN), True)
_HEARTBEAT = Question(latest("heartbeat_timestamp_seconds", RUN), True)
_ERROR = Question(latest("error_timestamp_seconds", RUN, over="trial, cause"), True)
_STEPS = Question(series("global_step", RUN), False)
QUESTIONS = (_VERDICT, _VERDICT_NOW, _RUNNING, _TOTAL, _STEP, _HEARTBEAT, _ERROR, _STEPS)
"""What must be asked for `standings`."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One trial.

    verdict: empty when none is known. cause: its value, or that of the error that ended the trial.
    is_error: an error ended it. is_running: it says that it trains. silent_s: seconds since its
    last step, None before the first. unseen_s: seconds since its last sample. eta: Unix time of
    its last step at the present pace, None where that cannot be told.
    """

    trial: str
    verdict: str
    cause: str
    is_error: bool
    is_running: bool
    step: int
    total: int
    silent_s: float | None
    unseen_s: float
    eta: float | None

    @property
    def word(self) -> str:
        """How it stands, in one word."""
        return "ERROR" if self.is_error else self.verdict or "no verdict"

    @property
    def state(self) -> str:
        """What it is doing, in a word."""
        if self.is_error:
            return "ended by an error"
        if self.verdict in _ENDS:
            return _ENDS[Verdict(self.verdict)]
        if self.total and self.step >= self.total:
            return "all steps done"
        if not self.is_running:
            return "ended"
        if self.unseen_s > GONE_S:
            return "gone"
        if self.silent_s is None:
            return "no step yet"
        return "silent" if self.silent_s > SILENT_S else "training"

    @property
    def words(self) -> tuple[str, str]:
        """The cause in words and what to do; both empty without a cause."""
        known = {cause.value: WORDS[cause] for cause in Cause}
        return known.get(self.cause, (self.cause, ""))


def standings(answers: Answers, trials: tuple[str, ...], now: float) -> tuple[Standing, ...]:
    """Those of all trials, in order. now: when the page is drawn, in Unix seconds."""
    by_trial = {one: _by_trial(answers[one]) for one in QUESTIONS}
    return tuple(
        _standing(trial, {one: found.get(trial) for one, found in by_trial.items()}, now)
        for trial in trials
    )


def pace(points: tuple[tuple[float, float], ...]) -> float | None:
    """Steps a second over the last minutes, since the last restart; None if that says nothing."""
    recent = [point for point in points if point[0] >= points[-1][0] - _PACE_S]
    for place in range(len(recent) - 1, 0, -1):
        if recent[place][1] < recent[place - 1][1]:
            recent = recent[place:]
            break
    if len(recent) < 2 or recent[-1][1] <= recent[0][1]:
        return None
    return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])


def _standing(trial: str, told: Mapping[Question, Series | None], now: float) -> Standing:
    seen = [found for one in (_VERDICT, _VERDICT_NOW) if (found := told[one]) is not None]
    verdict = max(seen, key=lambda found: found.points[-1][1], default=None)
    error, steps = told[_ERROR], told[_STEPS]
    heartbeat, failed_at = _newest(told[_HEARTBEAT]), _newest(error)
    # A run that was resumed has made steps since.
    is_error = failed_at is not None and (heartbeat is None or failed_at >= heartbeat)
    labels = error.labels if error and is_error else verdict.labels if verdict else {}
    standing = Standing(
        trial=trial,
        verdict=verdict.labels.get("verdict", "") if verdict else "",
        cause=labels.get("cause", "").replace(Cause.NONE, ""),
        is_error=is_error,
        is_running=bool(_newest(told[_RUNNING])) and not is_error,
        step=int(_newest(told[_STEP]) or 0),
        total=int(_newest(told[_TOTAL]) or 0),
        silent_s=None if heartbeat is None else max(now - heartbeat, 0.0),
        unseen_s=now - (_newest(told[_VERDICT_NOW]) or 0.0) / 1000,
        eta=None,
    )
    speed = pace(steps.points) if steps and steps.points else None
    if standing.state != "training" or not speed or heartbeat is None or not standing.total:
        return standing
    return replace(standing, eta=heartbeat + (standing.total - standing.step) / speed)


def _newest(found: Series | None) -> float | None:
    return found.points[-1][1] if found and found.points else None


def _by_trial(found: tuple[Series, ...]) -> dict[str, Series]:
    """The newest series of each trial."""
    newest = sorted(found, key=lambda one: one.points[-1][1] if one.points else 0.0)
    return {one.labels.get("trial", ""): one for one in newest}
