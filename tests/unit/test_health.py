"""Windows and trends against brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.health import KINDS, MIN_TENTH, Gauges, Health, HealthReport, StepSample

GAUGES = Gauges(
    head_norm=2.0,
    head_grad_norm=0.1,
    head_moved=0.01,
    body_grad_norm=0.3,
    body_moved=0.001,
    head_lr=1e-2,
    sdm_reason="notch 1 of 3",
    sdm_gradient_share=0.2,
    memory_rows=96,
    memory_age=5,
    memory_equal=True,
    feature_norm_expected=8.0,
    ids_per_batch=16,
)


def sample(step: int, ce: float, **changes: float) -> StepSample:
    values = {
        "top1": 0.5,
        "unpaired": 0.0,
        "unpaired_with_memory": 0.0,
        "sdm": 0.0,
        "sdm_chance": 0.0,
        "sdm_rows": 0.0,
        "sdm_positives": 0.0,
        "sdm_scheduled": 0.0,
        "sdm_weight": 0.0,
        "feature_norm": 8.0,
        "images": 80.0,
        "seconds": 0.5,
        "data_wait_s": 0.1,
    }
    kinds = (ce, None, ce, ce, ce, ce)
    return StepSample(step=step, ce=ce, ce_by_kind=kinds, **(values | changes))


def report(health: Health, step: int, gauges: Gauges = GAUGES) -> HealthReport:
    return health.report(
        step=step,
        epoch=(step - 1) // 10 + 1,
        step_in_epoch=(step - 1) % 10 + 1,
        steps_per_epoch=10,
        total_steps=1000,
        gauges=gauges,
    )


@given(
    ces=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40),
    window=st.integers(1, 12),
    chunk=st.integers(1, 7),
)
def test_windows_equal_brute_force_however_the_steps_arrive(
    ces: list[float], window: int, chunk: int
):
    health = Health(num_classes=64, window=window)
    steps = [sample(i + 1, ce) for i, ce in enumerate(ces)]
    for start in range(0, len(steps), chunk):
        health.add(steps[start : start + chunk])
    found = report(health, len(ces))
    last = ces[-window:]
    assert found.ce == pytest.approx(np.mean(last))
    half = min(max(len(ces) // 2, 1), window)
    assert found.ce_first == pytest.approx(np.mean(ces[:half]))
    assert found.ce_fraction == pytest.approx(np.mean(last) / math.log(64))
    fall = np.mean(ces[:half]) - np.mean(ces[-half:])
    assert found.ce_fall == pytest.approx(fall / math.log(64), abs=1e-9)
    if len(last) > 1:
        slope = np.polyfit(np.arange(len(last)), last, 1)[0]
        assert found.ce_slope == pytest.approx(slope, abs=1e-6)


@given(ces=st.lists(st.floats(0.0, 10.0), min_size=2, max_size=30), cut=st.data())
def test_a_restored_health_reports_the_same(ces: list[float], cut: st.DataObject):
    at = cut.draw(st.integers(1, len(ces) - 1))
    steps = [sample(i + 1, ce) for i, ce in enumerate(ces)]
    straight = Health(64, 8)
    straight.start(0.5)
    straight.add(steps)
    first = Health(64, 8)
    first.start(0.5)
    first.add(steps[:at])
    second = Health(64, 8)
    second.load_state_dict(first.state_dict())
    second.start(99.0)
    second.add(steps[at:])
    assert report(second, len(ces)) == report(straight, len(ces))


def test_a_report_names_where_it_stands():
    health = Health(64, 4)
    health.add([sample(i, 4.0) for i in range(1, 11)])
    found = report(health, 10)
    assert (found.epoch, found.step_in_epoch, found.is_epoch_end) == (1, 10, True)
    assert report(health, 11).epoch == 2
    assert found.images_per_second == pytest.approx(160.0)
    assert found.data_wait_share == pytest.approx(0.2)
    assert HealthReport.from_dict(found.to_dict()) == found


def test_sdm_is_averaged_over_the_steps_that_had_it():
    health = Health(64, 4)
    health.add([sample(1, 4.0), sample(2, 4.0, sdm=2.0, sdm_chance=2.5, sdm_rows=30.0)])
    found = report(health, 2)
    assert (found.sdm, found.sdm_chance, found.sdm_rows) == (2.0, 2.5, 30.0)


def test_a_kind_without_rows_has_no_cross_entropy():
    health = Health(64, 4)
    health.add([sample(1, 4.0)])
    assert report(health, 1).ce_by_kind == {k: 4.0 for k in KINDS if k != "nir"}


def test_growth_is_measured_from_the_first_start_only():
    health = Health(64, 4)
    health.start(0.5)
    health.start(2.0)
    health.add([sample(1, 4.0)])
    assert report(health, 1).head_growth == pytest.approx(4.0)


def test_head_growth_of_a_window_is_over_the_report_one_window_ago():
    health, found = Health(64, 20), []
    for i, norm in enumerate([1.0, 2.0, 4.0, 8.0, 16.0]):
        step = 10 * (i + 1)
        health.add([sample(s, 4.0) for s in range(step - 9, step + 1)])
        found.append(report(health, step, replace(GAUGES, head_norm=norm)).head_window_growth)
    assert found == [1.0, 2.0, 4.0, 4.0, 4.0]


def test_throughput_is_held_against_the_median_of_earlier_reports():
    health, found = Health(64, 4), []
    for i, seconds in enumerate([0.5, 0.5, 5.0, 0.5]):
        health.add([sample(4 * i + k, 4.0, seconds=seconds) for k in range(1, 5)])
        found.append(report(health, 4 * i + 4).throughput_ratio)
    assert found == pytest.approx([1.0, 1.0, 0.1, 1.0])


@given(
    scheduled=st.lists(st.sampled_from([0.0, 0.1, 0.3]), min_size=1, max_size=30),
    applied=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_the_applied_share_counts_scheduled_steps_whose_loss_had_a_weight(
    scheduled: list[float], applied: list[bool]
):
    health = Health(64, 10)
    steps = [
        sample(i + 1, 4.0, sdm_scheduled=w, sdm_weight=w * ok, sdm_rows=8.0 * ok)
        for i, (w, ok) in enumerate(zip(scheduled, applied, strict=False))
    ]
    health.add(steps)
    found = report(health, len(steps))
    asked = [s for s in steps[-10:] if s.sdm_scheduled]
    done = [s for s in asked if s.sdm_weight]
    assert found.sdm_scheduled_steps == len(asked)
    assert found.sdm_applied_share == (len(done) / len(asked) if asked else 1.0)
    assert found.sdm_weight == steps[-1].sdm_weight


@given(
    ces=st.lists(st.floats(0.0, 6.0), min_size=1, max_size=150), window=st.sampled_from([20, 100])
)
def test_a_swing_is_the_largest_climb_between_tenths(ces: list[float], window: int):
    health = Health(64, window)
    health.add([sample(i + 1, ce) for i, ce in enumerate(ces)])
    last, size = ces[-window:], max(window // 10, MIN_TENTH)
    cut = len(last) % size
    tenths = np.array(last[cut:]).reshape(-1, size).mean(axis=1)
    climbs = [b - a for i, a in enumerate(tenths) for b in tenths[i:]]
    expected = max(climbs, default=0.0) / math.log(64)
    assert report(health, len(ces)).ce_swing == pytest.approx(expected, abs=1e-9)


def test_a_curve_that_only_falls_does_not_swing():
    health = Health(64, 100)
    health.add([sample(i + 1, 4.0 - i / 100) for i in range(100)])
    assert report(health, 100).ce_swing == 0.0
