"""Windows and trends against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.health import KINDS, Gauges, Health, HealthReport, StepSample

GAUGES = Gauges(
    head_norm=2.0,
    head_grad_norm=0.1,
    head_moved=0.01,
    head_lr=1e-2,
    sdm_scheduled=0.1,
    sdm_weight=0.1,
    sdm_reason="notch 1 of 3",
    memory_rows=96,
    memory_age=5,
    memory_equal=True,
    feature_norm_expected=8.0,
)


def sample(step: int, ce: float, **changes: float) -> StepSample:
    values = {
        "top1": 0.5,
        "unpaired": 0.0,
        "unpaired_with_memory": 0.0,
        "sdm": 0.0,
        "sdm_chance": 0.0,
        "sdm_rows": 0.0,
        "feature_norm": 8.0,
        "images": 80.0,
        "seconds": 0.5,
        "data_wait_s": 0.1,
    }
    kinds = (ce, None, ce, ce, ce, ce)
    return StepSample(step=step, ce=ce, ce_by_kind=kinds, **(values | changes))


def report(health: Health, step: int) -> HealthReport:
    return health.report(step=step, steps_per_epoch=10, total_steps=1000, gauges=GAUGES)


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
