"""The documents' own story: their runs, row by row, and the verdict that each should have got.

C = 400, P = 4, K = 2, 1,863 steps an epoch, ln C = 5.99. Values that the documents do not give are
chosen; a row's lines are those that were seen, on top of a healthy report.
"""

from dataclasses import replace
from typing import Any

import pytest

from service.bounds import Rules
from service.causes import Cause
from service.config import OptimConfig, PolicyConfig, SdmConfig
from service.decisions import Decision, PolicyState, Verdict
from service.gonogo import decide
from service.health import HealthReport
from service.training.optim import HeadSchedule
from tests.reports import LN_C, healthy

RULES = Rules(PolicyConfig(), SdmConfig())
EPOCH = 1863
C = 400


def seen(step: int, ce: float, **changes: Any) -> HealthReport:
    """What was seen at `step`: cross-entropy in nats, and further lines; P = 4."""
    values: dict[str, Any] = {"ce": ce, "ce_fraction": ce / LN_C, "ids_per_batch": 4}
    if "unpaired" in changes:
        unpaired = changes.pop("unpaired")
        values |= {"pair_coverage": 1.0 - unpaired, "rows_without_positive": unpaired}
    return healthy(step, **(values | changes))


def sdm(weight: float, **more: Any) -> dict[str, Any]:
    """The lines of a window in which SDM had `weight`."""
    return {
        "sdm_weight": weight,
        "sdm_scheduled": weight,
        "sdm_scheduled_steps": 100,
        "sdm_gradient_share": 0.3,
        "sdm_rows": 8.0,
        **more,
    }


def tell(*reports: HealthReport, state: PolicyState | None = None) -> list[Decision]:
    state, told = state or PolicyState(), []
    for report in reports:
        state, decision = decide(state, report, RULES)
        told.append(decision)
    return told


FLAT = {"ce_fall": 0.0, "ce_slope": 0.0}


def test_s3_a_head_outside_the_optimiser_with_a_sampler_that_does_not_pair():
    last = tell(
        seen(
            500,
            5.95,
            ce_fall=0.005,
            ce_slope=0.0,
            head_moved=0.0,
            head_growth=1.0,
            top1=1 / C,
            unpaired=0.6,
            feature_norm=22.0,
            feature_norm_expected=22.6,
        )
    )[-1]
    assert (last.verdict, last.cause) == (Verdict.NO_GO, Cause.HEAD_NOT_IN_OPTIMIZER)
    assert [a.name for a in last.actions] == ["stop"]
    lines = [f.line for f in last.findings]
    assert lines[-1] == "rows_without_positive"
    assert "feature_norm" not in lines


def test_s2_a_head_that_cannot_move_waits_at_200_and_is_stopped_at_300():
    stuck = {**FLAT, "head_growth": 1.05, "top1": 0.05}
    first, last = tell(seen(200, 5.99, **stuck), seen(300, 5.99, **stuck))
    assert (first.verdict, first.actions) == (Verdict.WAIT, ())
    assert (last.verdict, last.cause) == (Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL)
    assert "1e-2" in last.remedy
    assert {f.line: f.since for f in last.findings}["ce_fraction"] == 200


START = seen(200, 5.46, top1=0.01, unpaired=0.17)
STRICT = {"unpaired": 0.0}


def test_s0_a_falling_run_is_go_with_a_warning_about_pairing():
    (go,) = tell(START)
    assert (go.verdict, go.cause) == (Verdict.GO, Cause.NOT_PAIRING)
    assert [f.line for f in go.findings] == ["pair_coverage"]
    assert not go.actions


def test_s0_sdm_is_deferred_while_rows_lack_positives():
    _, end = tell(START, seen(EPOCH, 1.58, unpaired=0.17))
    assert (end.verdict, end.cause, end.actions) == (Verdict.HOLD, Cause.NOT_PAIRING, ())
    assert "coverage" in end.reason


def test_s1_a_strict_sampler_raises_sdm_and_the_head_drops():
    _, end = tell(START, seen(EPOCH, 1.58, **STRICT))
    assert (end.verdict, [a.value for a in end.actions]) == (Verdict.RAISE, [0.1])
    entries = OptimConfig().head_lr
    head = HeadSchedule().at_epoch_end(entries, epoch=1, step=EPOCH, min_gap=EPOCH)
    assert head.lr(entries) == 3e-3


RAISED = (START, seen(EPOCH, 1.58, **STRICT))
SECOND = (
    seen(EPOCH + 200, 1.8, ce_slope=0.0005, **sdm(0.1, sdm=1.9, sdm_chance=2.08)),
    seen(2 * EPOCH, 1.5, top1=0.6, **sdm(0.1, sdm=1.7, sdm_chance=2.08)),
)
THIRD = (seen(3 * EPOCH, 1.45, top1=0.65, **sdm(0.3, sdm=1.5, sdm_chance=2.08)),)


def test_s1_the_expected_rise_after_sdm_is_no_reason_to_act():
    told = tell(*RAISED, SECOND[0])[-1]
    assert (told.verdict, told.actions, told.findings) == (Verdict.GO, (), ())


def test_s1_the_next_notches_follow_an_epoch_apart():
    told = tell(*RAISED, *SECOND, *THIRD)
    raised = [(d.step, d.actions[0].value) for d in told if d.verdict is Verdict.RAISE]
    assert raised == [(EPOCH, 0.1), (2 * EPOCH, 0.3), (3 * EPOCH, 0.5)]


FORCED = PolicyState(verdict=Verdict.GO, notch=1, notch_step=300, best=5.46 / LN_C)


def test_branch_a_rebound_above_the_hold_line_keeps_the_weight():
    (told,) = tell(seen(500, 5.75, **sdm(0.1)), state=FORCED)
    assert (told.verdict, told.cause, told.actions) == (Verdict.HOLD, Cause.CE_REBOUND, ())


def test_branch_a_rise_that_does_not_turn_takes_sdm_back():
    rise = {"ce_slope": 0.001, **sdm(0.1)}
    first, last = tell(*RAISED, seen(EPOCH + 200, 2.6, **rise), seen(EPOCH + 300, 2.6, **rise))[-2:]
    assert (first.verdict, first.actions) == (Verdict.HOLD, ())
    assert first.findings[0].bound == pytest.approx(1.58 / LN_C + 0.15)
    assert (last.verdict, last.cause) == (Verdict.ROLLBACK, Cause.SDM_TOO_LARGE)
    assert [(a.name, a.value) for a in last.actions] == [
        ("sdm_weight", 0.0),
        ("flush_memory", 0.0),
        ("audit_sampler", 0.0),
    ]
    assert last.findings[0].since == EPOCH + 200


def test_branch_a_rise_that_turns_is_left_alone():
    told = tell(
        *RAISED,
        seen(EPOCH + 200, 2.6, ce_slope=0.01, **sdm(0.1)),
        seen(EPOCH + 300, 2.5, ce_slope=-0.01, **sdm(0.1)),
        seen(EPOCH + 400, 1.7, ce_slope=-0.01, **sdm(0.1)),
    )
    assert [d.verdict for d in told[-3:]] == [Verdict.HOLD, Verdict.HOLD, Verdict.GO]


COLLAPSED = seen(2 * EPOCH + 200, 5.92, ce_slope=0.01, **sdm(0.3))


def test_branch_a_collapse_takes_one_notch_back_at_once():
    told = tell(*RAISED, *SECOND, COLLAPSED)[-1]
    assert (told.verdict, told.cause) == (Verdict.ROLLBACK, Cause.COLLAPSE_AFTER_SDM)
    assert [(a.name, a.value) for a in told.actions][:2] == [
        ("sdm_weight", 0.1),
        ("flush_memory", 0.0),
    ]


def test_branch_a_collapse_that_stays_without_sdm_is_paused():
    begin = 2 * EPOCH + 200
    later = [seen(begin + 100 * i, 5.93, **FLAT) for i in range(1, 6)]
    told = tell(*RAISED, *SECOND, COLLAPSED, *later)[-6:]
    verdicts = [d.verdict for d in told]
    back, hold, pause = Verdict.ROLLBACK, Verdict.HOLD, Verdict.PAUSE
    assert verdicts == [back, back, hold, hold, pause, pause]
    assert told[4].step - told[1].step == 300
    assert told[4].cause is Cause.COLLAPSE_AFTER_SDM
    assert [a.name for a in told[4].actions] == ["pause"]


def test_one_unpaired_batch_changes_nothing():
    healthy_run = tell(*RAISED, seen(EPOCH + 100, 1.6, **sdm(0.1)))[-1]
    one_batch = tell(*RAISED, seen(EPOCH + 100, 1.6, unpaired=0.0033, **sdm(0.1)))[-1]
    assert one_batch == healthy_run


def test_three_unpaired_windows_lower_p_and_then_pause():
    def window(i: int, **more: Any) -> HealthReport:
        return seen(EPOCH + 100 * i, 1.6, unpaired=0.4, **sdm(0.1), **more)

    told = tell(*RAISED, *(window(i) for i in range(1, 5)))[-4:]
    assert [d.verdict for d in told] == [Verdict.HOLD] * 4
    assert [len(d.actions) for d in told] == [0, 0, 1, 0]
    action = told[2].actions[0]
    assert (action.name, action.value) == ("ids_per_batch", 2)
    assert {d.cause for d in told} == {Cause.NOT_PAIRING}
    first = EPOCH // 100 + 1
    lowered = [window(i, ids_per_batch=2) for i in range(first, first + 3)]
    told = tell(*RAISED, *(window(i) for i in range(1, 5)), *lowered)[-3:]
    assert [d.verdict for d in told] == [Verdict.HOLD, Verdict.HOLD, Verdict.PAUSE]


def test_a_head_that_grows_without_end_is_cut_twice():
    def at(step: int, norm: float, lr: float) -> HealthReport:
        return seen(step, 1.5, head_norm=norm, head_lr=lr, **STRICT, **sdm(0.1))

    end = replace(RAISED[1], head_norm=7.0)
    told = tell(
        START,
        end,
        at(EPOCH + 500, 20.0, 1e-2),
        at(2 * EPOCH - 1, 35.0, 1e-2),
        at(2 * EPOCH + 400, 53.0, 3e-3),
        at(3 * EPOCH + 100, 54.0, 3e-3),
    )[2:]
    assert [d.verdict for d in told] == [Verdict.GO, Verdict.HOLD, Verdict.HOLD, Verdict.HOLD]
    assert [[a.value for a in d.actions] for d in told] == [[], [3e-3], [], [1e-3]]
    assert {d.cause for d in told[1:]} == {Cause.HEAD_GROWTH}


def test_large_swings_hold_and_suggest():
    told = tell(*RAISED, seen(EPOCH + 400, 1.6, ce_swing=0.2, **sdm(0.1)))[-1]
    assert (told.verdict, told.cause) == (Verdict.HOLD, Cause.FLUCTUATION)
    assert told.suggestions == (
        "loss.label_smoothing=0.15",
        "optim.head_lr=1e-3",
        "optim.weight_decay=5e-4",
    )


def test_large_batches_are_go_at_200_and_get_sdm_at_step_697():
    reports = [healthy(200, steps_per_epoch=232)]
    reports += [healthy(232 * epoch, steps_per_epoch=232) for epoch in range(1, 5)]
    told = tell(*reports)
    assert told[0].verdict is Verdict.GO
    assert [d.step + 1 for d in told if d.verdict is Verdict.RAISE] == [697]
