"""The verdict: the documents' own story, row by row, and what must hold for any history."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bounds import Rules
from service.causes import Cause
from service.config import HeadProbe, PolicyConfig, SdmConfig
from service.decisions import PolicyState, Verdict
from service.gonogo import decide
from service.health import Gauges, Health, HealthReport, StepSample
from tests.reports import HEALTHY, LN_C
from tests.reports import NUM_CLASSES as C

RULES = Rules(PolicyConfig(), SdmConfig())
STUCK = replace(
    HEALTHY, ce=5.99, ce_fraction=1.0, ce_first=5.99, ce_fall=0.0, ce_slope=0.0, head_growth=1.05
)


def at(report: HealthReport, step: int, **changes: float) -> HealthReport:
    per_epoch = int(changes.pop("steps_per_epoch", report.steps_per_epoch))
    values = {
        "step": step,
        "epoch": (step - 1) // per_epoch + 1,
        "step_in_epoch": (step - 1) % per_epoch + 1,
        "steps_per_epoch": per_epoch,
    }
    if "ce" in changes:
        values["ce_fraction"] = changes["ce"] / LN_C
    return replace(report, **values, **changes)


def verdicts(*reports: HealthReport, rules: Rules = RULES) -> list[tuple[Verdict, Cause]]:
    state, found = PolicyState(), []
    for report in reports:
        state, decision = decide(state, report, rules)
        found.append((decision.verdict, decision.cause))
    return found


def test_a_head_that_never_changes_is_named_at_the_first_look():
    flat = replace(STUCK, head_moved=0.0, head_growth=1.0, top1=1 / C, ce=5.95)
    assert verdicts(at(flat, 200)) == [(Verdict.NO_GO, Cause.HEAD_NOT_IN_OPTIMIZER)]


def test_no_gradient_is_named_at_the_first_look():
    assert verdicts(at(STUCK, 200, head_grad_norm=0.0)) == [(Verdict.NO_GO, Cause.NO_GRADIENT)]


def test_a_head_that_cannot_move_waits_at_200_and_stops_at_300():
    slow = replace(STUCK, top1=0.2)
    assert verdicts(at(slow, 200), at(slow, 300)) == [
        (Verdict.WAIT, Cause.NONE),
        (Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL),
    ]


def test_chance_level_with_a_moving_head_is_a_matter_of_labels():
    moving = replace(STUCK, head_growth=20.0, top1=1 / C)
    assert verdicts(at(moving, 200), at(moving, 300))[-1] == (Verdict.NO_GO, Cause.LABELS_SHUFFLED)


def test_steps_that_change_nothing_at_all_are_skipped_steps():
    still = replace(STUCK, head_moved=0.0, body_moved=0.0)
    assert verdicts(at(still, 200)) == [(Verdict.NO_GO, Cause.STEP_SKIPPED)]


def test_a_backbone_without_gradient_is_named_even_when_the_head_learns():
    detached = replace(HEALTHY, body_grad_norm=0.0)
    assert verdicts(at(detached, 200)) == [(Verdict.NO_GO, Cause.FEATURES_DETACHED)]
    assert verdicts(replace(HEALTHY, body_grad_norm=None)) == [(Verdict.GO, Cause.NONE)]


def test_a_wrong_feature_length_is_named_when_nothing_before_it_explains_ce():
    off = replace(STUCK, head_growth=20.0, feature_norm=0.8)
    assert verdicts(at(off, 300))[-1] == (Verdict.NO_GO, Cause.FEATURE_NORM_OFF)
    small = replace(off, head_growth=1.1)
    assert verdicts(at(small, 300))[-1] == (Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL)


def test_a_probe_raises_the_rate_once_when_ce_has_not_fallen():
    rules = Rules(PolicyConfig(), SdmConfig(), HeadProbe())
    state, raised = PolicyState(), []
    for report in (at(STUCK, 100), at(STUCK, 200)):
        state, decision = decide(state, report, rules)
        raised += [a.value for a in decision.actions]
    assert raised == [1e-2]
    _, kept = decide(PolicyState(), at(HEALTHY, 100), rules)
    assert (kept.verdict, kept.actions) == (Verdict.WAIT, ())


def test_a_falling_ce_is_go_and_low_coverage_is_said():
    state, decision = decide(PolicyState(), replace(HEALTHY, pair_coverage=0.83), RULES)
    assert decision.verdict is Verdict.GO
    assert decision.cause is Cause.NOT_PAIRING
    assert decision.findings[0].line == "pair_coverage"
    assert state.verdict is Verdict.GO


def test_sdm_is_deferred_for_low_coverage_and_raised_with_full_coverage():
    end = at(HEALTHY, 1863, ce=1.58)
    low = verdicts(HEALTHY, replace(end, pair_coverage=0.83))
    assert low[-1] == (Verdict.HOLD, Cause.NOT_PAIRING)
    state, _ = decide(PolicyState(), HEALTHY, RULES)
    state, decision = decide(state, end, RULES)
    assert decision.verdict is Verdict.RAISE
    assert decision.actions[0].value == pytest.approx(0.1)


def test_the_notches_follow_one_epoch_apart():
    ends = [at(HEALTHY, 1863 * epoch, ce=1.5) for epoch in (1, 2, 3, 4)]
    state, weights = PolicyState(), []
    for report in (HEALTHY, at(HEALTHY, 2000, ce=1.8), *ends):
        state, decision = decide(state, report, RULES)
        weights += [a.value for a in decision.actions]
    assert weights == [0.1, 0.3, 0.5]


def test_a_rebound_holds_the_weight():
    state, _ = decide(PolicyState(), HEALTHY, RULES)
    _, decision = decide(state, at(HEALTHY, 1863, ce=5.75), RULES)
    assert (decision.verdict, decision.cause) == (Verdict.HOLD, Cause.CE_REBOUND)
    assert not decision.actions


def test_short_epochs_wait_for_the_step_floor():
    reports = [at(HEALTHY, 200, steps_per_epoch=232)]
    reports += [at(HEALTHY, 232 * epoch, steps_per_epoch=232) for epoch in (1, 2, 3, 4, 5, 6)]
    state, raised = PolicyState(), []
    for report in reports:
        state, decision = decide(state, report, RULES)
        raised += [report.step] if decision.actions else []
    assert raised == [696, 1392]


def test_sdm_that_is_off_is_never_raised():
    rules = Rules(PolicyConfig(), SdmConfig(enabled=False))
    assert verdicts(HEALTHY, at(HEALTHY, 1863, ce=1.5), rules=rules)[-1][0] is Verdict.GO


def test_the_last_step_of_a_short_run_decides():
    last = replace(at(HEALTHY, 150), total_steps=150)
    assert verdicts(last) == [(Verdict.GO, Cause.NONE)]
    falling = replace(at(HEALTHY, 150, ce=5.8), total_steps=150)
    assert verdicts(falling) == [(Verdict.NO_GO, Cause.TOO_SHORT)]
    last = replace(at(STUCK, 150), total_steps=150)
    assert verdicts(last) == [(Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL)]


def test_a_slow_but_falling_run_waits_until_the_last_look_for_it():
    slow = replace(HEALTHY, ce=5.75, ce_fraction=0.96, ce_fall=0.03, ce_slope=-0.001)
    found = verdicts(at(slow, 300), at(slow, 500), at(slow, 900), at(slow, 1000))
    assert [v for v, _ in found] == [Verdict.WAIT, Verdict.WAIT, Verdict.WAIT, Verdict.NO_GO]
    flat = replace(slow, ce_slope=0.0)
    assert verdicts(at(flat, 300), at(flat, 500))[-1][0] is Verdict.NO_GO
    below = replace(flat, ce_fraction=0.93, ce_slope=1e-6)
    found = [v for v, _ in verdicts(at(below, 500), at(below, 1000))]
    assert found == [Verdict.WAIT, Verdict.GO]


def test_top1_far_above_chance_names_the_head_even_when_it_grew():
    stuck = replace(STUCK, head_growth=3.2)
    assert verdicts(at(stuck, 300, top1=0.5)) == [(Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL)]
    assert verdicts(at(stuck, 300, top1=1 / C)) == [(Verdict.NO_GO, Cause.LABELS_SHUFFLED)]


def test_a_second_finding_names_low_coverage():
    _, decision = decide(PolicyState(), at(STUCK, 300, pair_coverage=0.3), RULES)
    assert [f.line for f in decision.findings][-1] == "pair_coverage"


def test_a_quick_learner_that_is_flat_is_not_stopped():
    quick = replace(HEALTHY, ce_fraction=0.59, ce_fall=0.01, ce_slope=-1e-5, top1=0.4)
    assert verdicts(at(quick, 300)) == [(Verdict.GO, Cause.NONE)]


def test_a_run_that_ends_at_chance_after_go_is_no_go():
    last = replace(at(HEALTHY, 900, ce=5.95), total_steps=900)
    assert verdicts(HEALTHY, last)[-1] == (Verdict.NO_GO, Cause.COLLAPSE)
    fine = replace(at(HEALTHY, 900, ce=1.5), total_steps=900)
    assert verdicts(HEALTHY, fine)[-1] == (Verdict.GO, Cause.NONE)


def curve(ces: list[float], window: int = 100) -> HealthReport:
    """The last report of a run with these cross-entropies, through the real windows."""
    health = Health(C, window)
    health.start(0.45)
    kinds = (None,) * 6
    health.add(
        StepSample(i + 1, ce, 0.1, *[0.0] * 8, 8.0, 80.0, 0.1, 0.0, kinds)
        for i, ce in enumerate(ces)
    )
    gauges = Gauges(7.0, 0.1, 0.02, 0.1, 0.01, 1e-2, "", 0.0, 0, 0, True, 8.0, 16)
    n = len(ces)
    place = {"step": n, "epoch": 1, "step_in_epoch": n, "steps_per_epoch": 1863}
    return health.report(**place, total_steps=n, gauges=gauges)


@pytest.mark.parametrize("steps", [20, 100, 150, 500])
def test_a_healthy_curve_is_go_at_the_last_step_of_any_length(steps: int):
    falling = [LN_C * (1 - 0.6 * i / steps) for i in range(steps)]
    assert verdicts(curve(falling)) == [(Verdict.GO, Cause.NONE)]


@pytest.mark.parametrize("steps", [20, 100, 150, 500])
def test_a_flat_curve_is_no_go_at_the_last_step_of_any_length(steps: int):
    flat = [LN_C + 0.01 * (-1) ** i for i in range(steps)]
    assert verdicts(curve(flat))[0][0] is Verdict.NO_GO


def test_below_the_learning_line_only_a_rise_speaks_against_go():
    noisy = replace(HEALTHY, ce=5.4, ce_fraction=0.90, ce_slope=1e-4)
    assert verdicts(noisy) == [(Verdict.GO, Cause.NONE)]
    rising = replace(noisy, ce_slope=0.02 * LN_C / 100)
    assert verdicts(rising) == [(Verdict.WAIT, Cause.NONE)]
    above = replace(noisy, ce_fraction=0.93)
    assert verdicts(above) == [(Verdict.WAIT, Cause.NONE)]


def test_a_run_that_has_learned_everything_may_be_flat():
    done = replace(HEALTHY, ce=0.05, ce_fraction=0.01, ce_slope=1e-5, ce_fall=0.9)
    done = replace(done, head_grad_norm=1e-9)
    assert verdicts(at(done, 200)) == [(Verdict.GO, Cause.NONE)]


def test_nothing_is_judged_before_the_first_look():
    assert verdicts(at(STUCK, 100, head_moved=0.0)) == [(Verdict.WAIT, Cause.NONE)]


def test_no_go_is_final_and_keeps_its_cause():
    state, _ = decide(PolicyState(), at(STUCK, 200, head_grad_norm=0.0), RULES)
    _, decision = decide(state, at(HEALTHY, 400), RULES)
    assert (decision.verdict, decision.cause) == (Verdict.NO_GO, Cause.NO_GRADIENT)


def test_a_policy_state_survives_a_restart():
    state = PolicyState(Verdict.GO, Cause.NONE, notch=2, notch_step=700, since={"ce_hold": 650})
    assert PolicyState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


reports = st.builds(
    lambda step, ce, fall, slope, grad, moved, growth: replace(
        at(HEALTHY, step, ce=ce * LN_C),
        ce_fall=fall,
        ce_slope=slope,
        head_grad_norm=grad,
        head_moved=moved,
        head_growth=growth,
    ),
    step=st.integers(1, 1500),
    ce=st.floats(0.0, 1.2),
    fall=st.floats(-0.2, 1.0),
    slope=st.floats(-0.1, 0.1),
    grad=st.floats(0.0, 1.0),
    moved=st.floats(0.0, 1.0),
    growth=st.floats(0.5, 100.0),
)
RANK = {Verdict.NO_GO: 0, Verdict.WAIT: 1, Verdict.GO: 2}


@given(report=reports, worse=st.floats(0.0, 0.5))
def test_a_worse_ce_never_improves_the_first_verdict(report: HealthReport, worse: float):
    bad = replace(report, ce_fraction=report.ce_fraction + worse, ce_fall=report.ce_fall - worse)
    _, before = decide(PolicyState(), report, RULES)
    _, after = decide(PolicyState(), bad, RULES)
    assert RANK.get(after.verdict, 2) <= RANK.get(before.verdict, 2)


@given(report=reports)
def test_every_no_go_names_a_cause_a_remedy_and_a_finding(report: HealthReport):
    _, decision = decide(PolicyState(), report, RULES)
    assert decide(PolicyState(), report, RULES)[1] == decision
    if decision.verdict is Verdict.NO_GO:
        assert decision.findings
        assert decision.words
        assert decision.remedy
        assert report.step >= RULES.policy.first_look
