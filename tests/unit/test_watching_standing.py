"""Where a trial stands: what it does, why it ended, and when it will end."""

from datetime import UTC

import pytest

from service.causes import WORDS, Cause
from service.watching.asking import Answers
from service.watching.frame import Frame
from service.watching.head import head, summary
from service.watching.prometheus import Series
from service.watching.span import Span
from service.watching.standing import QUESTIONS, SILENT_S, Standing, pace, standings
from tests.pages import found, text

VERDICT, VERDICT_NOW, RUNNING, TOTAL, STEP, HEARTBEAT, ERROR, STEPS = QUESTIONS
NOW = 10_000.0
FRAME = Frame(Span(NOW - 600, 60.0, 11, 60.0), UTC, ("main",), ())


def told(
    *,
    verdict: str = "GO",
    before: str = "WAIT",
    is_gone: bool = False,
    cause: str = "none",
    running: float = 1.0,
    step: float = 500.0,
    total: float = 1000.0,
    heartbeat: float | None = NOW - 5,
    error: tuple[str, float] | None = None,
    steps: tuple[tuple[float, float], ...] = ((NOW - 105, 450.0), (NOW - 5, 500.0)),
) -> Answers:
    """What Prometheus answers of one trial that makes half a step a second."""
    main = {"trial": "main"}

    def one(value: float | None, **labels: str) -> tuple[Series, ...]:
        return () if value is None else (Series({**main, **labels}, ((NOW, value),)),)

    return {
        VERDICT: one((NOW - 15) * 1000, verdict=before, cause=cause),
        VERDICT_NOW: one(None if is_gone else NOW * 1000, verdict=verdict, cause=cause),
        RUNNING: one(running),
        TOTAL: one(total or None),
        STEP: one(step),
        HEARTBEAT: one(heartbeat),
        ERROR: one(error[1], cause=error[0]) if error else (),
        STEPS: (Series(main, steps),) if steps else (),
    }


def standing(**facts: object) -> Standing:
    (one,) = standings(told(**facts), ("main",), NOW)
    return one


def shown(one: Standing) -> str:
    return text(head("a run", [one], FRAME, NOW))


def test_a_trial_that_trains_says_when_it_ends():
    one = standing()
    assert (one.verdict, one.state, one.cause) == ("GO", "training", "")
    assert one.eta == pytest.approx(NOW - 5 + 500 / 0.5)
    assert "step 500 of 1,000 (50 %), ends about 03:03:15 (in 16m35s)" in shown(one)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"heartbeat": NOW - SILENT_S - 1}, "silent"),
        ({"is_gone": True}, "gone"),
        ({"heartbeat": None, "steps": (), "total": 0.0}, "no step yet"),
        ({"running": 0.0}, "ended"),
        ({"step": 1000.0}, "all steps done"),
        ({"verdict": "NO_GO", "cause": "head_lr_too_small"}, "stopped"),
        ({"verdict": "PAUSE", "cause": "sampler_not_pairing"}, "paused"),
        ({"error": ("non_finite", NOW - 4)}, "ended by an error"),
    ],
)
def test_a_trial_that_does_not_train_says_so_and_has_no_end_ahead(
    facts: dict[str, object], state: str
):
    one = standing(**facts)
    assert one.state == state
    assert one.eta is None
    assert state in shown(one)
    assert "ends about" not in shown(one)


def test_a_silent_trial_says_for_how_long():
    assert "silent for 5m00s" in shown(standing(heartbeat=NOW - 300))


def test_the_newest_verdict_counts_also_that_of_a_trial_that_is_gone():
    assert standing(verdict="RAISE", before="GO").verdict == "RAISE"
    assert standing(verdict="RAISE", before="NO_GO", is_gone=True).verdict == "NO_GO"


def test_a_trial_that_was_resumed_after_an_error_trains():
    assert standing(error=("non_finite", NOW - 300)).state == "training"


def test_a_cause_is_told_by_name_in_words_and_with_what_to_do():
    cause = Cause.HEAD_LR_TOO_SMALL
    page = shown(standing(verdict="NO_GO", cause=cause.value))
    words, remedy = WORDS[cause]
    assert words[1:] in page
    assert remedy[1:].replace("`", "") in page
    assert cause.value in page


def test_the_cause_of_an_error_comes_before_that_of_a_verdict():
    one = standing(cause="ce_rebound", error=("non_finite", NOW))
    assert one.cause == "non_finite"
    assert WORDS[Cause.NON_FINITE][0][1:] in shown(one)
    (big,) = found(head("a run", [one], FRAME, NOW), "strong", "verdict", "k-red")
    assert text(big) == "ERROR"


def test_an_unknown_cause_is_told_as_it_is():
    assert "of_the_future" in shown(standing(cause="of_the_future"))


def test_the_verdict_is_there_as_a_word_and_as_a_colour():
    drawn = head("a run", [standing(verdict="NO_GO")], FRAME, NOW)
    (big,) = found(drawn, "strong", "verdict", "k-red")
    assert text(big) == "NO_GO"


def test_trials_of_a_sweep_are_counted_by_verdict():
    many = [standing(), standing(), standing(verdict="NO_GO")]
    assert summary(many) == "2 GO, 1 NO_GO"
    assert "3 trials: 2 GO, 1 NO_GO" in text(head("a run", many, FRAME, NOW))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (((0.0, 0.0), (10.0, 5.0)), 0.5),
        # What lies before a restart says nothing.
        (((0.0, 100.0), (10.0, 0.0), (20.0, 10.0)), 1.0),
        # Nor does what lies ten minutes back.
        (((0.0, 0.0), (1000.0, 1.0), (1500.0, 501.0)), 1.0),
        (((0.0, 3.0),), None),
        (((0.0, 3.0), (10.0, 3.0)), None),
    ],
)
def test_the_pace_is_that_of_the_last_minutes_since_a_restart(
    points: tuple[tuple[float, float], ...], expected: float | None
):
    assert pace(points) == (None if expected is None else pytest.approx(expected))
