"""Where a sweep stands, and each of its trials, as the sweep's journal tells: pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from service.causes import Cause
from service.decisions import Verdict
from service.orchestration.standing import STOPPED, Life, Standing, State, event_words
from service.orchestration.sweep_journal import Line


def sweep_standing(
    run: str,
    lines: Iterable[Line],
    *,
    total: int,
    now: float,
    life: Life,
    summary: Mapping[str, Any] | None = None,
) -> Standing:
    """Where a sweep stands whose journal holds `lines`, oldest first.

    total: its trials. now: Unix seconds. summary: its `summary.json`, if there is one.
    """
    trials: dict[str, Standing] = {}
    newest, first, last = "", None, None
    for line in lines:
        last = line.get("time", last)
        if "trial" not in line:
            continue
        first = last if first is None else first
        before = trials.get(line["trial"]) or Standing(line["trial"], _open(life, State.STARTING))
        trials[line["trial"]] = found = _after(before, line, life)
        if found.newest != before.newest:
            newest = f"{found.run}: {found.newest}"
    verdict = "" if life.is_alive else (summary or {}).get("verdict", "")
    took_s = None if first is None or last is None else last - first
    return Standing(
        run=run,
        state=_state(verdict, bool(trials), life),
        verdict=verdict,
        cause=_cause(trials.values()) if verdict else "",
        words=_verdicts(trials.values()) if verdict else "",
        step=sum(not trial.is_going for trial in trials.values()),
        total=total,
        eta_s=_left(trials.values(), total, took_s) if life.is_alive else None,
        silent_s=None if last is None else max(now - last, 0.0),
        newest=newest,
        summary=dict(summary or {}),
        trials=tuple(trials.values()),
    )


def _left(trials: Collection[Standing], total: int, took_s: float | None) -> float | None:
    """Seconds that the sweep still takes at its pace so far; None before its first decision."""
    shares = [1.0 if not t.is_going else t.step / t.total if t.total else 0.0 for t in trials]
    done = sum(shares) / total if total else 0.0
    return took_s * max(1 - done, 0.0) / done if done and took_s else None


def _cause(trials: Collection[Standing]) -> str:
    """The cause that all trials have in common, if they have one."""
    causes = {trial.cause for trial in trials}
    return causes.pop() if len(causes) == 1 else ""


def _verdicts(trials: Collection[Standing]) -> str:
    """How many trials ended how, the most frequent first."""
    counts = Counter(trial.verdict or str(trial.state) for trial in trials)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())


def _after(trial: Standing, line: Line, life: Life) -> Standing:
    """A trial after one more line of the sweep's journal."""
    if line["event"] == "end":
        outcome = line["outcome"]
        state = State.FAILED if "error" in outcome else State.ENDED
        return replace(trial, state=state, verdict=_final(trial, outcome.get("verdict", "")))
    if line["event"] != "decision":
        return trial
    decision = line["decision"]
    return replace(
        trial,
        state=_open(life, State.TRAINING),
        verdict=decision["verdict"],
        cause="" if decision["cause"] == Cause.NONE else decision["cause"],
        words=decision.get("words", ""),
        remedy=decision.get("remedy", ""),
        step=line["step"],
        total=line["total"] or None,
        newest=event_words({"event": "decision", **decision}) or trial.newest,
    )


def _final(trial: Standing, verdict: str) -> str:
    """A trial's verdict at its end: its own, or the last decision where its loop only obeyed."""
    if not trial.verdict or verdict not in ("", STOPPED, Verdict.WAIT):
        return verdict or trial.verdict
    return str(Verdict.GO) if Verdict(trial.verdict).learns else trial.verdict


def _open(life: Life, state: State) -> State:
    """The state of a trial that has not ended: without a driver it stands still."""
    return state if life.is_alive else State.STOPPED


def _state(verdict: str, has_trials: bool, life: Life) -> State:
    if life.job == "PENDING" and not life.held:
        return State.WAITING
    if life.is_alive:
        return State.TRAINING if has_trials and life.is_taken else State.STARTING
    if not verdict:
        return State.LOST
    return State.STOPPED if verdict == STOPPED else State.ENDED
