"""Base schedulers under Go/No-Go: they stop trials that fall behind, in steps, and never pause."""

import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    ResourceChangingScheduler,
    TrialScheduler,
)

from service.config import TuneConfig
from service.decisions import Verdict
from service.errors import ConfigError, RunError
from service.orchestration.bases import Base, make_base
from service.orchestration.scheduler import GoNoGoScheduler
from tests.reports import LN_C, healthy, stuck
from tests.sweeps import Sweep


def at(step: int, fraction: float) -> Any:
    """A healthy report with this CE over ln C."""
    return healthy(step, ce_fraction=fraction, ce=fraction * LN_C)


def made(tmp_path: Path, **values: Any) -> Sweep:
    tune = TuneConfig(base_grace_steps=200, **values)
    sweep = Sweep(tmp_path / "decisions.jsonl", base=make_base(tune, max_steps=10_000))
    for name in "abcde":
        sweep.add(name)
    return sweep


def test_fifo_stops_nobody(tmp_path: Path):
    sweep = made(tmp_path)
    for name, fraction in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.9), strict=True):
        sweep.report(at(5000, fraction), name)
    assert sweep.sent == []


def test_asha_stops_all_but_the_best_share_at_a_rung(tmp_path: Path):
    sweep = made(tmp_path, base="asha", reduction_factor=2)
    fractions = dict(zip("abcde", (0.5, 0.6, 0.4, 0.7, 0.3), strict=True))
    stopped: list[str] = []
    recorded: list[float] = []
    for name, fraction in fractions.items():
        sweep.report(at(200, fraction), name)
        better = sorted(recorded)[: math.ceil(len(recorded) / 2)]
        if recorded and fraction > max(better):
            stopped.append(name)
        recorded.append(fraction)
    assert stopped == ["b", "d"]
    assert [key for key, directive in sweep.sent if directive.stop] == stopped
    assert {directive.reason for _, directive in sweep.sent} == {"stopped by asha at step 200"}


def test_median_stops_a_trial_worse_than_the_median_of_enough_others(tmp_path: Path):
    sweep = made(tmp_path, base="median", min_trials=3)
    for name in "abc":
        sweep.report(at(200, 0.5), name)
        sweep.report(at(300, 0.4), name)
    sweep.report(at(300, 0.8), "d")
    sweep.report(at(300, 0.3), "e")
    assert [(key, d.reason) for key, d in sweep.sent] == [("d", "stopped by median at step 300")]


def test_nobody_is_stopped_by_the_base_before_its_grace_steps(tmp_path: Path):
    sweep = made(tmp_path, base="median", min_trials=1)
    for name, fraction in zip("abcde", (0.1, 0.2, 0.3, 0.8, 0.9), strict=True):
        sweep.report(at(199, fraction), name)
    assert sweep.sent == []


def test_a_stop_by_the_base_leaves_the_verdict_and_is_told_and_written_down(tmp_path: Path):
    sweep = made(tmp_path, base="asha", reduction_factor=2)
    sweep.report(at(200, 0.3), "a")
    sweep.report(at(200, 0.8), "b")
    record = sweep.scheduler.trials["b"]
    assert record.verdict is not None
    assert record.verdict.verdict is Verdict.GO
    assert record.note == "stopped by asha at step 200"
    line = sweep.lines[-1]
    assert (line["base"], line["directive"]["stop"]) == ("STOP", True)
    assert line["decision"]["actions"] == []
    assert sweep.heard[-1][1].reason == record.note
    sweep.report(at(300, 0.8), "b", directive=1)
    assert len(record.decisions) == 1


def test_no_go_needs_no_base_but_counts_in_its_rung(tmp_path: Path):
    sweep = made(tmp_path, base="asha", reduction_factor=2)
    sweep.report(stuck(300), "a")
    assert [(key, d.verdict) for key, d in sweep.sent] == [("a", "NO_GO")]
    sweep.report(at(300, 0.9), "b")
    assert [key for key, _ in sweep.sent] == ["a"]


def test_a_number_that_is_not_finite_is_kept_from_the_base(tmp_path: Path):
    base = Base(make_base(TuneConfig(base="median", base_grace_steps=1, min_trials=1), 100))
    for name in "ab":
        base.added(None, name)
    numbers = {"step": 10, "ce_fraction": 0.5}
    assert not base.stops(None, "a", numbers)
    assert not base.stops(None, "b", {**numbers, "ce_fraction": math.nan})
    assert base.stops(None, "b", {**numbers, "ce_fraction": 0.9})
    assert not base.stops(None, "b", {**numbers, "step": 20, "ce_fraction": 0.9})


@pytest.mark.parametrize("missing", ["step", "top1"])
def test_a_report_without_time_or_metric_is_refused(missing: str):
    base = Base(make_base(TuneConfig(base="median", metric="top1"), 1000))
    base.added(None, "a")
    numbers = {"step": 300, "top1": 0.1}
    del numbers[missing]
    with pytest.raises(RunError, match=f"trial a reported without '{missing}'.*median"):
        base.stops(None, "a", numbers)


@pytest.mark.parametrize(
    "base",
    [
        lambda: PopulationBasedTraining(time_attr="step", hyperparam_mutations={"x": [1, 2]}),
        lambda: HyperBandScheduler(time_attr="step", metric="ce", mode="min"),
        lambda: ResourceChangingScheduler(),
        lambda: MedianStoppingRule(time_attr="step", metric="ce", mode="min", hard_stop=False),
    ],
)
def test_schedulers_that_pause_are_refused_with_the_reason(base: Any, tmp_path: Path):
    sweep = Sweep(tmp_path / "d.jsonl")
    with pytest.raises(ConfigError, match=r"pausing trials.*hands Tune none.*asha or median"):
        GoNoGoScheduler(sweep.config, tmp_path / "d.jsonl", base=base())


def test_a_base_that_counts_reports_is_refused():
    scheduler = AsyncHyperBandScheduler(metric="ce", mode="min")
    with pytest.raises(
        ConfigError, match=r"time in 'training_iteration'; give it time_attr='step'"
    ):
        Base(scheduler)


@pytest.mark.parametrize("answer", [TrialScheduler.PAUSE, TrialScheduler.NOOP])
def test_a_base_that_pauses_a_trial_all_the_same_is_stopped(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sweep = made(tmp_path, base="asha")
    monkeypatch.setattr(AsyncHyperBandScheduler, "on_trial_result", lambda *_: answer)
    with pytest.raises(RunError, match=f"asha answered {answer} to trial a's report at step 200"):
        sweep.report(at(200, 0.5))
    assert sweep.sent == []


def test_a_first_rung_beyond_the_longest_trial_is_refused():
    with pytest.raises(ConfigError, match=r"tune.base_grace_steps=200 is more than the 120 steps"):
        make_base(TuneConfig(base="asha"), max_steps=120)
    make_base(TuneConfig(base="fifo"), max_steps=120)


def test_the_median_rule_never_yields_to_trials_that_wait(tmp_path: Path):
    class Controller:
        def get_live_trials(self) -> list[Any]:
            raise AssertionError("it looks for trials to yield to")

    base = Base(make_base(TuneConfig(base="median"), 1000))
    base.added(None, "a")
    assert not base.stops(Controller(), "a", {"step": 999, "ce_fraction": 1.0})
