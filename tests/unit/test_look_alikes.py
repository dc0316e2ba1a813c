"""What the policy must not confuse: causes that look alike on one line and differ on another."""

from dataclasses import replace

import pytest

from service.bounds import Rules
from service.causes import Cause
from service.config import PolicyConfig, SdmConfig
from service.decisions import Decision, PolicyState, Verdict
from service.gonogo import decide
from service.health import HealthReport
from tests.reports import healthy

POLICY = PolicyConfig()
RULES = Rules(POLICY, SdmConfig())
LEARNED = PolicyState(verdict=Verdict.GO, notch=1, notch_step=1863, best=0.7)


def say(report: HealthReport, state: PolicyState = LEARNED) -> Decision:
    return decide(state, report, RULES)[1]


def with_sdm(step: int, **changes: float) -> HealthReport:
    """A report of a run that applies SDM and still has far to go."""
    lines = {
        "sdm_scheduled": 0.1,
        "sdm_weight": 0.1,
        "sdm_rows": 40.0,
        "sdm_scheduled_steps": 100,
        "sdm_gradient_share": 0.3,
        "ce_fraction": 0.7,
    }
    return healthy(step, **{**lines, **changes})


def test_sdm_without_gradient_is_named():
    assert say(with_sdm(2100)).cause is Cause.NONE
    lost = say(with_sdm(2100, sdm_gradient_share=0.0))
    assert (lost.verdict, lost.cause) == (Verdict.NO_GO, Cause.SDM_NOT_APPLIED)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("body_grad_norm", Cause.FEATURES_DETACHED),
        ("head_grad_norm", Cause.NO_GRADIENT),
    ],
)
def test_where_no_gradient_arrives_sdm_is_not_the_one_to_blame(line: str, cause: Cause):
    decision = say(with_sdm(2100, sdm_gradient_share=0.0, **{line: 0.0}))
    assert (decision.verdict, decision.cause) == (Verdict.NO_GO, cause)
    assert {f.line for f in decision.findings} == {"sdm_gradient_share", line}


def test_sdm_may_own_the_gradient_while_ce_goes_on_to_new_lows():
    lows = [with_sdm(2000 + 100 * i, ce_fraction=0.7 - 0.02 * i, ce_slope=0.0) for i in range(5)]
    state = LEARNED
    for low in lows:
        state, decision = decide(state, replace(low, sdm_gradient_share=0.98), RULES)
        assert (decision.verdict, decision.cause) == (Verdict.GO, Cause.NONE)


def test_sdm_that_owns_the_gradient_while_ce_stays_above_its_best_is_taken_back():
    state, said = LEARNED, []
    for step in (2000, 2100, 2200):
        stands = {"ce_fraction": 0.8, "ce_slope": 0.0, "steps_per_epoch": 150}
        report = with_sdm(step, **stands, sdm_gradient_share=0.98)
        state, decision = decide(state, report, RULES)
        said.append((decision.verdict, decision.cause))
    assert said == [
        (Verdict.GO, Cause.NONE),
        (Verdict.HOLD, Cause.SDM_TOO_LARGE),
        (Verdict.ROLLBACK, Cause.SDM_TOO_LARGE),
    ]


@pytest.mark.parametrize("lines", [{"ce_fraction": 3.0}, {"ce_fraction": 1.0, "ce_swing": 0.5}])
def test_logits_that_are_too_large_are_no_matter_of_labels(lines: dict[str, float]):
    stands = {"ce_fall": 0.0, "ce_slope": 0.001, "top1": 0.0025}
    report = healthy(300, **{**stands, **lines})
    decision = say(report, PolicyState())
    assert (decision.verdict, decision.cause) == (Verdict.NO_GO, Cause.FLUCTUATION)
    calm = replace(report, ce_fraction=1.0, ce_swing=0.0)
    assert say(calm, PolicyState()).cause is Cause.LABELS_SHUFFLED
