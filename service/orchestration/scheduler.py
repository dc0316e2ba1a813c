"""The Tune scheduler that stops a trial when its health says NO_GO, and steers it until then.

It decides with the same pure function as the loop and acts through directives, because killing a
trial is slow and can leave its workers' resources behind. A trial is asked to stop; only one that
does not within `grace_s` is killed.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from service.config import Config
from service.decisions import Decision, Directive, PolicyState, Verdict
from service.errors import RunError
from service.gonogo import Rules, decide
from service.health import HealthReport
from service.orchestration.space import with_sample

Send = Callable[[str, Directive], None]
Listen = Callable[[str, HealthReport, Decision], None]


@dataclass(slots=True)
class TrialRecord:
    """What the scheduler knows of one trial.

    stop_at: clock time of the first request to stop. killed: the grace period ran out.
    """

    rules: Rules
    sample: dict[str, Any] = field(default_factory=dict)
    state: PolicyState = field(default_factory=PolicyState)
    step: int = -1
    decisions: list[Decision] = field(default_factory=list)
    directive: Directive | None = None
    stop_at: float | None = None
    killed: bool = False

    @property
    def verdict(self) -> Decision | None:
        """The decision that counts: the last that is more than WAIT, else the last."""
        told = [d for d in self.decisions if d.verdict is not Verdict.WAIT]
        return (told or self.decisions or [None])[-1]


class GoNoGoScheduler(FIFOScheduler):
    """Decides on every report of every trial; starts trials in their order.

    config: what the trials' samples are laid over. journal: JSON lines, appended. clock: seconds,
    rising. now: Unix seconds, for the journal. Send and listen are given by `attach`, since Tune
    pickles its scheduler, which must hold no actor handle then.
    trials: by trial id, from a trial's first report. ended: ids of trials that will not go on.
    is_closed: set to start no more trials and to drop those that wait.
    """

    def __init__(
        self,
        config: Config,
        journal: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._config = config
        self._journal = journal
        self._grace_s = config.tune.grace_s
        self._clock = clock
        self._now = now
        self._send: Send | None = None
        self._listen: Listen | None = None
        self.trials: dict[str, TrialRecord] = {}
        self.ended: set[str] = set()
        self.is_closed = False

    def attach(self, send: Send, listen: Listen | None = None) -> None:
        """send: carries a directive to a trial and returns at once. listen: hears decisions."""
        self._send = send
        self._listen = listen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_send": None, "_listen": None}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, unless the trial was asked to stop and the grace period is over.

        Raises:
            RunError: the report carries no health lines.
        """
        if "outcome" in result:
            return TrialScheduler.CONTINUE
        report = _health(result, trial.trial_id)
        record = self._record(trial)
        applied = int(result.get("directive", 0))
        self._repeat(trial.trial_id, record, applied)
        if report.step > record.step:
            self._decide(trial.trial_id, record, report, applied)
        if self._overdue(record):
            record.killed = True
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called several times a second: also ends trials that no longer report in time."""
        for trial in tune_controller.get_trials():
            if self.is_closed and trial.status == "PENDING":
                tune_controller.stop_trial(trial)
            record = self.trials.get(trial.trial_id)
            if record and trial.status == "RUNNING" and self._overdue(record):
                record.killed = True
                tune_controller.stop_trial(trial)
        return None if self.is_closed else super().choose_trial_to_run(tune_controller)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune also adds a trial again that it retries after an error."""
        self.ended.discard(trial.trial_id)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.ended.add(trial.trial_id)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.ended.add(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.ended.add(trial.trial_id)

    def debug_string(self) -> str:
        stopping = sum(record.stop_at is not None for record in self.trials.values())
        return f"GoNoGoScheduler: {len(self.trials)} trials, {stopping} asked to stop"

    def _record(self, trial: Any) -> TrialRecord:
        found = self.trials.get(trial.trial_id)
        if found is None:
            rules = Rules.of(with_sample(self._config, trial.config))
            found = self.trials[trial.trial_id] = TrialRecord(rules, dict(trial.config))
        return found

    def _decide(self, key: str, record: TrialRecord, report: HealthReport, applied: int) -> None:
        record.step = report.step
        record.state, decision = decide(record.state, report, record.rules)
        record.decisions.append(decision)
        directive = _directive(decision, record, applied)
        if directive is not None:
            record.directive = directive
            if directive.stop and record.stop_at is None:
                record.stop_at = self._clock()
            self._carry(key, directive)
        self._append(key, record, decision, directive)
        if self._listen is not None:
            self._listen(key, report, decision)

    def _repeat(self, key: str, record: TrialRecord, applied: int) -> None:
        """Sends the last directive again until its echo comes: the actor may have restarted."""
        if record.directive is not None and record.directive.number > applied:
            self._carry(key, record.directive)

    def _carry(self, key: str, directive: Directive) -> None:
        if self._send is None:
            raise RunError("the scheduler has no way to its trials; call attach before fit")
        self._send(key, directive)

    def _overdue(self, record: TrialRecord) -> bool:
        return record.stop_at is not None and self._clock() - record.stop_at > self._grace_s

    def _append(
        self, key: str, record: TrialRecord, decision: Decision, directive: Directive | None
    ) -> None:
        line = {
            "time": self._now(),
            "trial": key,
            "step": decision.step,
            "decision": decision.to_dict(),
            "state": record.state.to_dict(),
            "directive": directive.to_dict() if directive else None,
        }
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _health(result: Mapping[str, Any], key: str) -> HealthReport:
    values = result.get("health")
    if isinstance(values, str):
        values = json.loads(values)
    if not isinstance(values, Mapping):
        raise RunError(
            f"trial {key} reported without `health`; found {sorted(result)[:12]}: the scheduler "
            "cannot judge it. Every report must carry HealthReport.to_dict(), as JSON text, since "
            "Tune takes mappings apart"
        )
    try:
        return HealthReport.from_dict(values)
    except KeyError as error:
        raise RunError(
            f"trial {key} reported health without the line {error}; are all nodes on the same "
            "version?"
        ) from error


def _directive(decision: Decision, record: TrialRecord, applied: int) -> Directive | None:
    """What the decision's actions ask of the trial; None when they ask for nothing."""
    if not decision.actions:
        return None
    last = max(applied, record.directive.number if record.directive else 0)
    return Directive(
        number=last + 1,
        actions=decision.actions,
        reason=decision.words or str(decision.verdict),
        verdict=str(decision.verdict),
    )
