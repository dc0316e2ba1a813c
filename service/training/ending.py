"""How a run ends: its verdict, what summary.json says, and the exit code."""

from typing import Any

from service.errors import ExitCode
from service.gonogo import Decision, Directive, Verdict
from service.health import HealthReport
from service.training.ports import Outcome

STOPPED = "STOPPED"
"""The verdict of a run that a directive ended."""


def ending(decision: Decision | None, stopped: Directive | None, facts: dict[str, Any]) -> Outcome:
    """The outcome without evaluation; `facts` go into its summary.

    A run that was told to stop says by whom; one that had no one to decide for it ends in WAIT.
    """
    if stopped is not None:
        return _outcome(STOPPED, "", stopped.reason, "", ExitCode.OK, facts)
    if decision is None:
        return _outcome(str(Verdict.WAIT), "", "", "", ExitCode.OK, facts)
    if decision.verdict is Verdict.NO_GO:
        cause, words, remedy = str(decision.cause), decision.words, decision.remedy
        return _outcome(str(Verdict.NO_GO), cause, words, remedy, ExitCode.NO_GO, facts)
    return _outcome(str(Verdict.GO), "", "", "", ExitCode.OK, facts)


def health_facts(report: HealthReport | None) -> dict[str, Any]:
    """The health lines of a summary, at the last report."""
    if report is None:
        return {}
    return {
        "ce": report.ce,
        "ce_fraction": report.ce_fraction,
        "top1": report.top1,
        "pair_coverage": report.pair_coverage,
        "rows_without_positive": report.rows_without_positive,
        "sdm_weight": report.sdm_weight,
        "sdm_rows_used": int(report.sdm_rows),
        "images_per_second": report.images_per_second,
    }


def _outcome(
    verdict: str, cause: str, words: str, remedy: str, code: ExitCode, facts: dict[str, Any]
) -> Outcome:
    summary = {"verdict": verdict, "cause": cause, **facts}
    return Outcome(verdict, cause, words, remedy, int(code), summary)
