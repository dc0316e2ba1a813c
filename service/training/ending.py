"""How a run ends: its verdict, what summary.json says, and the exit code."""

import json
from pathlib import Path
from typing import Any

from service.causes import WORDS, Cause
from service.decisions import Directive, PolicyState, Verdict
from service.distributed import Distributed
from service.errors import CheckpointError, ExitCode, NonFiniteError
from service.health import HealthReport
from service.training.files import write_text
from service.training.parts import together
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


def not_finite(step: int, run_dir: Path) -> NonFiniteError:
    """The error of a gradient that is no number; it is seen a step late at most."""
    return NonFiniteError(
        f"the gradient became NaN or infinite at step {step} or the one before; no parameter was "
        f"changed by it. --resume {run_dir} goes on from the newest checkpoint; lower the learning "
        "rates, set optim.clip_norm=1.0, or use train.precision=fp32"
    )


def write_summary(world: Distributed, run_dir: Path, outcome: Outcome) -> None:
    """Rank 0 writes summary.json; every rank must call it.

    Raises:
        CheckpointError: on all ranks, when the folder refuses it.
    """

    def write() -> None:
        if world.rank != 0:
            return
        text = json.dumps(outcome.summary, indent=1, ensure_ascii=False)
        try:
            write_text(run_dir / "summary.json", text + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write the summary: {error}") from error

    together(world, write)


def _outcome(
    verdict: str, cause: Cause, words: str, remedy: str, code: ExitCode, facts: dict[str, Any]
) -> Outcome:
    name = "" if cause is Cause.NONE else str(cause)
    summary = {"verdict": str(verdict), "cause": name, **facts}
    return Outcome(str(verdict), name, words, remedy, int(code), summary)
