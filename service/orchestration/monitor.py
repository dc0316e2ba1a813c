"""The driver's view of its trials: progress for the screen, snapshots for the exporter."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from service.config import Config
from service.decisions import Decision, PolicyState, Verdict
from service.errors import ConfigError
from service.health import HealthReport
from service.orchestration.control import ControlReader, News
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore
from service.orchestration.space import with_sample
from service.telemetry import logs
from service.telemetry.exporter import ExporterLease
from service.telemetry.sinks.feed import Sinks
from service.telemetry.trial import TrialSeries
from service.training.journal import Event

_MANY_FAILURES = 5
_RENEW_S = 5.0
_NO_ANSWER = (
    "the control plane does not answer: progress and directives wait, training itself goes on; is "
    "the head node well?"
)


@dataclass(slots=True)
class _Trial:
    series: TrialSeries
    starts: int = 0
    stood: tuple[int, int] = (0, 0)
    ended_at: float | None = None
    said: tuple[Any, ...] = ()
    verdict: str = ""
    cause: str = ""
    coverage: float | None = None
    sample: dict[str, Any] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)
    total: int = 0
    workers: int = 0
    loss_told: bool = False
    came_at: tuple[int, float] | None = None
    step_s: float = 0.0
    saved: int = -1
    is_over: bool = False

    @property
    def is_saving(self) -> bool:
        """Whether it has made its last step, and its last checkpoint may not be written yet."""
        is_at_end = 0 < self.total <= self.stood[0] and self.saved < self.total
        return self.ended_at is None and (self.is_over or is_at_end)

    def came_to(self, step: int, now: float) -> None:
        """Notes when it came to a step, and what those since the last one took each."""
        before, since = self.came_at or (step, now)
        if step > before:
            self.step_s = (now - since) / (step - before)
        self.came_at = (step, now)


class Monitor:
    """Takes in what trials tell, says it to `on_progress`, and keeps the exporter up to date.

    config: the run's, or the sweep's, whose samples make the trials' own. sinks: hear what the
    trials tell too. speaker: who says what concerns all trials. now: Unix seconds. clock: seconds,
    rising, whatever the machine's time of day does.
    """

    def __init__(
        self,
        config: Config,
        exporter: ExporterLease | None = None,
        on_progress: OnProgress = ignore,
        sinks: Sinks | None = None,
        *,
        speaker: str = MAIN_TRIAL,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._exporter = exporter
        self._on_progress = on_progress
        self._sinks = sinks
        self._speaker = speaker
        self._now = now
        self._clock = clock
        self._trials: dict[str, _Trial] = {}
        self._decisions: SimpleQueue[tuple[str, Event]] = SimpleQueue()
        self._renewed_at = float("-inf")
        self._trouble = ""

    def look(self, reader: ControlReader) -> None:
        """One look at the control plane; to be called about twice a second from one thread."""
        found = reader.read()
        if reader.failures == _MANY_FAILURES:
            self.say(_NO_ANSWER)
        self._hear_decisions()
        for news in found:
            self.hear(news)
        if self._exporter is not None and self._clock() - self._renewed_at >= _RENEW_S:
            self._renewed_at = self._clock()
            self._renew(self._exporter)

    def hear(self, news: News) -> None:
        """Takes one trial's news in and passes them on."""
        trial = self._trial(news.key)
        self._look_at_sinks(trial)
        messages = [line for event in news.events for line in self._heard(news.key, event)]
        if news.missed:
            messages.insert(0, f"{news.missed} log lines were lost: they were not read in time")
        step, total = news.progress.get("step", 0), news.progress.get("total", 0)
        if step and (step, trial.starts) != trial.stood:
            if step != trial.stood[0]:
                trial.came_to(step, self._clock())
            trial.stood = (step, trial.starts)
            trial.series.step(step, total, self._now())
            self._push(news.key)
        elif news.events:
            self._push(news.key)
        trial.line, trial.total = news.progress.get("line", {}), total
        self._tell(news.key, messages, step)

    def sampled(self, key: str, sample: dict[str, Any]) -> None:
        """A sweep has made the trial with this sample; said once."""
        trial = self._trial(key, sample)
        if trial.sample != sample:
            trial.sample = sample
            self._tell(key, [])

    def decided(self, key: str, decision: Decision, state: PolicyState) -> None:
        """Notes a decision that was taken outside the trial; said at the next look if it is new.

        state: the policy's after it. May be called in any thread.
        """
        self._decisions.put((key, {**decision.to_dict(), **state.since_go}))

    def failed(self, key: str, cause: str) -> None:
        """An error ends the trial, which it may not have been able to tell itself."""
        self._trial(key).series.error(cause, self._now())
        self._push(key)

    def ended(self, key: str) -> None:
        """The trial has ended: its series are not pushed any more, and its sinks are ended.

        In a sweep the scheduler's file says so only after the trial's own last line was heard.
        """
        trial = self._trial(key)
        if trial.ended_at is not None:
            return
        if self._exporter is not None:
            self._exporter.end(key)
        if self._sinks is not None and trial.starts:
            self._sinks.hear(key, {"event": "end"})
        trial.ended_at = self._now()
        self._tell(key, [], trial.stood[0])

    def all_ended(self) -> None:
        """Whatever still went on was stopped with its sweep."""
        for key in list(self._trials):
            self.ended(key)

    @property
    def started(self) -> list[str]:
        """The trials whose workers have come up at least once."""
        return [key for key, trial in self._trials.items() if trial.starts]

    @property
    def is_saving(self) -> bool:
        """Whether a trial has made its last step, and still writes its checkpoint."""
        return any(trial.is_saving for trial in self._trials.values())

    @property
    def step_s(self) -> float:
        """Seconds that the newest step took, of the slowest trial; 0 before there is one."""
        return max((trial.step_s for trial in self._trials.values()), default=0.0)

    def _hear_decisions(self) -> None:
        while not self._decisions.empty():
            key, decision = self._decisions.get()
            trial = self._trial(key)
            trial.verdict = str(decision["verdict"])
            trial.cause = decision["words"] or decision["reason"]
            lines = self._heard(key, {"event": "decision", **decision})
            self._push(key)
            if lines:
                self._tell(key, lines)

    def _tell(self, key: str, messages: list[str], step: int = 0) -> None:
        """Passes on how the trial stands; a decision from outside counts over its own."""
        trial = self._trial(key)
        judged = {"verdict": trial.verdict, "cause": trial.cause} if trial.verdict else {}
        seen = {} if trial.coverage is None else {"pair_coverage": trial.coverage}
        line = {"verdict": str(Verdict.WAIT), **trial.line, **seen, **judged} if trial.line else {}
        self._on_progress(
            Update(
                trial=key,
                step=step,
                total=trial.total,
                line=line,
                messages=tuple(messages),
                restarts=max(trial.starts - 1, 0),
                sample=trial.sample,
                ended=trial.ended_at is not None,
            )
        )

    def _heard(self, key: str, event: Event) -> list[str]:
        """Takes an event in and passes it on; gives what to say about it."""
        if self._sinks is not None:
            self._sinks.hear(key, event)
        return self._event(self._trial(key), event)

    def _event(self, trial: _Trial, event: Event) -> list[str]:
        match event["event"]:
            case "workers":
                return self._workers(trial, event)
            case "lost":
                trial.loss_told = True
                return [logs.trouble_line(event)]
            case "start":
                trial.series.start(event)
                trial.came_at, trial.saved = (event["step"], self._clock()), event["step"]
                return logs.start_lines(event)
            case "steps":
                trial.series.steps(event)
                return []
            case "checkpoint":
                trial.series.checkpoint(event["step"], self._now())
                trial.saved = event["step"]
                return []
            case "error":
                trial.series.error(event["name"], self._now())
                return []
            case "epoch":
                return [logs.sdm_line(event["epoch"], event["sdm_weight"], event["sdm_reason"])]
            case "health":
                report = HealthReport.from_dict(event["health"])
                trial.series.health(report)
                trial.coverage = report.pair_coverage
                return logs.health_lines(report)
            case "decision":
                return self._decision(trial, event)
            case "directive":
                trial.is_over |= event["directive"]["stop"]
                return [logs.directive_line(event["step"], event["directive"])]
            case "plan":
                return [f"[sampler] {event['plan']}"]
            case "audit":
                return [logs.audit_line(event)]
            case "unpaired":
                return [logs.unpaired_line(event["step"], event["rows"], event["of"])]
            case "checkpoint_failed" | "checkpoint_skipped" | "checkpoint_damaged" as name:
                trial.series.checkpoint_fault(name.removeprefix("checkpoint_"))
                return [logs.trouble_line(event)]
            case name if name in logs.TROUBLES:
                return [logs.trouble_line(event)]
            case _:
                return []

    def _workers(self, trial: _Trial, event: Event) -> list[str]:
        """A trial that had ended is going again: Tune tries it once more."""
        trial.starts += 1
        trial.ended_at, trial.is_over = None, False
        before, trial.workers = trial.workers, event["world_size"]
        was_told, trial.loss_told = trial.loss_told, False
        if trial.starts == 1:
            return _few_words(trial.workers, self._config.cluster.num_workers)
        trial.series.restart()
        if trial.workers != before:
            return [f"[workers] {trial.workers} now, {before} before, from the last checkpoint"]
        if was_told:
            return [f"[workers] all {trial.workers} are back"]
        return ["[workers] one was lost; all started again from the last checkpoint"]

    def _decision(self, trial: _Trial, decision: Event) -> list[str]:
        """Counts a decision; says it only when it is another than the last."""
        trial.series.decision(decision, self._now())
        if Verdict(decision["verdict"]).ends:
            trial.series.stopped(decision["step"])
            trial.is_over = True
        saying = (decision["verdict"], decision["cause"], decision["reason"])
        if saying == trial.said:
            return []
        trial.said = saying
        return [logs.decision_line(decision)]

    def say(self, *lines: str) -> None:
        """Says what concerns all trials."""
        if lines:
            self._on_progress(Update(trial=self._speaker, messages=lines))

    def _look_at_sinks(self, trial: _Trial) -> None:
        if self._sinks is not None:
            trial.series.sink_failures(self._sinks.failures)
            self.say(*self._sinks.messages())

    def _push(self, key: str) -> None:
        trial = self._trial(key)
        if self._exporter is not None and trial.ended_at is None:
            self._exporter.push(key, trial.series.values)

    def _renew(self, exporter: ExporterLease) -> None:
        """Keeps the lease; says once when the exporter does not serve."""
        exporter.renew()
        if exporter.trouble not in ("", self._trouble):
            told = f"{exporter.trouble}; metrics wait, training itself goes on"
            self.say(told)
        self._trouble = exporter.trouble

    def _trial(self, key: str, sample: dict[str, Any] | None = None) -> _Trial:
        if key not in self._trials:
            self._trials[key] = _Trial(TrialSeries(self._config_of(sample or {})))
        return self._trials[key]

    def _config_of(self, sample: dict[str, Any]) -> Config:
        """A sample that contradicts itself never runs, so what it says does not matter."""
        with contextlib.suppress(ConfigError):
            return with_sample(self._config, sample)
        return self._config


def _few_words(workers: int, wanted: int) -> list[str]:
    """What to say at the start on fewer workers than the run may have."""
    if workers >= wanted:
        return []
    return [f"[workers] {workers} of {wanted}: the cluster has no room for more now"]
