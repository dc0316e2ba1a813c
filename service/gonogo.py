"""Go/No-Go: from health lines to a verdict with a named cause, as a pure function.

`decide(state, report, rules)` is a fold: replaying the reports of a journal gives the same
decisions. Who carries a decision out is not known here: the loop does in a plain run, the Tune
scheduler in a sweep. CE lines are fractions of ln C, so they mean the same for any C.

A decision starts from the lines that are on the wrong side of their bounds (`service/bounds.py`).
Before GO they are weighed together, here; after GO each rule looks at its own
(`service/after_go.py`).
"""

from dataclasses import replace

from service.after_go import Crossed, after_go, ended, since_notch
from service.bounds import Rules, crossed, not_finite
from service.causes import Cause
from service.config import PolicyConfig
from service.decisions import Action, Decision, PolicyState, Verdict
from service.health import HealthReport

TOP1_OVER_CHANCE = 5.0
"""Times 1/C from which a Top-1 is learning and not luck."""


def decide(state: PolicyState, report: HealthReport, rules: Rules) -> tuple[PolicyState, Decision]:
    """The verdict at `report`, and the state for the next one.

    A number that is not finite ends NO_GO at once, a definite cause from the first look, a CE that
    has not fallen from `no_go_from`; otherwise the run waits until the final look, or its own last
    step, which must decide. After GO, every report may hold or take back the SDM weight, cut the
    head's rate, lower P or pause the run; an epoch's end may raise the SDM weight by one notch, or
    says why not.
    """
    if state.verdict.ends:
        return state, Decision(report.step, state.verdict, state.cause)
    broken = tuple(not_finite(report).values())
    if broken:
        return ended(state, report.step, Verdict.NO_GO, Cause.NON_FINITE, broken)
    found = crossed(state, report, rules)
    state = replace(state, since={key: finding.since for key, finding in found.items()})
    if state.verdict is Verdict.WAIT:
        return _before_go(state, report, rules, found)
    return after_go(since_notch(state, report, rules.policy), report, rules, found)


def resumed(state: PolicyState, step: int) -> PolicyState:
    """The state with which a run goes on at `step` that had been paused: its patience begins anew.
    Every other state is as it was."""
    if state.verdict is not Verdict.PAUSE:
        return state
    return replace(
        state, verdict=Verdict.GO, cause=Cause.NONE, notch_step=step, ids_step=step, since={}
    )


_DEFINITE = (
    Cause.NO_GRADIENT,
    Cause.STEP_SKIPPED,
    Cause.HEAD_NOT_IN_OPTIMIZER,
    Cause.FEATURES_DETACHED,
)
"""Causes that no further step can heal."""

_SPEAKS_AGAINST_GO = (
    "ce_go",
    "ce_fall",
    "ce_slope",
    "head_grad",
    "body_grad",
    "head_moved",
    "head_growth",
)


def _before_go(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, Decision]:
    """WAIT, GO or NO_GO, with what speaks against GO."""
    state, probe = _probe(state, r, rules)
    verdict = _look(r, rules.policy, found)
    pairing = tuple(found[key] for key in ("unpaired", "coverage") if key in found)[:1]
    norm = tuple(found[key] for key in ("feature_norm",) if key in found)
    against = tuple(found[key] for key in _SPEAKS_AGAINST_GO if key in found)
    if verdict is Verdict.WAIT:
        reason = f"the head's rate rises to {probe[0].value:g}: CE has not fallen" if probe else ""
        findings = against + pairing + norm
        return state, Decision(r.step, verdict, findings=findings, actions=probe, reason=reason)
    if verdict is Verdict.NO_GO:
        cause = _cause(r, rules.policy, found)
        norm = norm if cause is Cause.FEATURE_NORM_OFF else ()
        swings = (found["ce_swing"],) if "ce_swing" in found else ()
        return ended(state, r.step, Verdict.NO_GO, cause, against + swings + pairing + norm)
    state = replace(state, verdict=Verdict.GO, best=r.ce_fraction)
    return after_go(state, r, rules, found)


def _look(r: HealthReport, p: PolicyConfig, found: Crossed) -> Verdict:
    """The verdict before GO. CE alone says NO_GO only above the Go line."""
    if not r.is_last and r.step < p.first_look:
        return Verdict.WAIT
    if not any(key in found for key in _SPEAKS_AGAINST_GO):
        return Verdict.GO
    if _cause(r, p, found) in _DEFINITE:
        return Verdict.NO_GO
    must_decide = r.is_last or r.step >= p.undecided_until
    if "ce_go" not in found:
        return Verdict.GO if must_decide else Verdict.WAIT
    has_not_fallen = r.step >= p.no_go_from and "ce_fall" in found
    stands = r.step >= p.final_look and r.ce_slope >= 0.0
    return Verdict.NO_GO if must_decide or has_not_fallen or stands else Verdict.WAIT


def _cause(r: HealthReport, p: PolicyConfig, found: Crossed) -> Cause:
    """Why CE stands, from CE, Top-1, gradients, movement and lengths together.

    A Top-1 far above chance while CE stands means that features and labels fit and only the logits
    are too small; a Top-1 at chance while everything moves means that they do not fit. A CE that
    swings, or lies far above chance, comes from logits that are too large.
    """
    if "head_grad" in found:
        return Cause.NO_GRADIENT
    if "head_moved" in found:
        return Cause.STEP_SKIPPED if r.body_moved == 0.0 else Cause.HEAD_NOT_IN_OPTIMIZER
    if "body_grad" in found:
        return Cause.FEATURES_DETACHED
    if r.head_growth < p.min_head_growth:
        return Cause.HEAD_LR_TOO_SMALL
    if "feature_norm" in found:
        return Cause.FEATURE_NORM_OFF
    if "ce_swing" in found or r.ce_fraction > 1.0 + p.max_swing:
        return Cause.FLUCTUATION
    if r.ce_fall < p.min_fall:
        is_luck = r.top1 <= min(TOP1_OVER_CHANCE / r.num_classes, 0.5)
        return Cause.LABELS_SHUFFLED if is_luck else Cause.HEAD_LR_TOO_SMALL
    if r.is_last and r.ce_slope < 0.0:
        return Cause.TOO_SHORT
    return Cause.CE_NOT_FALLING


def _probe(
    state: PolicyState, r: HealthReport, rules: Rules
) -> tuple[PolicyState, tuple[Action, ...]]:
    """The head's probe, decided once: its rate rises when CE has not fallen by then."""
    probe = rules.probe
    if probe is None or state.probed or r.step < probe.after:
        return state, ()
    rises = r.ce_fall < rules.policy.min_fall
    return replace(state, probed=True), (Action("head_probe", probe.to),) if rises else ()
