"""The Tune scheduler without Ray: its trials are plain values and its clock is a list."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from service.config import Config, DataConfig
from service.decisions import Action, Decision, Directive, Verdict
from service.errors import RunError
from service.health import HealthReport
from service.orchestration.scheduler import GoNoGoScheduler
from service.settings import override
from tests.reports import healthy, stuck

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


class Sweep:
    """A scheduler with a clock that stands still, and what it sent and said."""

    def __init__(self, journal: Path, config: Config | None = None) -> None:
        self.config = config or Config(data=DataConfig(records="nowhere"))
        self.time = 0.0
        self.sent: list[tuple[str, Directive]] = []
        self.heard: list[tuple[str, Decision]] = []
        self.scheduler = GoNoGoScheduler(
            self.config, journal, clock=lambda: self.time, now=lambda: 1000.0 + self.time
        )
        self.attach()

    def attach(self) -> None:
        self.scheduler.attach(
            lambda key, directive: self.sent.append((key, directive)),
            lambda key, report, decision: self.heard.append((key, decision)),
        )

    def report(self, report: HealthReport, trial: str = "a", directive: int = 0, **sample: Any):
        found = SimpleNamespace(trial_id=trial, config=sample)
        result = {"health": json.dumps(report.to_dict()), "directive": directive}
        return self.scheduler.on_trial_result(None, found, result)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "decisions.jsonl")


def controller(*trials: str) -> Any:
    """A Tune controller with running trials that notes whom it was told to stop."""
    stopped: list[str] = []
    found = [SimpleNamespace(trial_id=name, status="RUNNING") for name in trials]
    return SimpleNamespace(
        get_trials=lambda: found,
        stop_trial=lambda trial: stopped.append(trial.trial_id),
        stopped=stopped,
        search_alg=None,
    )


def test_a_stuck_trial_is_asked_to_stop_with_the_cause_and_goes_on_until_it_does(sweep: Sweep):
    assert sweep.report(stuck(200)) == CONTINUE
    assert sweep.sent == []
    assert sweep.report(stuck(300)) == CONTINUE
    ((key, directive),) = sweep.sent
    assert (key, directive.number, directive.stop) == ("a", 1, True)
    assert "learning rate is too small" in directive.reason


def test_a_healthy_trial_is_sent_nothing_until_its_sdm_weight_rises(sweep: Sweep):
    sweep.report(healthy(200))
    assert sweep.sent == []
    sweep.report(healthy(1863))
    assert sweep.sent[-1] == ("a", Directive(1, 0, (Action("sdm_weight", 0.1),), "RAISE", "RAISE"))


def test_a_directive_is_repeated_until_its_echo_comes(sweep: Sweep):
    sweep.report(stuck(300))
    before = len(sweep.sent)
    sweep.report(stuck(400), directive=0)
    sweep.report(stuck(500), directive=0)
    assert len(sweep.sent) == before + 2
    assert {directive.number for _, directive in sweep.sent} == {1}
    sweep.report(stuck(600), directive=1)
    assert len(sweep.sent) == before + 2


def test_a_trial_that_reports_past_the_grace_period_is_killed(sweep: Sweep):
    sweep.report(stuck(300))
    sweep.time = sweep.config.tune.grace_s
    assert sweep.report(stuck(400)) == CONTINUE
    sweep.time = sweep.config.tune.grace_s + 0.1
    assert sweep.report(stuck(500)) == STOP
    assert sweep.scheduler.trials["a"].killed


def test_a_trial_that_falls_silent_past_the_grace_period_is_killed(sweep: Sweep):
    sweep.report(stuck(300), trial="silent")
    sweep.report(healthy(200), trial="healthy")
    tune = controller("silent", "healthy")
    sweep.time = sweep.config.tune.grace_s + 0.1
    sweep.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == ["silent"]


def test_each_trial_is_judged_by_its_own_sample(sweep: Sweep):
    sweep.report(stuck(300), trial="as configured")
    sweep.report(stuck(300), trial="patient", **{"policy.no_go_from": 400})
    assert [key for key, directive in sweep.sent if directive.stop][:1] == ["as configured"]
    assert {key for key, _ in sweep.sent} == {"as configured"}


def test_a_repeated_or_older_step_is_not_judged_again(sweep: Sweep):
    sweep.report(healthy(300))
    sweep.report(healthy(300))
    sweep.report(healthy(200))
    assert [decision.step for _, decision in sweep.heard] == [300]


@pytest.mark.parametrize("result", [{}, {"health": None}, {"loss": 1.0, "step": 3}])
def test_a_report_without_health_is_refused_by_name(sweep: Sweep, result: dict[str, Any]):
    trial = SimpleNamespace(trial_id="t7", config={})
    with pytest.raises(RunError, match=r"trial t7 reported without `health`"):
        sweep.scheduler.on_trial_result(None, trial, result)


def test_a_missing_health_line_is_named(sweep: Sweep):
    values = healthy(200).to_dict()
    del values["head_norm"]
    trial = SimpleNamespace(trial_id="t7", config={})
    with pytest.raises(RunError, match="without the line 'head_norm'"):
        sweep.scheduler.on_trial_result(None, trial, {"health": values})


def test_the_last_report_of_a_trial_needs_no_health(sweep: Sweep):
    trial = SimpleNamespace(trial_id="a", config={})
    assert sweep.scheduler.on_trial_result(None, trial, {"outcome": "{}"}) == CONTINUE


def test_the_scheduler_pickles_without_its_way_to_the_trials(sweep: Sweep):
    config = override(sweep.config, ["tune.grace_s=5"])
    scheduler = GoNoGoScheduler(config, Path("decisions.jsonl"))
    scheduler.attach(lambda key, directive: None, lambda key, report, decision: None)
    again = pickle.loads(pickle.dumps(scheduler))
    trial = SimpleNamespace(trial_id="a", config={})
    with pytest.raises(RunError, match="attach"):
        again.on_trial_result(None, trial, {"health": stuck(300).to_dict()})


def test_decisions_are_journalled_with_time_state_and_directive(sweep: Sweep, tmp_path: Path):
    sweep.report(healthy(200))
    sweep.time = 5.0
    sweep.report(healthy(1863))
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert [(line["time"], line["trial"], line["step"]) for line in lines] == [
        (1000.0, "a", 200),
        (1005.0, "a", 1863),
    ]
    assert [line["decision"]["verdict"] for line in lines] == ["GO", "RAISE"]
    assert lines[0]["directive"] is None
    assert lines[1]["directive"]["actions"] == [{"name": "sdm_weight", "value": 0.1}]
    assert lines[1]["state"]["notch"] == 1


def test_a_trial_counts_as_ended_until_tune_takes_it_up_again(sweep: Sweep):
    a, b, c = (SimpleNamespace(trial_id=name, config={}) for name in "abc")
    sweep.scheduler.on_trial_complete(None, a, {})
    sweep.scheduler.on_trial_error(None, b)
    sweep.scheduler.on_trial_remove(None, c)
    assert sweep.scheduler.ended == {"a", "b", "c"}
    sweep.scheduler.on_trial_add(None, b)
    assert sweep.scheduler.ended == {"a", "c"}


def test_a_closed_sweep_drops_what_waits_and_starts_nothing(sweep: Sweep):
    tune = controller("runs", "waits")
    tune.get_trials()[1].status = "PENDING"
    sweep.scheduler.is_closed = True
    assert sweep.scheduler.choose_trial_to_run(tune) is None
    assert tune.stopped == ["waits"]


def test_the_verdict_that_counts_is_the_last_one_beyond_waiting(sweep: Sweep):
    sweep.report(stuck(200))
    assert sweep.scheduler.trials["a"].verdict.verdict is Verdict.WAIT
    sweep.report(healthy(300))
    assert sweep.scheduler.trials["a"].verdict.verdict is Verdict.GO
