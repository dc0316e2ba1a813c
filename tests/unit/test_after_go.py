"""The rules after GO, one by one, and that noise around a bound does not make a verdict flap."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from service.bounds import Rules
from service.causes import Cause
from service.config import PolicyConfig, SdmConfig
from service.decisions import Decision, PolicyState, Verdict
from service.gonogo import decide, resumed
from service.health import HealthReport
from tests.reports import LN_C, healthy

RULES = Rules(PolicyConfig(), SdmConfig())
GO = PolicyState(verdict=Verdict.GO, best=0.5, notch_step=0)


def at(step: int, fraction: float = 0.5, **changes: Any) -> HealthReport:
    return healthy(step, ce=fraction * LN_C, ce_fraction=fraction, **changes)


def told(*reports: HealthReport, state: PolicyState = GO, rules: Rules = RULES) -> list[Decision]:
    found = []
    for report in reports:
        state, decision = decide(state, report, rules)
        found.append(decision)
    return found


def verdicts(*reports: HealthReport, **more: Any) -> list[tuple[Verdict, Cause]]:
    return [(d.verdict, d.cause) for d in told(*reports, **more)]


SCHEDULED = {"sdm_scheduled": 0.1, "sdm_scheduled_steps": 100, "sdm_rows": 8.0}


def test_a_weight_that_never_reaches_the_loss_ends_the_run():
    lost = at(600, **SCHEDULED, sdm_weight=0.0, sdm_applied_share=0.0)
    assert verdicts(lost) == [(Verdict.NO_GO, Cause.SDM_NOT_APPLIED)]


def test_a_loss_whose_sdm_moves_nothing_ends_the_run():
    state = PolicyState(verdict=Verdict.GO, best=0.8)
    dead = {**SCHEDULED, "sdm_weight": 0.1, "sdm_gradient_share": 0.0}
    assert verdicts(at(600, 0.8, **dead), state=state) == [(Verdict.NO_GO, Cause.SDM_NOT_APPLIED)]
    alive = {**dead, "sdm_gradient_share": 0.01}
    assert verdicts(at(600, 0.8, **alive), state=state) == [(Verdict.GO, Cause.NONE)]
    assert verdicts(at(600, 0.1, **dead))[0][0] is Verdict.GO


def test_the_first_steps_of_sdm_are_not_judged():
    fresh = at(600, sdm_scheduled_steps=19, sdm_applied_share=0.0)
    assert verdicts(fresh) == [(Verdict.GO, Cause.NONE)]


def test_steps_that_stop_changing_anything_end_a_run_that_is_not_settled():
    still = {"head_moved": 0.0, "body_moved": 0.0}
    state = PolicyState(verdict=Verdict.GO, best=0.8)
    found = verdicts(at(600, 0.8, **still), at(700, 0.8, **still), state=state)
    assert found == [(Verdict.GO, Cause.NONE), (Verdict.NO_GO, Cause.STEP_SKIPPED)]
    assert verdicts(at(600, 0.3, **still), at(700, 0.3, **still))[-1][0] is Verdict.GO


def test_a_collapse_without_sdm_is_held_then_paused():
    reports = [at(1000 + 100 * i, 0.99) for i in range(4)]
    found = told(*reports)
    assert [d.verdict for d in found] == [Verdict.HOLD] * 3 + [Verdict.PAUSE]
    assert {d.cause for d in found} == {Cause.COLLAPSE}
    assert found[-1].findings[0].since == 1000


def test_a_paused_run_goes_on_with_new_patience():
    state = GO
    for i in range(4):
        state, _ = decide(state, at(1000 + 100 * i, 0.99), RULES)
    assert state.verdict is Verdict.PAUSE
    again = resumed(state, 1300)
    found = [d.verdict for d in told(*(at(1400 + 100 * i, 0.99) for i in range(4)), state=again)]
    assert found == [Verdict.HOLD] * 3 + [Verdict.PAUSE]
    assert resumed(GO, 5) == GO


def test_sdm_that_crowds_cross_entropy_out_is_held_and_taken_back():
    on = PolicyState(verdict=Verdict.GO, notch=1, notch_step=600, best=0.8)
    crowd = {**SCHEDULED, "sdm_weight": 0.1, "sdm_gradient_share": 0.95, "steps_per_epoch": 101}
    found = verdicts(*(at(700 + 100 * i, 0.8, **crowd) for i in range(3)), state=on)
    assert found == [
        (Verdict.GO, Cause.NONE),
        (Verdict.HOLD, Cause.SDM_TOO_LARGE),
        (Verdict.ROLLBACK, Cause.SDM_TOO_LARGE),
    ]
    falls = verdicts(*(at(700 + 100 * i, 0.8 - 0.02 * i, **crowd) for i in range(3)), state=on)
    assert falls == [(Verdict.GO, Cause.NONE)] * 3


def test_a_notch_is_tried_twice_and_then_no_more():
    state, seen = PolicyState(verdict=Verdict.GO, best=0.3), []
    sdm = {**SCHEDULED, "sdm_weight": 0.1, "sdm_gradient_share": 0.3}
    step = 0
    for _ in range(4):
        for fraction in (0.3, 0.99):
            step += 1863
            state, decision = decide(state, at(step, fraction, **sdm), RULES)
            seen.append(decision.verdict)
    assert seen[:4] == [Verdict.RAISE, Verdict.ROLLBACK] * 2
    assert Verdict.RAISE not in seen[4:]
    assert (state.notch, state.taken_back) == (0, (1, 1))


def test_one_collapse_over_two_notches_is_held_against_the_first_only():
    on = {**SCHEDULED, "sdm_weight": 0.5, "sdm_gradient_share": 0.3}
    state = PolicyState(verdict=Verdict.GO, notch=3, notch_step=6000, best=0.3)
    for step in (8000, 8100):
        state, decision = decide(state, at(step, 0.99, **on), RULES)
        assert decision.verdict is Verdict.ROLLBACK
    assert (state.notch, state.taken_back) == (1, (3,))
    raised = []
    for epoch in range(5, 12):
        state, decision = decide(state, at(1863 * epoch, 0.3, **on), RULES)
        raised += [a.value for a in decision.actions]
    assert raised == [0.3, 0.5]


def test_a_wrong_feature_length_holds_sdm_back():
    end = at(1863, feature_norm=2.0)
    assert verdicts(end) == [(Verdict.HOLD, Cause.FEATURE_NORM_OFF)]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"data_wait_share": 0.7}, Cause.DATA_STARVED),
        ({"throughput_ratio": 0.3}, Cause.THROUGHPUT_FALLEN),
        ({"top1": 1.0}, Cause.OVERFITTING),
    ],
)
def test_hints_are_told_and_change_nothing(changes: dict[str, float], cause: Cause):
    (decision,) = told(at(1863, **changes))
    assert (decision.verdict, decision.cause) == (Verdict.RAISE, cause)
    assert decision.findings
    assert [a.name for a in decision.actions] == ["sdm_weight"]


def test_cross_entropy_comes_before_sampling_and_sampling_before_norms():
    everything = {"pair_coverage": 0.5, "rows_without_positive": 0.5, "feature_norm": 1.0}
    state = PolicyState(verdict=Verdict.GO, best=0.94)
    (decision,) = told(at(900, 0.96, **everything), state=state)
    assert decision.cause is Cause.CE_REBOUND
    lines = [f.line for f in decision.findings]
    assert lines == ["ce_fraction", "rows_without_positive", "feature_norm"]


@pytest.mark.parametrize(
    ("line", "bound", "side"),
    [("ce_fraction", 0.951, 1), ("rows_without_positive", 0.3, 1), ("ce_swing", 0.15, 1)],
)
def test_noise_around_a_bound_does_not_flap(line: str, bound: float, side: int):
    state = PolicyState(verdict=Verdict.GO, best=0.94)
    noisy = [bound + side * 0.004 * (-1) ** i for i in range(1, 20)]
    values = [{line: v} | ({"pair_coverage": 1 - v} if "rows" in line else {}) for v in noisy]
    reports = [healthy(600 + 50 * i, **({"ce_fraction": 0.945} | v)) for i, v in enumerate(values)]
    found = [d.verdict is Verdict.HOLD for d in told(*reports, state=state)]
    changes = sum(a != b for a, b in itertools.pairwise(found))
    assert changes <= 1


def test_the_state_stays_small():
    state = GO
    for i in range(200):
        wild = at(100 * (i + 1), 0.3 + 0.68 * (i % 2), ce_swing=i % 3, top1=1.0)
        state, _ = decide(state, wild, RULES)
    assert len(state.since) < 20


def test_a_number_that_is_not_finite_ends_the_run_by_its_name():
    for state in (PolicyState(), GO):
        for line in ("ce_fraction", "head_norm", "sdm", "body_grad_norm"):
            state_after, decision = decide(state, healthy(50, **{line: math.nan}), RULES)
            assert (decision.verdict, decision.cause) == (Verdict.NO_GO, Cause.NON_FINITE)
            assert [f.line for f in decision.findings] == [line]
            assert state_after.verdict is Verdict.NO_GO


def test_a_run_that_stays_far_above_its_best_is_paused_in_the_end():
    state = PolicyState(verdict=Verdict.GO, best=0.2, rollbacks=1, rollback_step=500)
    reports = [at(1000 + 300 * i, 0.7, ce_slope=0.0) for i in range(4)]
    found = verdicts(*reports, state=state)
    assert [v for v, _ in found] == [Verdict.HOLD] * 3 + [Verdict.PAUSE]


def test_a_run_that_ends_far_above_its_best_is_no_go():
    state = PolicyState(verdict=Verdict.GO, best=0.2)
    end = at(5000, 0.9, total_steps=5000, ce_slope=0.0)
    assert verdicts(end, state=state) == [(Verdict.NO_GO, Cause.CE_REBOUND)]
    back = at(5000, 0.9, total_steps=5000, ce_slope=-0.01)
    assert verdicts(back, state=state)[0][0] is Verdict.GO
    near = at(5000, 0.3, total_steps=5000)
    assert verdicts(near, state=state) == [(Verdict.GO, Cause.NONE)]
    high = PolicyState(verdict=Verdict.GO, best=0.94)
    assert verdicts(at(5000, 0.96, total_steps=5000), state=high)[0][0] is Verdict.NO_GO


def test_p_that_cannot_be_lowered_is_paused_after_an_epoch():
    unpaired = {"rows_without_positive": 0.6, "pair_coverage": 0.4, "steps_per_epoch": 500}
    found = told(*(at(1000 + 100 * i, **unpaired) for i in range(10)))
    asked = [i for i, d in enumerate(found) if d.actions and d.actions[0].name == "ids_per_batch"]
    assert asked == [2]
    assert [d.verdict for d in found] == [Verdict.HOLD] * 9 + [Verdict.PAUSE]


def test_after_a_rollback_the_windows_settle_first():
    on = {**SCHEDULED, "sdm_weight": 0.3, "sdm_gradient_share": 0.3}
    state = PolicyState(verdict=Verdict.GO, notch=2, notch_step=1000, best=0.3)
    found = told(*(at(2000 + 50 * i, 0.99, **on) for i in range(3)), state=state)
    assert [d.verdict for d in found] == [Verdict.ROLLBACK, Verdict.HOLD, Verdict.ROLLBACK]
    assert found[0].findings[0].line == "ce_fraction"


def test_sdm_starts_in_its_epoch_and_no_sooner():
    late = Rules(PolicyConfig(), SdmConfig(start_epoch=4, min_steps=0))
    found = told(*(at(200 * e, steps_per_epoch=200) for e in range(1, 6)), rules=late)
    assert [d.verdict is Verdict.RAISE for d in found][:3] == [False, False, True]
    assert found[0].sdm_reason == "SDM starts in epoch 4"


def test_after_a_rollback_to_nothing_the_next_notch_waits_its_gap():
    state = PolicyState(
        verdict=Verdict.GO, best=0.5, rollbacks=1, rollback_step=1863, notch_step=1863
    )
    found = told(*(at(500 * i, steps_per_epoch=500) for i in (4, 5)), state=state)
    assert [d.verdict for d in found] == [Verdict.GO, Verdict.RAISE]


def test_the_patience_with_a_rise_counts_from_the_last_notch():
    state = PolicyState(verdict=Verdict.GO, notch=1, notch_step=1950, best=0.3)
    state = replace(state, since={"ce_rise": 1500})
    on = {**SCHEDULED, "sdm_weight": 0.1, "sdm_gradient_share": 0.3, "ce_slope": 0.0}
    found = told(*(at(step, 0.6, **on) for step in (2000, 2050)), state=state)
    assert [d.verdict for d in found] == [Verdict.HOLD, Verdict.ROLLBACK]


def test_the_length_of_the_head_is_noted_after_the_final_look_and_cut_again_half_as_much_later():
    state, limits = GO, []
    for epoch, norm in ((1, 2.0), (2, 4.0), (3, 13.0), (4, 20.0)):
        report = at(300 * epoch, steps_per_epoch=300, head_norm=norm, head_lr=1e-2)
        state, _ = decide(state, report, RULES)
        limits.append(state.head_limit)
    assert limits == [None, 12.0, 19.5, 19.5]
    assert (state.head_cuts, state.head_cut_step) == (1, 900)


def test_a_resumed_pause_over_pairing_gets_new_patience():
    paused = PolicyState(verdict=Verdict.PAUSE, ids_from=16, ids_step=100, ids_applied=True)
    state = resumed(paused, 3000)
    unpaired = {"rows_without_positive": 0.6, "pair_coverage": 0.4, "ids_per_batch": 8}
    found = told(*(at(3100 + 100 * i, **unpaired) for i in range(3)), state=state)
    assert [d.verdict for d in found] == [Verdict.HOLD, Verdict.HOLD, Verdict.PAUSE]


def test_memorised_is_a_hint_of_the_first_half_only():
    assert told(at(900, top1=1.0, total_steps=2000))[0].cause is Cause.OVERFITTING
    assert told(at(1100, top1=1.0, total_steps=2000))[0].cause is Cause.NONE


def test_all_hints_are_told_at_once():
    (decision,) = told(at(900, top1=1.0, data_wait_share=0.7))
    assert decision.cause is Cause.DATA_STARVED
    assert [f.line for f in decision.findings] == ["data_wait_share", "top1"]
    assert decision.suggestions


def test_a_small_head_alone_is_no_finding():
    small = healthy(200, head_growth=1.1)
    assert told(small, state=PolicyState())[0].findings == ()
