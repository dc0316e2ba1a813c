"""A short run on one's own data with every check: is a long run worth its GPUs?"""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from service.causes import Cause
from service.config import Config
from service.data.fitting import open_plan
from service.data.sampler import PAIRABLE_WARNING
from service.doctor.check import Check, Diagnosis, Status, Table, judged
from service.doctor.data import diagnose_data
from service.doctor.model import diagnose_model
from service.doctor.replay import read_past
from service.doctor.sampler import diagnose_sampler
from service.errors import CrossReidError
from service.health import HealthReport
from service.orchestration.local import train_here
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update, ignore
from service.settings import override
from service.training.ports import Outcome

STEPS = 300
"""Steps of the run, unless an epoch is shorter. It is never shorter than `policy.no_go_from`:
before that, a cross-entropy that has not fallen says nothing, and the last step must decide."""
_LONGER = "it learns, but slowly: raise the rates, or policy.no_go_from for a longer smoke test"


def diagnose_smoke(config: Config, *, on_progress: OnProgress = ignore) -> Diagnosis:
    """Looks at data, sampler and model, then trains some hundred steps of cross-entropy here.

    Nothing is trained when a check fails before. The run's folder is temporary, and kept when
    something is wrong.

    Raises:
        CrossReidError: no such records or weights, or what the loop itself refuses.
    """
    subject = f"smoke test of {config.run.name}"
    looks: tuple[tuple[str, Callable[[], Diagnosis]], ...] = (
        ("data", lambda: diagnose_data(config.data.records, config)),
        ("sampler", lambda: diagnose_sampler(config)),
        ("model", lambda: diagnose_model(config)),
    )
    checks: list[Check] = []
    for name, look in looks:
        on_progress(Update(trial=MAIN_TRIAL, messages=(f"looking at the {name}",)))
        found = look()
        checks += [_prefixed(name, check) for check in found.checks]
        if found.failed:
            closing = f"not trained: put right what is wrong with the {name} first"
            return Diagnosis(subject, tuple(checks), closing=closing)
    folder = Path(tempfile.mkdtemp(prefix="crossreid-smoke-"))
    try:
        run, outcome = train_here(smoke_config(config, folder), on_progress=on_progress)
    except CrossReidError:
        with contextlib.suppress(OSError):  # a folder that holds a run stays
            folder.rmdir()
        raise
    past = read_past(run.path)
    checks += _after(config, outcome, past.reports)
    found = _verdict(subject, checks, outcome, past.reports)
    if found.exit_code:
        kept = f"the run is kept: crossreid doctor run {run.path}"
        return Diagnosis(
            subject, found.checks, found.tables, (kept,), found.closing, found.exit_code
        )
    shutil.rmtree(folder, ignore_errors=True)
    return found


def smoke_config(config: Config, folder: Path) -> Config:
    """`config` for the first steps of its run: the same rates and batches, without SDM."""
    _, plan = open_plan(config, 1)
    steps = max(config.policy.no_go_from, min(STEPS, plan.steps_per_epoch))
    return override(
        config,
        [
            f"run.storage={folder}",
            "run.name=smoke",
            "loss.sdm.enabled=false",
            # A cosine over some hundred steps would end before the real one has begun to fall.
            "optim.schedule=constant",
            f"train.epochs={math.ceil(steps / plan.steps_per_epoch)}",
            f"train.max_steps={steps}",
            f"train.checkpoint_every={steps}",
            "telemetry.enabled=false",
            "eval.after_training=false",
        ],
    )


def _prefixed(name: str, check: Check) -> Check:
    return Check(
        f"{name}: {check.name}",
        check.status,
        check.found,
        check.expected,
        check.remedy,
        check.cause,
    )


def _after(config: Config, outcome: Outcome, reports: list[HealthReport]) -> list[Check]:
    """What the short run showed."""
    cause = Cause(outcome.cause) if outcome.cause in set(Cause) and outcome.cause else None
    verdict = Check(
        "run: verdict",
        Status.OK if outcome.verdict == "GO" else Status.FAIL,
        outcome.verdict + (f": {outcome.words}" if outcome.words else ""),
        "GO",
        _LONGER if cause is Cause.TOO_SHORT else outcome.remedy,
        cause,
    )
    if not reports:
        return [verdict]
    last, policy = reports[-1], config.policy
    expected = last.feature_norm_expected
    return [
        verdict,
        judged(
            "run: cross-entropy",
            last.ce_fraction <= policy.learning,
            f"{last.ce:.3f}, {last.ce_fraction:.3f} of ln {last.num_classes}, after {last.step} "
            "steps",
            f"{policy.learning:g} or less, as policy.learning says",
            "train longer; if it stands, run `crossreid doctor overfit`",
            otherwise=Status.WARN,
        ),
        judged(
            "run: rows with a positive",
            last.pair_coverage > PAIRABLE_WARNING,
            f"{last.pair_coverage:.1%}",
            f"more than {PAIRABLE_WARNING:.0%}",
            cause=Cause.NOT_PAIRING,
        ),
        judged(
            "run: feature length",
            abs(last.feature_norm / expected - 1.0) <= policy.norm_tolerance,
            f"{last.feature_norm:.3g}, expected {expected:.3g}",
            f"within {policy.norm_tolerance:.0%}",
            cause=Cause.FEATURE_NORM_OFF,
        ),
        judged(
            "run: the head moves",
            last.head_moved > 0.0 and last.head_growth > 1.0,
            f"grown {last.head_growth:.3g} times, {last.head_moved:.2%} in the last step",
            "longer than at the start, and still moving",
            cause=Cause.HEAD_LR_TOO_SMALL,
        ),
        judged(
            "run: throughput",
            last.images_per_second > 0.0,
            f"{last.images_per_second:.0f} images a second, {last.data_wait_share:.0%} of the time "
            "waiting for data",
            "more than 0",
        ),
    ]


def _verdict(
    subject: str, checks: list[Check], outcome: Outcome, reports: list[HealthReport]
) -> Diagnosis:
    rows = tuple(
        (
            str(r.step),
            f"{r.ce_fraction:.3f}",
            f"{r.top1:.1%}",
            f"{r.pair_coverage:.3f}",
            f"{r.head_growth:.3g}",
            f"{r.images_per_second:.0f}",
        )
        for r in reports
    )
    columns = ("step", "CE/lnC", "top-1", "coverage", "head growth", "img/s")
    return Diagnosis(
        subject,
        tuple(checks),
        (Table("The run", columns, rows),),
        code=outcome.exit_code or None,
    )
