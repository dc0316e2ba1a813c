"""How a sweep ended: a line for each trial, the best one, what was decided and what was saved."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from service.decisions import Decision, Verdict
from service.errors import CrossReidError, ExitCode, RunError
from service.orchestration.runs import Run, resume_words
from service.orchestration.scalars import MODES
from service.orchestration.space import with_sample
from service.orchestration.summary import read_summary, write_summary
from service.orchestration.trials import TrialRecord
from service.orchestration.worker import rebuilt
from service.telemetry.logs import action_words, redacted

BEST_FILE = "best.yaml"
_BEST_FIRST = ("GO", "PAUSE", "NO_GO", "ERROR", "WAIT")


@dataclass(frozen=True, slots=True)
class Row:
    """One trial's line in the final table.

    verdict: GO, NO_GO, PAUSE, WAIT, STOPPED, ERROR or UNKNOWN. cause: in words. note: who stopped
    it, if Go/No-Go did not. steps: made; total: planned, 0 when it never reported. saved: steps
    that were not made because it was stopped. exit_code: that of an ERROR, as if the trial had been
    trained alone.
    """

    trial: str
    sample: dict[str, Any]
    verdict: str
    cause: str = ""
    remedy: str = ""
    steps: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    note: str = ""
    total: int = 0
    saved: int = 0

    @property
    def told(self) -> str:
        """Cause and note in one."""
        return "; ".join(part for part in (self.cause, self.note) if part)


@dataclass(frozen=True, slots=True)
class Sweep:
    """How a sweep ended. best: the row whose config is in `best.yaml`, if any trial got GO.
    decisions: by trial, those that said something new. verdict: GO, PAUSE, NO_GO, ERROR, WAIT,
    UNKNOWN or STOPPED. is_open: a trial has not ended, so the sweep can be continued."""

    experiment_id: str
    path: Path
    rows: tuple[Row, ...]
    best: Row | None
    exit_code: int
    decisions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    verdict: str = "UNKNOWN"
    is_open: bool = False

    @property
    def steps(self) -> int:
        """Made by all trials."""
        return sum(row.steps for row in self.rows)

    @property
    def steps_saved(self) -> int:
        """Not made, because trials were stopped before their end."""
        return sum(row.saved for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "run_id": self.experiment_id,
            "run_dir": str(self.path),
            "verdict": self.verdict,
            "trials": [asdict(row) for row in self.rows],
            "best": self.best.trial if self.best else None,
            "steps": self.steps,
            "steps_saved": self.steps_saved,
            "decisions": self.decisions,
            "exit_code": self.exit_code,
        }


def row_of(sweep: Run, result: Any, records: Mapping[str, TrialRecord]) -> Row:
    """A trial's line from Tune's result, and its verdict in its own summary.json: the loop there
    did not judge."""
    metrics: dict[str, Any] = result.metrics or {}
    # A trial that never reported has no metrics; its folder at Tune is named after it.
    trial = metrics.get("trial_id") or Path(result.path or "unknown").name
    record = records.get(trial)
    # Tune tells the sample of a trial only once it has reported.
    sample = record.sample if record else result.config
    row = Row(trial=trial, sample=dict(sample or {}), verdict="UNKNOWN")
    outcome = json.loads(metrics.get("outcome", "{}"))
    if not outcome and record is not None and record.outcome:
        outcome = record.outcome
    if "error" in outcome:
        return _erred(row, rebuilt(outcome["error"]))
    if result.error is not None and not outcome:
        return replace(row, verdict="ERROR", cause=_last_line(result.error), exit_code=1)
    if outcome.get("verdict") == "ERROR":
        told, remedy = outcome["words"], outcome["remedy"]
        return replace(row, verdict="ERROR", cause=told, remedy=remedy, exit_code=1)
    return judged_row(sweep, row, record)


def open_row(sweep: Run, key: str, record: TrialRecord) -> Row:
    """The line of a trial in a sweep that the user stopped: what is known of it."""
    row = Row(trial=key, sample=record.sample, verdict="STOPPED")
    if record.outcome is None and not record.is_stopping:
        decision = record.verdict
        learns = decision is not None and decision.verdict.learns
        verdict = "GO" if learns else "STOPPED"
        steps = max(record.step, 0)
        return replace(
            row, verdict=verdict, steps=steps, total=record.total, note="interrupted on the way"
        )
    outcome = record.outcome or {}
    if "error" in outcome:
        return _erred(row, rebuilt(outcome["error"]))
    return judged_row(sweep, row, record)


def judged_row(sweep: Run, row: Row, record: TrialRecord | None) -> Row:
    """`row` with the policy's verdict; the trial's summary.json says the same."""
    try:
        summary = read_summary(sweep.path / row.trial) or {}
    except RunError as error:
        return _erred(row, error)
    if record is None:
        return replace(row, summary=summary, steps=summary.get("steps", 0))
    row = _judged(row, record.verdict)
    steps = summary.get("steps", max(record.step, 0))
    saved = max(record.total - steps, 0) if record.is_stopping else 0
    row = replace(row, steps=steps, total=record.total, saved=saved, note=record.note)
    if row.verdict == Verdict.PAUSE:
        again = f"continue it with crossreid train {resume_words(sweep.path / row.trial)}"
        row = replace(row, remedy="; ".join(part for part in (row.remedy, again) if part))
    if (sweep.path / row.trial).is_dir():
        facts = {"run_id": row.trial, "steps": steps, **summary}
        summary = {**facts, "verdict": row.verdict, "cause": row.told}
        write_summary(sweep.path / row.trial, summary)
    return replace(row, summary=summary)


def _judged(row: Row, decision: Decision | None) -> Row:
    if decision is None:
        return row
    if decision.verdict.learns:
        return replace(row, verdict="GO", cause=decision.words)
    return replace(row, verdict=str(decision.verdict), cause=decision.words, remedy=decision.remedy)


def _erred(row: Row, error: CrossReidError) -> Row:
    words, code = redacted(str(error)), int(error.exit_code)
    return replace(row, verdict="ERROR", cause=words, exit_code=code)


def _last_line(error: BaseException) -> str:
    """Where Ray's long texts name the cause; the error's kind when there is no text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redacted(lines[-1].strip()) if lines else type(error).__name__


def best_of(rows: Iterable[Row], metric: str) -> Row | None:
    """The GO trial with the highest mean mAP; between trials without evaluation the one that is
    best by `metric`, a health line of `MODES`."""
    sign = 1.0 if MODES[metric] == "max" else -1.0

    def merit(row: Row) -> tuple[float, float]:
        found = row.summary.get("mAP", {}).get("mean", 0.0)
        return found, sign * row.summary.get(metric, -sign * math.inf)

    return max((row for row in rows if row.verdict == "GO"), key=merit, default=None)


def verdict_of(rows: Iterable[Row]) -> str:
    """The sweep's verdict: the best that a trial got; PAUSE before NO_GO, since such a trial can
    still be continued."""
    found = {row.verdict for row in rows}
    return next((verdict for verdict in _BEST_FIRST if verdict in found), "UNKNOWN")


def best_yaml(sweep: Run, best: Row) -> str:
    """The best trial's config as a file that trains it alone."""
    config = with_sample(sweep.config, best.sample)
    values = config.model_dump(mode="json")
    values.pop("tune")
    head = f"# crossreid train {sweep.path / BEST_FILE}\n#\n# The best trial of {sweep.run_id}.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def exit_code(rows: Iterable[Row]) -> int:
    """OK when a trial got GO; else PAUSED when one can be continued; else NO_GO when one was
    judged; else the worst that `train` says."""
    rows = tuple(rows)
    verdicts = {row.verdict for row in rows}
    if "GO" in verdicts:
        return ExitCode.OK
    if "PAUSE" in verdicts:
        return ExitCode.PAUSED
    if "NO_GO" in verdicts:
        return ExitCode.NO_GO
    codes = [row.exit_code for row in rows if row.exit_code]
    return min(codes, default=int(ExitCode.USER_ERROR))


def short_decisions(record: TrialRecord) -> list[dict[str, Any]]:
    """The decisions that differ from the one before, and the stop by somebody else."""
    short: list[dict[str, Any]] = []
    last: tuple[Any, ...] = ()
    for decision in record.decisions:
        saying = (decision.verdict, decision.cause)
        if saying != last or decision.actions:
            short.append(_short(decision))
        last = saying
    if record.note:
        verdict = str(record.verdict.verdict) if record.verdict else str(Verdict.WAIT)
        step = record.metrics.get("step", record.step)
        stop = {"step": step, "verdict": verdict, "cause": record.note, "actions": ["stop"]}
        short.append(stop)
    return short


def _short(decision: Decision) -> dict[str, Any]:
    return {
        "step": decision.step,
        "verdict": str(decision.verdict),
        "cause": decision.words,
        "actions": [action_words(asdict(action)) for action in decision.actions],
    }
