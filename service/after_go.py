"""After GO: rules that hold, take back, cut, pause or end a run that has learned, or raise SDM.

Each rule looks at its own bounds and says what it would do; they stand in the order of the
priorities: what cannot be trained at all, cross-entropy, sampling, norms, then hints.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from service.bounds import Rules
from service.causes import Cause
from service.config import PolicyConfig
from service.decisions import Action, Decision, Finding, PolicyState, Verdict
from service.health import HealthReport

Crossed = Mapping[str, Finding]
"""Bounds that are crossed, by key, with what was found there."""

LONG = 3
"""Times `collapse_patience` that a run may stay far above its best without SDM."""

LIMIT_AFTER_CUT = 1.5
"""Growth since the last cut of the head's rate that cuts it again."""

CALMER = ("loss.label_smoothing=0.15", "optim.head_lr=1e-3", "optim.weight_decay=5e-4")
"""What the next run should try against fluctuation and overfitting."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one rule says."""

    verdict: Verdict
    cause: Cause
    findings: tuple[Finding, ...]
    actions: tuple[Action, ...] = ()
    reason: str = ""
    sdm_reason: str = ""
    suggestions: tuple[str, ...] = ()


_Rule = Callable[[PolicyState, HealthReport, Rules, Crossed], tuple[PolicyState, _Answer | None]]


def ended(
    state: PolicyState, step: int, verdict: Verdict, cause: Cause, findings: tuple[Finding, ...]
) -> tuple[PolicyState, Decision]:
    """The run stops: for good, or as a pause."""
    state = replace(state, verdict=verdict, cause=cause)
    action = Action("pause" if verdict is Verdict.PAUSE else "stop")
    return state, Decision(step, verdict, cause, findings, (action,))


def since_notch(state: PolicyState, r: HealthReport, p: PolicyConfig) -> PolicyState:
    """Notes whether CE has fallen since the last notch, once a whole window lies behind it."""
    if not state.notch or r.step < state.notch_step + r.window:
        return replace(state, low=None, has_fallen=False)
    if state.low is None:
        return replace(state, low=r.ce_fraction)
    fell = r.ce_fraction <= state.low - p.margin
    return replace(state, has_fallen=True) if fell else state


def after_go(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, Decision]:
    """The answers of all rules as one decision: the first names the cause."""
    best = r.ce_fraction if state.best is None else min(state.best, r.ce_fraction)
    state = replace(state, best=best)
    state = _know_head(state, r, rules.policy)
    answers: list[_Answer] = []
    for rule in _RULES:
        state, answer = rule(state, r, rules, found)
        if answer is None:
            continue
        if answer.verdict.ends:
            return ended(state, r.step, answer.verdict, answer.cause, answer.findings)
        answers.append(answer)
        if answer.verdict is Verdict.ROLLBACK:
            break
    if not any(a.verdict in (Verdict.HOLD, Verdict.ROLLBACK) for a in answers):
        state, answer = _notch(state, r, rules, found)
        answers.insert(0, answer) if answer.verdict is Verdict.RAISE else answers.append(answer)
    return state, _merged(r.step, answers)


def _merged(step: int, answers: list[_Answer]) -> Decision:
    """One decision: the gravest verdict, the first cause, and everything found and asked for."""
    weight = {Verdict.ROLLBACK: 3, Verdict.HOLD: 2, Verdict.RAISE: 1}
    gravest = max(answers, key=lambda a: weight.get(a.verdict, 0))
    causes = [a.cause for a in answers if a.cause is not Cause.NONE]
    return Decision(
        step=step,
        verdict=gravest.verdict,
        cause=gravest.cause if gravest.cause is not Cause.NONE else (causes or [Cause.NONE])[0],
        findings=tuple(f for a in answers for f in a.findings),
        actions=tuple(x for a in answers for x in a.actions),
        reason=next((a.reason for a in answers if a.verdict is gravest.verdict and a.reason), ""),
        sdm_reason=next((a.sdm_reason for a in answers if a.sdm_reason), ""),
        suggestions=tuple(dict.fromkeys(s for a in answers for s in a.suggestions)),
    )


def _broken(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """What cannot be trained at all: SDM that never reaches the loss, or a fault that came late and
    has lasted a window. Where no gradient arrives at all, SDM's is not missed on its own."""
    is_learning = r.ce_fraction > rules.policy.settled
    if "sdm_applied" in found:
        cause = _late_fault(r, found) if is_learning else None
        keys = ("sdm_applied", *_FAULTS) if cause else ("sdm_applied",)
        findings = tuple(found[key] for key in keys if key in found)
        return state, _no_go(cause or Cause.SDM_NOT_APPLIED, *findings)
    lasting = {k: f for k, f in found.items() if r.step - f.since >= r.window}
    cause = _late_fault(r, lasting)
    if cause is None or not is_learning:
        return state, None
    return state, _no_go(cause, *(lasting[k] for k in _FAULTS if k in lasting))


_FAULTS = ("head_grad", "head_moved", "body_grad")


def _late_fault(r: HealthReport, lasting: Crossed) -> Cause | None:
    if "head_grad" in lasting:
        return Cause.NO_GRADIENT
    if "head_moved" in lasting:
        return Cause.STEP_SKIPPED if r.body_moved == 0.0 else Cause.HEAD_NOT_IN_OPTIMIZER
    return Cause.FEATURES_DETACHED if "body_grad" in lasting else None


def _no_go(cause: Cause, *findings: Finding) -> _Answer:
    return _Answer(Verdict.NO_GO, cause, findings)


def _ending(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """A run that ends near chance, or far above its own best and not on its way back, is no GO,
    whatever it was before."""
    if not r.is_last:
        return state, None
    if r.ce_fraction > rules.policy.hold:
        finding = Finding("ce_fraction", r.ce_fraction, rules.policy.hold, r.step, r.step)
        return state, _no_go(_collapsed(state), found.get("ce_hold", finding))
    if "ce_rise" in found and not _falls(r, rules.policy):
        return state, _no_go(Cause.CE_REBOUND, found["ce_rise"])
    return state, None


def _collapse(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """CE back at chance: SDM is taken back at once; without SDM the run is paused in the end."""
    finding = found.get("ce_collapse")
    if finding is None or r.is_last:
        return state, None
    cause = _collapsed(state)
    if _is_settling(state, r):
        return state, _hold(cause, finding, _SETTLING)
    if state.notch:
        return _roll_back(state, r, rules, cause, found, finding)
    if r.step - max(finding.since, state.notch_step) >= rules.policy.collapse_patience:
        return state, _Answer(Verdict.PAUSE, cause, (finding,))
    return state, _hold(cause, finding, "paused if this lasts")


def _collapsed(state: PolicyState) -> Cause:
    return Cause.COLLAPSE_AFTER_SDM if state.notch or state.rollbacks else Cause.COLLAPSE


def _rise(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """CE far above its best, or crowded out by SDM: hold; take SDM back when it does not turn, and
    pause in the end where there is no SDM to take back."""
    finding = found.get("ce_rise") or found.get("sdm_share")
    if finding is None or r.is_last or "ce_collapse" in found:
        return state, None
    if _is_settling(state, r):
        return state, _hold(Cause.CE_REBOUND, finding, _SETTLING)
    p, lasts = rules.policy, r.step - max(finding.since, state.notch_step)
    stands = "sdm_share" in found or not _falls(r, p)
    if state.notch and stands and lasts >= p.rise_patience:
        return _roll_back(state, r, rules, Cause.SDM_TOO_LARGE, found, finding)
    if not state.notch and stands and lasts >= LONG * p.collapse_patience:
        return state, _Answer(Verdict.PAUSE, Cause.CE_REBOUND, (finding,))
    cause = Cause.SDM_TOO_LARGE if r.sdm_gradient_share > p.max_sdm_share else Cause.CE_REBOUND
    return state, _hold(cause, finding, "SDM waits for CE")


def _falls(r: HealthReport, p: PolicyConfig) -> bool:
    """Whether the window's trend is a fall and not noise."""
    return r.ce_slope < -p.margin * math.log(r.num_classes) / r.window


def _hold(cause: Cause, finding: Finding, reason: str) -> _Answer:
    """A HOLD for a reason that keeps the SDM weight where it is."""
    return _Answer(Verdict.HOLD, cause, (finding,), reason=reason, sdm_reason=reason)


_SETTLING = "the windows still hold the steps before the SDM weight was taken back"


def _is_settling(state: PolicyState, r: HealthReport) -> bool:
    return state.rollbacks > 0 and r.step - state.rollback_step < r.window


def _roll_back(
    state: PolicyState,
    r: HealthReport,
    rules: Rules,
    cause: Cause,
    found: Crossed,
    finding: Finding,
) -> tuple[PolicyState, _Answer]:
    """One notch down with an empty memory, and a look at whether the sampler really pairs.

    A second step down soon after the first is the same trouble, which began at the first's notch.
    """
    notch = state.notch - 1
    goes_on = state.rollbacks > 0 and r.step - state.rollback_step <= 2 * r.window
    state = replace(
        state,
        notch=notch,
        notch_step=r.step,
        rollbacks=state.rollbacks + 1,
        rollback_step=r.step,
        taken_back=state.taken_back if goes_on else (*state.taken_back, state.notch),
    )
    weight = rules.sdm.notches[notch - 1] if notch else 0.0
    actions = (Action("sdm_weight", weight), Action("flush_memory"), Action("audit_sampler"))
    findings = (finding, *(found[k] for k in ("sdm_share", "coverage") if k in found))
    unique = tuple(dict.fromkeys(findings))
    reason = f"SDM weight back to {weight:g}, memory flushed"
    return state, _Answer(Verdict.ROLLBACK, cause, unique, actions, reason, reason)


def _rebound(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """CE above the hold line: the SDM weight stays where it is."""
    if "ce_hold" not in found or "ce_collapse" in found or "ce_rise" in found or r.is_last:
        return state, None
    return state, _hold(Cause.CE_REBOUND, found["ce_hold"], "SDM waits for CE")


def _pairing(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """Too many unpaired rows, window after window: lower P, and pause when that does not help."""
    if state.ids_from is not None and not state.ids_applied and r.ids_per_batch < state.ids_from:
        state = replace(state, ids_applied=True, ids_step=r.step)
    finding = found.get("unpaired")
    if finding is None:
        low = found.get("coverage")
        return state, low and _Answer(Verdict.GO, Cause.NOT_PAIRING, (low,))
    p = rules.policy
    hold = _hold(Cause.NOT_PAIRING, finding, "SDM waits for coverage")
    patience = (p.unpaired_windows - 1) * r.window
    if r.is_last or r.step - max(finding.since, state.ids_step) < patience:
        return state, hold
    if state.ids_from is not None:
        waits = not state.ids_applied and r.step - state.ids_step < r.steps_per_epoch + patience
        return state, hold if waits else replace(hold, verdict=Verdict.PAUSE)
    lower = max(2, int(r.ids_per_batch * r.pair_coverage))
    if lower >= r.ids_per_batch:
        return state, replace(hold, verdict=Verdict.PAUSE)
    state = replace(state, ids_from=r.ids_per_batch, ids_step=r.step)
    reason = f"P falls from {r.ids_per_batch} to {lower} at the next epoch"
    return state, replace(hold, actions=(Action("ids_per_batch", lower),), reason=reason)


def _know_head(state: PolicyState, r: HealthReport, p: PolicyConfig) -> PolicyState:
    """Notes how long the head may become: from the end of the epoch of GO on."""
    if state.head_limit is not None or not r.is_epoch_end or r.step < p.final_look:
        return state
    return replace(state, head_limit=p.max_head_growth * r.head_norm)


def _head(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """A head that grows without end learns more slowly: one rate lower at a time."""
    finding = found.get("head_norm")
    if finding is None or r.is_last:
        return state, None
    lower = next((lr for lr in rules.policy.head_cuts if lr < r.head_lr), None)
    if lower is None:
        return state, _Answer(Verdict.GO, Cause.HEAD_GROWTH, (finding,))
    gap = max(r.steps_per_epoch, rules.sdm.min_steps)
    if state.head_cuts and r.step - state.head_cut_step < gap:
        return state, _Answer(Verdict.HOLD, Cause.HEAD_GROWTH, (finding,))
    state = replace(
        state,
        head_cuts=state.head_cuts + 1,
        head_cut_step=r.step,
        head_limit=LIMIT_AFTER_CUT * r.head_norm,
    )
    actions, reason = (Action("head_lr", lower),), f"the head's rate falls to {lower:g}"
    return state, _Answer(Verdict.HOLD, Cause.HEAD_GROWTH, (finding,), actions, reason)


def _norm(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """Features of another length than the config implies."""
    finding = found.get("feature_norm")
    return state, finding and _Answer(Verdict.HOLD, Cause.FEATURE_NORM_OFF, (finding,))


def _swing(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """CE that swings; a rise that has a rule of its own is no swing, nor is a climb that begins
    with a notch of SDM."""
    finding = found.get("ce_swing")
    if finding is None or "ce_rise" in found or "ce_collapse" in found:
        return state, None
    if state.notch and r.step - state.notch_step <= r.window:
        return state, _hold(Cause.CE_REBOUND, finding, "SDM waits for CE")
    return state, _Answer(Verdict.HOLD, Cause.FLUCTUATION, (finding,), suggestions=CALMER)


def _hints(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer | None]:
    """What a person should know, and nothing is done about; the first names the cause."""
    told = [(found[key], cause) for key, cause in _HINTS if key in found]
    if not told:
        return state, None
    more = CALMER if "memorised" in found else ()
    findings = tuple(finding for finding, _ in told)
    return state, _Answer(Verdict.GO, told[0][1], findings, suggestions=more)


_HINTS = (
    ("data_wait", Cause.DATA_STARVED),
    ("throughput", Cause.THROUGHPUT_FALLEN),
    ("memorised", Cause.OVERFITTING),
)

_RULES: tuple[_Rule, ...] = (
    _broken,
    _ending,
    _collapse,
    _rise,
    _rebound,
    _pairing,
    _head,
    _norm,
    _swing,
    _hints,
)


def _go(reason: str) -> _Answer:
    """Nothing to do about the SDM weight, and why."""
    return _Answer(Verdict.GO, Cause.NONE, (), reason=reason, sdm_reason=reason)


def _highest(state: PolicyState, num_notches: int) -> int:
    """The highest notch that may be tried: one that had to be taken back twice is not."""
    twice = [n for n in range(1, num_notches + 1) if state.taken_back.count(n) > 1]
    return min(twice) - 1 if twice else num_notches


def _notch(
    state: PolicyState, r: HealthReport, rules: Rules, found: Crossed
) -> tuple[PolicyState, _Answer]:
    """At an epoch's end: raise the SDM weight by one notch, or say why not."""
    notches = rules.sdm.notches
    highest = _highest(state, len(notches))
    if r.is_last or not rules.sdm.enabled or state.notch >= highest:
        return state, _go("")
    if not r.is_epoch_end:
        return state, _go("" if state.notch else "SDM waits for the epoch's end")
    taken = state.notch or state.rollbacks
    gap = max(r.steps_per_epoch, rules.sdm.min_steps) if taken else rules.sdm.min_steps
    since = r.step - state.notch_step
    if r.epoch + 1 < rules.sdm.start_epoch:
        return state, _go(f"SDM starts in epoch {rules.sdm.start_epoch}")
    if since < gap:
        return state, _go(f"SDM waits: {since} of {gap} steps")
    if "coverage" in found:
        return state, _hold(Cause.NOT_PAIRING, found["coverage"], "SDM waits for coverage")
    state = replace(state, notch=state.notch + 1, notch_step=r.step)
    weight = Action("sdm_weight", notches[state.notch - 1])
    return state, _Answer(Verdict.RAISE, Cause.NONE, (), (weight,))
