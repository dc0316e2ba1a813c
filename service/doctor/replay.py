"""Replays a run's journal through the policy: what was decided, why, and what other thresholds
would have decided."""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.bands import expected
from service.bounds import Rules
from service.causes import Cause
from service.config import Config
from service.decisions import Decision, PolicyState, Verdict
from service.doctor.check import Check, Diagnosis, Status, Table, listed
from service.errors import ExitCode, RunError
from service.gonogo import decide, resumed
from service.health import HealthReport
from service.orchestration.runs import open_run
from service.settings import override
from service.telemetry.logs import action_words, verdict_line
from service.training.journal import FILE_NAME

SWEEP_JOURNAL = "decisions.jsonl"
"""Where the scheduler of a sweep notes what it decided for its trials, beside their folders."""
_SHOWN = 40


@dataclass(slots=True)
class Past:
    """What a journal tells, without the lines that a later attempt superseded.

    reports: in order of their steps. judged: step to (verdict, cause) as it was decided then.
    continued: steps at which a person had the run go on after it had ended. error: what ended the
    run at once, with its cause. notes: what is wrong with the journal itself.
    """

    reports: list[HealthReport] = field(default_factory=list)
    judged: dict[int, tuple[str, str]] = field(default_factory=dict)
    continued: list[int] = field(default_factory=list)
    error: str = ""
    error_cause: Cause = Cause.NONE
    notes: list[str] = field(default_factory=list)


def diagnose_run(run: str, thresholds: Iterable[str] = (), *, storage: str = "runs") -> Diagnosis:
    """The replay of the run that `run` names: an id below `storage`, a run's or a trial's folder.

    thresholds: settings of the policy, as in go=0.93, that take the place of the run's own.
    Of a sweep it is the list of its trials, with exit code USER_ERROR: one of them is to be named.

    Raises:
        RunError: no such run, no report in its journal yet, or one of another version.
        ConfigError: a threshold that does not exist or does not fit.
    """
    found = open_run(run, storage)
    if (found.path / SWEEP_JOURNAL).is_file():
        return _trials_of(found.path)
    changes = [text if text.startswith("policy.") else f"policy.{text}" for text in thresholds]
    config = override(found.config, changes)
    past = read_past(found.path)
    if not past.reports:
        raise RunError(
            f"{found.path / FILE_NAME} holds no health report"
            + (f"; the run ended with {past.error}" if past.error else "")
            + f"; the first comes at step {found.config.log.health_every} or an epoch's end"
        )
    decisions = replay(past, config)
    other = differences(past, decisions)
    notes = [*past.notes, *_told(changes, other, bool(past.judged))]
    if changes:
        notes += _cut_short(past, decisions[-1])
    return _explained(found.run_id, past, decisions, notes, len(other) if not changes else 0)


# -- reading ---------------------------------------------------------------------------------------


def read_past(run_dir: Path) -> Past:
    """What the journal in `run_dir` tells; a line cut off by a crash is left out and noted.

    Raises:
        RunError: there is no journal, or a report lacks a line that the policy reads.
    """
    past = Past()
    is_over = False
    for event in _lines(run_dir / FILE_NAME, past.notes):
        kind, step = event.get("event"), int(event.get("step", 0))
        if kind == "start":
            _supersede(past, step)
            if is_over:
                past.continued.append(step)
        elif kind == "health":
            past.reports.append(_report(event, run_dir))
        elif kind == "decision":
            past.judged[step] = (str(event["verdict"]), str(event["cause"]))
        elif kind == "error":
            past.error = f"{event.get('kind')}: {event.get('message')}"
            past.error_cause = Cause(event.get("cause", "none"))
        is_over = is_over or kind == "end"
    if not past.judged:
        past.judged = _judged_by_the_sweep(run_dir, past.notes)
    return past


def _lines(file: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}; is this a run's folder?") from error
    lines = text.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line) if line.strip() else None
        except ValueError:
            last = number == len(lines)
            notes.append(
                f"{file.name} is cut off in line {number}"
                + (f"; what is told ends with line {number - 1}" if last else "; it is left out")
            )
            continue
        if isinstance(event, dict):
            yield event


def _supersede(past: Past, step: int) -> None:
    """A new attempt goes on after `step`: what was written past it counts no more."""
    past.reports = [r for r in past.reports if r.step <= step]
    past.judged = {at: told for at, told in past.judged.items() if at <= step}
    past.continued = [at for at in past.continued if at <= step]
    past.error, past.error_cause = "", Cause.NONE


def _report(event: dict[str, Any], run_dir: Path) -> HealthReport:
    try:
        return HealthReport.from_dict(event["health"])
    except KeyError as error:
        raise RunError(
            f"{run_dir / FILE_NAME}: the report of step {event.get('step')} lacks the line "
            f"{error}, which the policy of this version reads; replay it with the version that "
            "wrote it"
        ) from error


def _judged_by_the_sweep(run_dir: Path, notes: list[str]) -> dict[int, tuple[str, str]]:
    """What the sweep's scheduler decided for this trial; nothing for a run of its own."""
    file = run_dir.parent / SWEEP_JOURNAL
    if not file.is_file():
        return {}
    lines = [line for line in _lines(file, notes) if line.get("trial") == run_dir.name]
    if lines:
        notes.append(f"a trial of {run_dir.parent.name}, judged by its scheduler")
    told = [line["decision"] for line in lines if isinstance(line.get("decision"), dict)]
    return {d["step"]: (str(d["verdict"]), str(d["cause"])) for d in told}


# -- deciding again --------------------------------------------------------------------------------


def replay(past: Past, config: Config) -> list[Decision]:
    """The decision at each report, up to the one that ends the run for good."""
    rules, state = Rules.of(config), PolicyState()
    coming = list(past.continued)
    decisions: list[Decision] = []
    for report in past.reports:
        while coming and report.step > coming[0]:
            state = resumed(state, coming.pop(0))
        state, decision = decide(state, report, rules)
        decisions.append(decision)
        if decision.verdict is Verdict.NO_GO or (decision.verdict is Verdict.PAUSE and not coming):
            break
    return decisions


def differences(past: Past, decisions: Iterable[Decision]) -> list[str]:
    """Where the replay and what was decided then are not the same, in words."""
    other = []
    for decision in decisions:
        then = past.judged.get(decision.step)
        now = (str(decision.verdict), str(decision.cause))
        if then is not None and then != now:
            other.append(f"step {decision.step}: {_short(*then)} then, {_short(*now)} now")
    return other


def _told(changes: list[str], other: list[str], was_judged: bool) -> list[str]:
    """What the replay is held against, as notes."""
    if changes:
        asked = f"thresholds changed: {', '.join(changes)}"
        return [asked, *(other[:10] or ["they change no decision"])]
    if not was_judged:
        return ["no decision was journaled to hold the replay against"]
    return other[:10] or ["the replay gives every decision that was journaled"]


def _cut_short(past: Past, last: Decision) -> list[str]:
    """That other thresholds would have gone on where the records end."""
    report = past.reports[-1]
    if last.verdict.ends or last.step < report.step or report.step >= report.total_steps > 0:
        return []
    verdict, cause = past.judged.get(last.step, ("", ""))
    ended = bool(verdict) and Verdict(verdict).ends
    then = f"the run ended there with {_short(verdict, cause)}" if ended else "there is no more"
    return [
        f"the records end at step {last.step}: {then}, so what these thresholds would have decided "
        "later is not known"
    ]


def _short(verdict: str, cause: str) -> str:
    return verdict if cause in ("none", "") else f"{verdict} ({cause})"


# -- a sweep ---------------------------------------------------------------------------------------


def _trials_of(sweep: Path) -> Diagnosis:
    """The trials of a sweep, what was decided for each last, and how to replay it."""
    notes: list[str] = []
    last: dict[str, dict[str, Any]] = {}
    for line in _lines(sweep / SWEEP_JOURNAL, notes):
        if "trial" in line:
            last.setdefault(line["trial"], {})
            last[line["trial"]] = line.get("decision") or last[line["trial"]]
    rows = tuple(_trial(sweep / name, decision) for name, decision in sorted(last.items()))
    title = f"Trials of {sweep.name}"
    return Diagnosis(
        f"sweep {sweep.name}",
        (Check("trials", Status.OK, f"{len(rows)} in {sweep}"),),
        (Table(title, ("trial", "step", "verdict", "cause", "replay it with"), rows),),
        tuple(notes),
        f"{sweep.name} is a sweep: its trials are replayed one at a time",
        int(ExitCode.USER_ERROR),
    )


def _trial(path: Path, decision: dict[str, Any]) -> tuple[str, ...]:
    cause = str(decision.get("cause", ""))
    began = (path / FILE_NAME).is_file()
    return (
        path.name,
        str(decision.get("step", "")),
        str(decision.get("verdict", "")),
        "" if cause == Cause.NONE else cause,
        f"crossreid doctor run {shlex.quote(str(path))}" if began else "it made no step yet",
    )


# -- saying it -------------------------------------------------------------------------------------


def _explained(
    name: str, past: Past, decisions: list[Decision], notes: list[str], num_other: int
) -> Diagnosis:
    last = decisions[-1]
    report = past.reports[len(decisions) - 1]
    bad = Status.FAIL if last.verdict.ends else Status.WARN
    cause = last.cause if last.cause is not Cause.NONE else None
    checks = [
        Check(
            f.line,
            bad,
            f"{f.observed:.4g} at step {f.step}"
            + (f", since step {f.since}" if f.since < f.step else ""),
            f"bound {f.bound:.4g}",
        )
        for f in last.findings
    ]
    if num_other:
        told = f"{num_other} decisions differ from those that were journaled"
        why = "the config or the version that decided then was another"
        checks.append(Check("replay", Status.WARN, told, "the same decisions", why))
    if past.error:
        checks.append(
            Check(
                "end",
                Status.FAIL,
                past.error,
                "a run without an error",
                "",
                past.error_cause if past.error_cause is not Cause.NONE else None,
            )
        )
    if not checks:
        checks = [Check("findings", Status.OK, f"none at step {last.step}")]
    if cause is not None:
        notes = [*notes, f"more: crossreid explain {cause}"]
    notes += [f"worth trying: {text}" for text in last.suggestions]
    end = f" of {report.total_steps}" if report.total_steps else ""
    where = f"at step {last.step}{end}: "
    closing = where + verdict_line(str(last.verdict), last.words or last.reason, last.remedy)
    tables = (_table(past.reports, decisions), _expected(report))
    return Diagnosis(f"run {name}", tuple(checks), tables, tuple(notes), closing, _code(last, past))


def _expected(report: HealthReport) -> Table:
    """The last look next to a healthy run of a pretrained model; it judges nothing."""
    rows = tuple(
        (
            band.line,
            f"{band.observed:.3g}",
            f"{band.low:.3g} to {band.high:.3g}",
            "" if band.is_inside else "outside",
        )
        for band in expected(report)
    )
    when = expected(report)[0].when
    title = f"Beside a healthy run of a pretrained ViT-B on 400 people, {when} (to compare only)"
    return Table(title, ("line", "here", "there", ""), rows)


def _code(last: Decision, past: Past) -> int:
    if last.verdict is Verdict.PAUSE:
        return int(ExitCode.PAUSED)
    return int(ExitCode.NO_GO if last.verdict is Verdict.NO_GO or past.error else ExitCode.OK)


def _table(reports: list[HealthReport], decisions: list[Decision]) -> Table:
    """A line a look; of a long run those at which something changed, and some between."""
    pairs = list(zip(reports, decisions, strict=False))
    every = max(1, len(pairs) // (_SHOWN // 2))
    kept = [
        i
        for i, (_, d) in enumerate(pairs)
        if len(pairs) <= _SHOWN
        or i % every == 0
        or i == len(pairs) - 1
        or (d.verdict, d.cause) != (pairs[i - 1][1].verdict, pairs[i - 1][1].cause)
    ]
    rows = tuple(_row(*pairs[i]) for i in kept)
    title = "Looks" if len(kept) == len(pairs) else f"Looks ({len(kept)} of {len(pairs)})"
    columns = ("step", "CE/lnC", "top-1", "coverage", "SDM", "verdict", "cause", "asks for")
    return Table(title, columns, rows)


def _row(r: HealthReport, d: Decision) -> tuple[str, ...]:
    asked = [action_words({"name": a.name, "value": a.value}) for a in d.actions]
    return (
        str(r.step),
        f"{r.ce_fraction:.3f}",
        f"{r.top1:.1%}",
        f"{r.pair_coverage:.3f}",
        f"{r.sdm_weight:g}",
        str(d.verdict),
        "" if d.cause is Cause.NONE else str(d.cause),
        listed(asked, 4),
    )
