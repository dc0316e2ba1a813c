"""The table of metrics: names, units, fields and a trial's snapshot."""

import re
from dataclasses import fields

import pytest

from service.config import PolicyConfig
from service.decisions import Verdict
from service.health import HealthReport
from service.telemetry.lines import (
    BY_NAME,
    GATES,
    LINES,
    checked,
    health_values,
    threshold_values,
)
from service.telemetry.trial import TrialSeries
from tests.reports import CONFIG, HEALTHY, START, config, decision


def test_names_are_unique_and_legal_and_counters_end_with_total():
    assert len(BY_NAME) == len(LINES)
    for line in LINES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", line.name)
        assert line.name.endswith("_total") == (line.kind == "counter")
        assert line.help


def test_every_line_that_shows_a_health_line_names_a_field_of_the_report():
    known = {field.name for field in fields(HealthReport)}
    assert {line.field for line in LINES if line.field} <= known


def test_every_number_of_a_health_report_is_exported():
    shown = {line.field for line in LINES} | {"step", "total_steps", "ce_by_kind"}
    told_otherwise = {"step_in_epoch", "steps_per_epoch", "window", "sdm_reason", "ce_first"}
    assert {field.name for field in fields(HealthReport)} - shown == told_otherwise


def test_every_limit_of_the_policy_is_exported_by_its_own_name():
    known = PolicyConfig.model_fields
    limits = {name for name in known if known[name].annotation is float}
    assert set(GATES) == limits
    assert threshold_values(config(PolicyConfig(go=0.92)))["gate_threshold"]["go",] == 0.92


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_gate_state(verdict: Verdict):
    series = TrialSeries(CONFIG)
    series.decision(decision(verdict), now=5.0)
    state = series.values["gate_state"]["verdict",]
    assert state == {"WAIT": 0, "NO_GO": 2, "PAUSE": 3}.get(verdict.value, 1)


def test_decisions_are_counted_and_keep_the_time_of_the_last():
    series = TrialSeries(CONFIG)
    for now in (1.0, 2.0):
        series.decision(decision(Verdict.GO), now)
    key = ("verdict", "GO")
    assert series.values["gate_decisions_total"][key] == 2
    assert series.values["gate_decision_timestamp_seconds"][key] == 2.0


def test_a_snapshot_is_complete_and_shares_nothing_with_later_ones():
    series = TrialSeries(CONFIG)
    series.health(HEALTHY)
    before = series.values
    series.restart()
    assert before["restarts_total"][()] == 0
    assert series.values["restarts_total"][()] == 1
    assert checked(before) == before
    assert set(health_values(HEALTHY)) <= set(before)


def test_steps_images_and_phases_add_up():
    series = TrialSeries(CONFIG)
    for _ in range(2):
        event = {"count": 25, "images": 2000.0, "seconds": 0.4, "data_wait_s": 0.1}
        series.steps(event)
    values = series.values
    assert values["steps_total"][()] == 50
    assert values["images_total"][()] == 4000
    assert values["step_phase_seconds_total"]["data",] == pytest.approx(5.0)
    assert values["step_phase_seconds_total"]["compute",] == pytest.approx(15.0)


def test_device_hours_are_used_by_the_clock_and_saved_by_the_steps_left_out():
    series = TrialSeries(config(num_workers=4, gpus_per_worker=2.0))
    series.step(1, 1000, 100.0)
    series.steps({"count": 100, "images": 1.0, "seconds": 36.0, "data_wait_s": 0.0})
    series.step(100, 1000, 3700.0)
    series.stopped(100)
    assert series.values["device_hours_used"]["gpu",] == pytest.approx(8.0)
    assert series.values["device_hours_saved"]["gpu",] == pytest.approx(900 * 36 * 8 / 3600)


def test_only_the_verdict_in_force_is_shown_with_its_cause():
    series = TrialSeries(CONFIG)
    assert series.values["verdict_info"] == {("WAIT", "none"): 1.0}
    series.decision(decision(Verdict.HOLD, "ce_rebound"), 1.0)
    series.decision(decision(Verdict.GO), 2.0)
    assert series.values["verdict_info"] == {("GO", "none"): 1.0}


def test_checkpoints_and_errors_keep_their_time():
    series = TrialSeries(CONFIG)
    series.checkpoint(500, 10.0)
    series.error("non_finite", 11.0)
    series.start({**START, "precision": "bf16"})
    values = series.values
    assert (values["checkpoint_step"][()], values["checkpoint_timestamp_seconds"][()]) == (500, 10)
    assert values["error_timestamp_seconds"] == {("non_finite",): 11.0}
    assert values["run_info"] == {("2", "bf16"): 1.0}


def test_lost_checkpoints_are_counted_and_a_written_one_ends_a_row_of_failures():
    series = TrialSeries(CONFIG)
    assert set(series.values["checkpoint_faults_total"].values()) == {0.0}
    for fault in ("failed", "failed", "skipped", "damaged"):
        series.checkpoint_fault(fault)
    assert series.values["checkpoints_failed_in_a_row"] == {(): 2.0}
    series.checkpoint(500, 10.0)
    series.checkpoint_fault("skipped")
    values = series.values
    assert values["checkpoints_failed_in_a_row"] == {(): 0.0}
    faults = {("failed",): 2.0, ("skipped",): 2.0, ("damaged",): 1.0}
    assert values["checkpoint_faults_total"] == faults
