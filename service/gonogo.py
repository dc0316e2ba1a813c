"""Go/No-Go: from health lines to a verdict with a named cause, as a pure function.

`decide(state, report, rules)` is a fold: replaying the reports of a journal gives the same
decisions. Who carries a decision out is not known here: the loop does in a plain run, the Tune
scheduler in a sweep. CE lines are fractions of ln C, so they mean the same for any C.
"""

import math
from dataclasses import dataclass, replace

from service.causes import Cause
from service.config import Config, PolicyConfig, SdmConfig
from service.decisions import Action, Decision, Finding, PolicyState, Verdict
from service.health import HealthReport

TOP1_OVER_CHANCE = 5.0
"""Times 1/C from which a Top-1 is learning and not luck."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that a verdict depends on."""

    policy: PolicyConfig
    sdm: SdmConfig

    @classmethod
    def of(cls, config: Config) -> "Rules":
        return cls(config.policy, config.loss.sdm)


def decide(state: PolicyState, report: HealthReport, rules: Rules) -> tuple[PolicyState, Decision]:
    """The verdict at `report`, and the state for the next one.

    A definite cause ends NO_GO from the first look; a CE that has not fallen from `no_go_from`;
    otherwise the run waits until the final look, or its own last step, which must decide. After GO,
    each epoch's end may raise the SDM weight by one notch, or says why not.
    """
    if state.verdict is Verdict.NO_GO:
        return state, Decision(report.step, Verdict.NO_GO, state.cause)
    if state.verdict is Verdict.WAIT:
        return _first_verdict(state, report, rules)
    if report.is_last and report.ce_fraction > rules.policy.hold:
        return _stopped(state, report.step, Cause.COLLAPSE, (_ce(report, rules.policy.hold),))
    if report.is_epoch_end and not report.is_last and rules.sdm.enabled:
        return _notch(state, report, rules)
    return state, Decision(report.step, Verdict.GO)


def _first_verdict(
    state: PolicyState, r: HealthReport, rules: Rules
) -> tuple[PolicyState, Decision]:
    """WAIT, GO or NO_GO, with what speaks against GO."""
    verdict, against = _look(r, rules.policy), _against_go(r, rules.policy)
    unpaired = (_low_coverage(r, rules),) if r.pair_coverage < rules.policy.coverage else ()
    if verdict is Verdict.WAIT:
        return state, Decision(r.step, verdict, findings=against + unpaired)
    if verdict is Verdict.NO_GO:
        return _stopped(state, r.step, _cause(r, rules.policy), against + unpaired)
    state = replace(state, verdict=Verdict.GO)
    if r.is_epoch_end and not r.is_last and rules.sdm.enabled:
        return _notch(state, r, rules)
    cause = Cause.NOT_PAIRING if unpaired else Cause.NONE
    reason = "SDM waits for the epoch's end" if rules.sdm.enabled else ""
    return state, Decision(r.step, Verdict.GO, cause, unpaired, reason=reason)


def _stopped(
    state: PolicyState, step: int, cause: Cause, findings: tuple[Finding, ...]
) -> tuple[PolicyState, Decision]:
    state = replace(state, verdict=Verdict.NO_GO, cause=cause)
    return state, Decision(step, Verdict.NO_GO, cause, findings, (Action("stop"),))


def _look(r: HealthReport, p: PolicyConfig) -> Verdict:
    """The verdict before GO. CE alone says NO_GO only above the Go line."""
    if not r.is_last and r.step < p.first_look:
        return Verdict.WAIT
    if not _against_go(r, p):
        return Verdict.GO
    if _cause(r, p) in (Cause.NO_GRADIENT, Cause.HEAD_NOT_IN_OPTIMIZER):
        return Verdict.NO_GO
    must_decide = r.is_last or r.step >= p.undecided_until
    if r.ce_fraction <= p.go:
        return Verdict.GO if must_decide else Verdict.WAIT
    has_not_fallen = r.step >= p.no_go_from and r.ce_fall < p.min_fall
    stands = r.step >= p.final_look and r.ce_slope >= 0.0
    return Verdict.NO_GO if must_decide or has_not_fallen or stands else Verdict.WAIT


def _against_go(r: HealthReport, p: PolicyConfig) -> tuple[Finding, ...]:
    """Every line on the wrong side of what GO asks for; CE first, then the head.

    Between the Go and the learning line CE must be falling; below that only a rise counts, because
    a flat stretch is noise; below `settled` nothing of CE does.
    """
    wrong: list[Finding] = []
    if r.ce_fraction > p.go:
        wrong.append(_ce(r, p.go))
        if r.ce_fall < p.min_fall:
            wrong.append(Finding("ce_fall", r.ce_fall, p.min_fall, r.step, r.step))
    rise = p.min_fall * math.log(r.num_classes) / r.window if r.ce_fraction <= p.learning else 0.0
    if r.ce_slope >= rise and r.ce_fraction > p.settled:
        wrong.append(Finding("ce_slope", r.ce_slope, rise, r.step, r.step))
    if r.head_grad_norm < p.min_grad and r.ce_fraction > p.settled:
        wrong.append(Finding("head_grad_norm", r.head_grad_norm, p.min_grad, r.step, r.step))
    if r.head_moved == 0.0:
        wrong.append(Finding("head_moved", r.head_moved, 0.0, r.step, r.step))
    if wrong and r.head_growth < p.min_head_growth:
        wrong.append(Finding("head_growth", r.head_growth, p.min_head_growth, r.step, r.step))
    return tuple(wrong)


def _cause(r: HealthReport, p: PolicyConfig) -> Cause:
    """Why CE stands, from CE, Top-1, head gradient, head movement and head length together.

    A Top-1 far above chance while CE stands means that features and labels fit and only the logits
    are too small: the head cannot grow fast enough.
    """
    if r.head_grad_norm < p.min_grad and r.ce_fraction > p.settled:
        return Cause.NO_GRADIENT
    if r.head_moved == 0.0:
        return Cause.HEAD_NOT_IN_OPTIMIZER
    if r.head_growth < p.min_head_growth:
        return Cause.HEAD_LR_TOO_SMALL
    if r.ce_fall < p.min_fall and r.top1 > min(TOP1_OVER_CHANCE / r.num_classes, 0.5):
        return Cause.HEAD_LR_TOO_SMALL
    if r.is_last and r.ce_slope < 0.0:
        return Cause.TOO_SHORT
    return Cause.CE_NOT_FALLING


def _notch(state: PolicyState, r: HealthReport, rules: Rules) -> tuple[PolicyState, Decision]:
    """At an epoch's end after GO: raise the SDM weight by one notch, or say why not."""
    notches = rules.sdm.notches
    if state.notch >= len(notches):
        return state, Decision(r.step, Verdict.GO)
    gap = max(r.steps_per_epoch, rules.sdm.min_steps) if state.notch else rules.sdm.min_steps
    since = r.step - state.notch_step
    next_epoch = r.epoch + 1
    if next_epoch < rules.sdm.start_epoch:
        reason = f"SDM starts in epoch {rules.sdm.start_epoch}"
        return state, Decision(r.step, Verdict.GO, reason=reason)
    if since < gap:
        return state, Decision(r.step, Verdict.GO, reason=f"SDM waits: {since} of {gap} steps")
    if r.pair_coverage < rules.policy.coverage:
        low, reason = (_low_coverage(r, rules),), "SDM waits for coverage"
        return state, Decision(r.step, Verdict.HOLD, Cause.NOT_PAIRING, low, reason=reason)
    if r.ce_fraction > rules.policy.hold:
        high, reason = (_ce(r, rules.policy.hold),), "SDM waits for CE"
        return state, Decision(r.step, Verdict.HOLD, Cause.CE_REBOUND, high, reason=reason)
    raised = replace(state, notch=state.notch + 1, notch_step=r.step)
    weight = Action("sdm_weight", notches[state.notch])
    return raised, Decision(r.step, Verdict.RAISE, actions=(weight,))


def _ce(r: HealthReport, bound: float) -> Finding:
    return Finding("ce_fraction", r.ce_fraction, bound, r.step, r.step)


def _low_coverage(r: HealthReport, rules: Rules) -> Finding:
    return Finding("pair_coverage", r.pair_coverage, rules.policy.coverage, r.step, r.step)
