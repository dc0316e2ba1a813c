"""The Tune scheduler that stops a trial when its health says NO_GO, and steers it until then.

It decides with the same pure function as the loop and acts through directives, because killing a
trial is slow and can leave its workers' resources behind. A trial is asked to stop; only one that
does not within `grace_s` is killed. A base scheduler below it compares trials with each other: when
it wants one stopped, that trial is asked to stop in the same way.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from service.config import Config
from service.decisions import Action, Decision, Directive, PolicyState, Verdict
from service.errors import RunError
from service.gonogo import decide
from service.health import HealthReport
from service.orchestration.bases import Base
from service.orchestration.scalars import compared
from service.orchestration.sweep_journal import Line, SweepJournal
from service.orchestration.trials import TrialRecord, is_end, new_record, rebuilt_records

Send = Callable[[str, Directive], None]
Listen = Callable[[str, Decision, PolicyState], None]
Kill = Callable[[str], None]


class GoNoGoScheduler(TrialScheduler):
    """Decides on every report of every trial; its base compares them and starts them in order.

    config: what the trials' samples are laid over. journal: JSON lines, appended. base: FIFO when
    None. clock: seconds, rising. now: Unix seconds, for the journal. `attach` gives it send, listen
    and kill, since Tune pickles its scheduler, which must hold no actor handle then.
    trials: by trial id, from the moment Tune has made one. ended: ids of trials that will not go on
    in this driver. is_closed: set to start no more trials and to drop those that wait.

    Raises:
        ConfigError: the base works by pausing trials.
    """

    def __init__(
        self,
        config: Config,
        journal: Path,
        *,
        base: TrialScheduler | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._config = config
        self._journal = SweepJournal(journal)
        self._base = Base(base or FIFOScheduler())
        self._grace_s = config.tune.grace_s
        self._clock = clock
        self._now = now
        self._send: Send | None = None
        self._listen: Listen | None = None
        self._kill: Kill | None = None
        self._restored: set[str] = set()
        self._open: set[str] = set()
        self.trials: dict[str, TrialRecord] = {}
        self.ended: set[str] = set()
        self.is_closed = False

    def attach(self, send: Send, listen: Listen | None = None, kill: Kill | None = None) -> None:
        """send: carries a directive to a trial and returns at once. listen: hears a trial's
        decision and the policy's state after it. kill: ends the actor with this id at once."""
        self._send = send
        self._listen = listen
        self._kill = kill

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_send": None, "_listen": None, "_kill": None}

    def replay(self, lines: list[Line]) -> None:
        """Takes over what an earlier driver decided; lines: its journal's, without the head.

        The base hears the recorded reports again, in their order, and so knows what it knew.
        """
        self.trials = rebuilt_records(self._config, lines)
        self._restored = set(self.trials)
        for line in lines:
            self._base.added(None, line["trial"])
            if line["event"] == "decision":
                self._base.stops(None, line["trial"], line["metrics"])
            if line["event"] == "end":
                self._base.ended(None, line["trial"], self.trials[line["trial"]].metrics)

    def has_room(self) -> bool:
        """Whether one more trial may be made now."""
        return not self.is_closed and len(self._open) < self._config.tune.max_concurrent

    # -- what Tune calls -----------------------------------------------------------------------

    @property
    def metric(self) -> str | None:
        """None: a report is checked here, and the last one of a trial carries no metric."""
        return None

    @property
    def supports_buffered_results(self) -> bool:
        return False

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return self._base.scheduler.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tune also adds a trial again that it retries after an error, or took from a snapshot.

        A restored trial that has ended, or was asked to, is not run again; the others wait for
        room. One whose sample contradicts itself is never run; the sweep goes on without it.
        """
        key = trial.trial_id
        record = self._record(trial)
        is_restored = key in self._restored
        self._restored.discard(key)
        if record.is_unfit:
            # Tune reads a result's folder, which it makes when it starts the trial.
            trial.init_local_path()
            self._finish(tune_controller, trial, record)
            return
        self._base.added(tune_controller, key)
        self._open.add(key)
        self.ended.discard(key)
        if not is_restored:
            return
        if record.outcome is None and not record.is_stopping:
            # Tune starts what is PENDING all at once, but asks before it starts what is PAUSED.
            trial.set_status("PAUSED")
            trial.max_failures = self._config.cluster.max_failures
            return
        if record.outcome is None:
            self._end(tune_controller, key, {})
        self._finish(tune_controller, trial, record)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, unless the trial was asked to stop and the grace period is over.

        Raises:
            RunError: the report carries no health lines, or the base wants to pause the trial.
        """
        if "outcome" in result:
            return TrialScheduler.CONTINUE
        report = _health(result, trial.trial_id)
        record = self._record(trial)
        record.process = result.get("process", "")
        record.controller = result.get("controller", "")
        applied = int(result.get("directive", 0))
        self._repeat(trial.trial_id, record, applied)
        if report.step > record.step and not record.is_stopping:
            self._judge(tune_controller, trial.trial_id, record, report, applied)
        record.step = max(record.step, report.step)
        if self._overdue(record):
            self._end_process(record)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        outcome = json.loads(result.get("outcome") or "{}")
        if is_end(outcome):
            self._end(tune_controller, trial.trial_id, outcome)
        self._gone(trial.trial_id)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._base.failed(tune_controller, trial.trial_id)
        self._gone(trial.trial_id)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that waited is dropped: for good if it was asked to stop before."""
        record = self.trials.get(trial.trial_id)
        if record is not None and record.is_stopping:
            self._end(tune_controller, trial.trial_id, {})
        self._gone(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Called several times a second: also ends trials that no longer report in time."""
        for trial in tune_controller.get_trials():
            record = self.trials.get(trial.trial_id)
            is_unwanted = self.is_closed or (record is not None and record.is_stopping)
            if is_unwanted and trial.status in ("PENDING", "PAUSED"):
                tune_controller.stop_trial(trial)
            elif record and trial.status == "RUNNING" and self._overdue(record):
                self._end_process(record)
                tune_controller.stop_trial(trial)
        if self.is_closed:
            return None
        chosen = self._base.scheduler.choose_trial_to_run(tune_controller)
        states = [trial.status for trial in tune_controller.get_trials()]
        busy = sum(state in ("PENDING", "RUNNING") for state in states)
        has_room = busy < self._config.tune.max_concurrent
        return chosen if has_room or chosen is None or chosen.status == "PENDING" else None

    def debug_string(self) -> str:
        stopping = sum(record.stop_at is not None for record in self.trials.values())
        return (
            f"GoNoGoScheduler over {self._base.name}: {len(self.trials)} trials, {stopping} asked "
            "to stop"
        )

    # -- deciding ------------------------------------------------------------------------------

    def _record(self, trial: Any) -> TrialRecord:
        """The trial's record, made and written down when it is first heard of.

        Raises:
            RunError: the journal knows the trial with another sample.
        """
        key, sample = trial.trial_id, dict(trial.config or {})
        found = self.trials.get(key)
        if found is None:
            found = self.trials[key] = new_record(self._config, sample)
            self._append("trial", key, {})
            if found.outcome is not None:
                self._append("end", key, {"outcome": found.outcome})
        elif found.sample != sample:
            raise RunError(
                f"trial {key} has the sample {sample}, but {self._journal.path} says "
                f"{found.sample}: the journal and Tune's folder are of different sweeps"
            )
        return found

    def _judge(
        self,
        tune_controller: Any,
        key: str,
        record: TrialRecord,
        report: HealthReport,
        applied: int,
    ) -> None:
        """One report's decision: written down, then sent, then told.

        After its last step a trial only evaluates and ends by itself, so nothing is asked of it.
        """
        record.step, record.total = report.step, report.total_steps
        record.metrics = compared(report.to_dict())
        record.state, decision = decide(record.state, report, record.rules)
        record.decisions.append(decision)
        falls_behind = self._base.stops(tune_controller, key, record.metrics)
        falls_behind = falls_behind and not record.is_at_end
        directive = None if record.is_at_end else _directive(decision, record, applied)
        if falls_behind and not (directive and directive.stop):
            reason = f"stopped by {self._base.name} at step {report.step}"
            directive = Directive.to_stop(_next_number(record, applied), reason)
        if directive is not None:
            record.directive = directive
            if directive.stop:
                record.stop_at = self._clock()
        self._append_decision(key, record, decision, directive, falls_behind)
        if directive is not None:
            self._carry(key, directive)
        if self._listen is not None:
            told = Decision(decision.step, decision.verdict, reason=record.note)
            self._listen(key, told if record.note else decision, record.state)

    def _repeat(self, key: str, record: TrialRecord, applied: int) -> None:
        """Sends the last directive again until its echo comes: the actor may have restarted."""
        if record.directive is not None and record.directive.number > applied:
            self._carry(key, record.directive)

    def _carry(self, key: str, directive: Directive) -> None:
        if self._send is None:
            raise RunError("the scheduler has no way to its trials; call attach before fit")
        self._send(key, directive)

    def _overdue(self, record: TrialRecord) -> bool:
        """Whether the grace period is over; one that is past its last step ends by itself."""
        if record.stop_at is None or record.is_at_end:
            return False
        return self._clock() - record.stop_at > self._grace_s

    def _end_process(self, record: TrialRecord) -> None:
        """Ends the trial's process before Tune asks it to leave: one that lingers would answer the
        loss of its controller with a new one."""
        record.killed = True
        if self._kill is not None and record.process:
            self._kill(record.process)

    def _end(self, tune_controller: Any, key: str, outcome: dict[str, Any]) -> None:
        """The trial has ended for good: it is not run again when the sweep is continued."""
        record = self.trials.get(key)
        if record is None or record.outcome is not None:
            return
        record.outcome = outcome
        self._base.ended(tune_controller, key, record.metrics)
        self._append("end", key, {"outcome": outcome})

    def _finish(self, tune_controller: Any, trial: Any, record: TrialRecord) -> None:
        """Takes a trial that is being added for one that has ended."""
        trial.set_status("TERMINATED")
        tune_controller.search_alg.on_trial_complete(trial.trial_id, result=dict(record.metrics))
        self._gone(trial.trial_id)

    def _gone(self, key: str) -> None:
        self._open.discard(key)
        self.ended.add(key)

    def _append_decision(
        self,
        key: str,
        record: TrialRecord,
        decision: Decision,
        directive: Directive | None,
        falls_behind: bool,
    ) -> None:
        values = {
            "step": decision.step,
            "total": record.total,
            "decision": decision.to_dict(),
            "state": record.state.to_dict(),
            "directive": directive.to_dict() if directive else None,
            "metrics": record.metrics,
            "base": "STOP" if falls_behind else "CONTINUE",
        }
        self._append("decision", key, values)

    def _append(self, event: str, key: str, values: Line) -> None:
        sample = self.trials[key].sample
        head = {"event": event, "time": self._now(), "trial": key, "sample": sample}
        self._journal.append({**head, **values})


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


def _next_number(record: TrialRecord, applied: int) -> int:
    return 1 + max(applied, record.directive.number if record.directive else 0)


def _directive(decision: Decision, record: TrialRecord, applied: int) -> Directive | None:
    """What the decision's actions ask of the trial; None when they ask for nothing.

    Only the newest directive reaches a trial, so it repeats what an older one asked for that has
    not come back as applied.
    """
    if not decision.actions:
        return None
    return Directive(
        number=_next_number(record, applied),
        actions=(*_unapplied(decision, record, applied), *decision.actions),
        reason=decision.words or decision.reason or str(decision.verdict),
        verdict=str(decision.verdict),
        state=record.state,
    )


def _unapplied(decision: Decision, record: TrialRecord, applied: int) -> tuple[Action, ...]:
    last = record.directive
    if decision.verdict in (Verdict.NO_GO, Verdict.PAUSE) or not last or last.number <= applied:
        return ()
    asked = {action.name for action in decision.actions}
    return tuple(action for action in last.actions if action.name not in asked)
