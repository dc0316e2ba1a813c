"""What must hold for any history of health reports."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bounds import Rules
from service.causes import WORDS, Cause
from service.config import HeadProbe, PolicyConfig, SdmConfig
from service.decisions import ACTIONS, Decision, PolicyState, Verdict
from service.gonogo import decide
from service.health import HealthReport
from tests.reports import LN_C, healthy, stuck

RULES = Rules(PolicyConfig(), SdmConfig(), HeadProbe())
EPOCH = 250
TOTAL = 4000

lines = st.fixed_dictionaries(
    {
        "ce_fraction": st.floats(0.0, 1.2),
        "ce_fall": st.floats(-0.2, 1.0),
        "ce_slope": st.floats(-0.1, 0.1),
        "ce_swing": st.floats(0.0, 0.5),
        "top1": st.floats(0.0, 1.0),
        "pair_coverage": st.floats(0.0, 1.0),
        "head_norm": st.floats(0.1, 200.0),
        "head_growth": st.floats(0.5, 100.0),
        "head_grad_norm": st.sampled_from([0.0, 1e-8, 0.1]),
        "head_moved": st.sampled_from([0.0, 0.01]),
        "body_grad_norm": st.sampled_from([None, 0.0, 0.1]),
        "body_moved": st.sampled_from([0.0, 0.001]),
        "head_lr": st.sampled_from([1e-2, 3e-3, 1e-3, 1e-4]),
        "feature_norm": st.floats(0.1, 30.0),
        "sdm_weight": st.sampled_from([0.0, 0.1, 0.5]),
        "sdm_rows": st.sampled_from([0.0, 32.0]),
        "sdm_scheduled_steps": st.sampled_from([0, 30, 100]),
        "sdm_applied_share": st.sampled_from([0.0, 0.4, 1.0]),
        "sdm_gradient_share": st.floats(0.0, 1.0),
        "ids_per_batch": st.sampled_from([2, 9, 16]),
        "throughput_ratio": st.floats(0.0, 2.0),
        "data_wait_share": st.floats(0.0, 1.0),
    }
)


def report(step: int, values: dict[str, Any]) -> HealthReport:
    more = {
        "ce": values["ce_fraction"] * LN_C,
        "rows_without_positive": 1 - values["pair_coverage"],
    }
    return healthy(step, steps_per_epoch=EPOCH, total_steps=TOTAL, **values, **more)


histories = st.lists(
    st.tuples(st.sampled_from([50, 100, 250, 500]), lines), min_size=1, max_size=25
).map(lambda items: [report(s, v) for s, v in zip(_steps(items), _values(items), strict=True)])


def _steps(items: list[tuple[int, Any]]) -> list[int]:
    step, steps = 0, []
    for gap, _ in items:
        step += gap
        steps.append(min(step, TOTAL))
    return steps


def _values(items: list[tuple[int, Any]]) -> list[Any]:
    return [values for _, values in items]


def fold(history: list[HealthReport], rules: Rules = RULES) -> tuple[PolicyState, list[Decision]]:
    state, told = PolicyState(), []
    for each in history:
        state, decision = decide(state, each, rules)
        told.append(decision)
    return state, told


@given(history=histories)
def test_the_same_history_gives_the_same_decisions_also_over_a_restart(
    history: list[HealthReport],
):
    state, told = PolicyState(), []
    for each in history:
        state = PolicyState.from_dict(json.loads(json.dumps(state.to_dict())))
        each = HealthReport.from_dict(json.loads(json.dumps(each.to_dict())))
        state, decision = decide(state, each, RULES)
        told.append(Decision.from_dict(json.loads(json.dumps(decision.to_dict()))))
    assert (state, told) == fold(history)


@given(history=histories)
def test_every_decision_explains_itself(history: list[HealthReport]):
    state, told = fold(history)
    was_over = False
    for each, decision in zip(history, told, strict=True):
        if decision.verdict not in (Verdict.WAIT, Verdict.GO, Verdict.RAISE) and not was_over:
            assert decision.findings
            assert decision.cause is not Cause.NONE
        if decision.cause is not Cause.NONE:
            assert all(WORDS[decision.cause])
        for finding in decision.findings:
            assert finding.step == each.step
            assert 0 < finding.since <= finding.step
        assert {a.name for a in decision.actions} <= set(ACTIONS)
        was_over = decision.verdict.ends
    assert len(state.since) <= 20


@given(history=histories)
def test_a_verdict_that_ends_a_run_is_final(history: list[HealthReport]):
    _, told = fold(history)
    verdicts = [d.verdict for d in told]
    over = next((i for i, v in enumerate(verdicts) if v.ends), len(verdicts))
    assert all(v is verdicts[over] for v in verdicts[over:])
    assert not any(d.actions for d in told[over + 1 :])


@given(history=histories)
def test_nothing_is_judged_before_the_first_look(history: list[HealthReport]):
    _, told = fold(history)
    for decision in told:
        if decision.step < RULES.policy.first_look:
            assert decision.verdict is Verdict.WAIT


@given(history=histories)
def test_no_action_raises_a_rate_but_the_probe_and_no_weight_by_two_notches(
    history: list[HealthReport],
):
    _, told = fold(history)
    weights = [0.0, *RULES.sdm.notches]
    at, has_probed = 0, False
    for each, decision in zip(history, told, strict=True):
        for action in decision.actions:
            if action.name == "head_lr" and decision.verdict is Verdict.WAIT:
                assert (action.value, has_probed) == (1e-2, False)
                has_probed = True
            elif action.name == "head_lr":
                assert action.value < each.head_lr
            elif action.name == "sdm_weight":
                now = weights.index(action.value)
                assert now - at == (1 if decision.verdict is Verdict.RAISE else -1)
                at = now
            elif action.name == "ids_per_batch":
                assert 2 <= action.value < each.ids_per_batch


@given(history=histories)
def test_notches_are_as_far_apart_as_the_settings_say(history: list[HealthReport]):
    _, told = fold(history)
    changes = [d for d in told if any(a.name == "sdm_weight" for a in d.actions)]
    gap = max(EPOCH, RULES.sdm.min_steps)
    for i, decision in enumerate(changes):
        if decision.verdict is Verdict.RAISE:
            assert decision.step % EPOCH == 0
            assert decision.step >= RULES.sdm.min_steps
            assert i == 0 or decision.step - changes[i - 1].step >= gap


RANK = {
    Verdict.NO_GO: 0,
    Verdict.PAUSE: 1,
    Verdict.ROLLBACK: 2,
    Verdict.WAIT: 3,
    Verdict.HOLD: 4,
    Verdict.GO: 5,
    Verdict.RAISE: 6,
}
WORSE = {
    "ce_fraction": 1,
    "ce_slope": 1,
    "ce_swing": 1,
    "pair_coverage": -1,
    "head_norm": 1,
    "data_wait_share": 1,
    "throughput_ratio": -1,
}


@pytest.mark.parametrize("line", WORSE)
@given(history=histories, values=lines, by=st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_a_worse_line_never_improves_the_next_verdict(
    line: str, history: list[HealthReport], values: dict[str, Any], by: float
):
    state, _ = fold(history[:-1])
    now = report(history[-1].step, values)
    worse = {**values, line: max(values[line] + WORSE[line] * by, 0.0)}
    if line == "ce_fraction":
        worse["ce_fall"] = values["ce_fall"] - by
    _, before = decide(state, now, RULES)
    _, after = decide(state, report(history[-1].step, worse), RULES)
    assert RANK[after.verdict] <= RANK[before.verdict]


@given(
    fractions=st.lists(st.floats(0.0, 0.9), min_size=3, max_size=40),
    noise=st.floats(0.0, 0.004),
)
def test_a_run_that_learns_is_never_stopped_paused_or_rolled_back(
    fractions: list[float], noise: float
):
    """Cross-entropy that falls from 0.9 ln C on, with noise on every report."""
    falling = sorted(fractions, reverse=True)
    history = [
        healthy(
            100 * (i + 2),
            steps_per_epoch=EPOCH,
            ce_fraction=f + noise * (-1) ** i,
            ce_slope=-1e-4,
            sdm_weight=0.1,
            sdm_scheduled_steps=100,
            sdm_rows=32.0,
            sdm_gradient_share=0.4,
        )
        for i, f in enumerate(falling)
    ]
    _, told = fold(history)
    assert {d.verdict for d in told} <= {Verdict.GO, Verdict.RAISE, Verdict.WAIT}


@given(level=st.floats(0.5, 0.98), noise=st.lists(st.floats(-1, 1), min_size=30, max_size=30))
def test_noise_smaller_than_the_margin_changes_a_hold_at_most_once(
    level: float, noise: list[float]
):
    state = PolicyState(verdict=Verdict.GO, best=0.5)
    margin = RULES.policy.margin
    held = []
    for i, wobble in enumerate(noise):
        fraction = level + 0.49 * margin * wobble
        each = healthy(600 + 50 * i, ce_fraction=fraction, ce_slope=-1.0, steps_per_epoch=10**6)
        state, decision = decide(state, each, RULES)
        held.append(decision.verdict in (Verdict.HOLD, Verdict.PAUSE))
    assert sum(a != b for a, b in itertools.pairwise(held)) <= 1


def test_thresholds_mean_the_same_for_any_number_of_classes():
    for num_classes in (8, 64, 400, 100_000):
        ln_c = math.log(num_classes)
        scale = ln_c / LN_C
        for base in (healthy(200), healthy(1863), stuck(300, top1=0.5), stuck(200)):
            scaled = replace(
                base, num_classes=num_classes, ce=base.ce * scale, ce_slope=base.ce_slope * scale
            )
            assert decide(PolicyState(), scaled, RULES)[1] == decide(PolicyState(), base, RULES)[1]
