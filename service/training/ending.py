"""How a run ends: its verdict, what summary.json says, and the exit code."""

from typing import Any

from service.causes import WORDS, Cause
from service.decisions import Directive, PolicyState, Verdict
from service.errors import ExitCode
from service.health import HealthReport
from service.training.ports import Outcome

STOPPED = "STOPPED"
"""The verdict of a run that a directive ended."""


def ending(policy: PolicyState, stopped: Directive | None, facts: dict[str, Any]) -> Outcome:
    """The outcome without evaluation; `facts` go into its summary.

    A run that was told to stop says by whom; one for which somebody else decides ends in WAIT.
    """
    if stopped is not None:
        return _outcome(STOPPED, Cause.NONE, stopped.reason, "", ExitCode.OK, facts)
    words, remedy = WORDS[policy.cause]
    code = _EXIT_CODES.get(policy.verdict, ExitCode.OK)
    return _outcome(policy.verdict, policy.cause, words, remedy, code, facts)


_EXIT_CODES = {Verdict.NO_GO: ExitCode.NO_GO, Verdict.PAUSE: ExitCode.PAUSED}


def health_facts(report: HealthReport | None) -> dict[str, Any]:
    """The health lines of a summary, at the last report."""
    if report is None:
        return {"memory_hash_equal": True}
    return {
        "memory_hash_equal": report.memory_equal,
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
    verdict: str, cause: Cause, words: str, remedy: str, code: ExitCode, facts: dict[str, Any]
) -> Outcome:
    name = "" if cause is Cause.NONE else str(cause)
    summary = {"verdict": str(verdict), "cause": name, **facts}
    return Outcome(str(verdict), name, words, remedy, int(code), summary)
