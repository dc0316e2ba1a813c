"""The Tune scheduler without Ray: its trials are plain values and its clock is a list."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from service.config import TuneConfig
from service.decisions import Action, Decision, Directive, Verdict
from service.errors import ConfigError, RunError
from service.orchestration.bases import make_base
from service.orchestration.scheduler import GoNoGoScheduler
from service.orchestration.space import with_sample
from service.settings import override
from tests.reports import healthy, stuck
from tests.sweeps import Sweep, controller

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path / "decisions.jsonl")


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
    key, sent = sweep.sent[-1]
    raised = Directive(1, 0, (Action("sdm_weight", 0.1),), "RAISE", "RAISE", sent.state)
    assert (key, sent) == ("a", raised)
    assert sent.state is not None
    assert (sent.state.verdict, sent.state.notch) == (Verdict.GO, 1)


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
    assert sweep.killed == []
    sweep.time = sweep.config.tune.grace_s + 0.1
    assert sweep.report(stuck(500)) == STOP
    assert sweep.scheduler.trials["a"].killed
    assert sweep.killed == ["process of a"]


def test_a_trial_that_falls_silent_past_the_grace_period_is_killed(sweep: Sweep):
    sweep.report(stuck(300), trial="silent")
    sweep.report(healthy(200), trial="healthy")
    tune = controller("silent", "healthy")
    sweep.time = sweep.config.tune.grace_s + 0.1
    tune.stop_trial = lambda trial: tune.stopped.append((trial.trial_id, *sweep.killed))
    sweep.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == [("silent", "process of silent")], "killed before Tune asks it to leave"


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
    with pytest.raises(RunError, match=r"without the line 'head_norm'"):
        sweep.scheduler.on_trial_result(None, trial, {"health": values})


def test_the_last_report_of_a_trial_needs_no_health(sweep: Sweep):
    trial = SimpleNamespace(trial_id="a", config={})
    assert sweep.scheduler.on_trial_result(None, trial, {"outcome": "{}"}) == CONTINUE


def test_the_scheduler_pickles_without_its_way_to_the_trials(sweep: Sweep, tmp_path: Path):
    config = override(sweep.config, ["tune.grace_s=5"])
    scheduler = GoNoGoScheduler(config, tmp_path / "decisions.jsonl")
    scheduler.attach(lambda key, directive: None, lambda key, decision, state: None)
    again = pickle.loads(pickle.dumps(scheduler))
    trial = SimpleNamespace(trial_id="a", config={})
    with pytest.raises(RunError, match=r"attach"):
        again.on_trial_result(None, trial, {"health": stuck(300).to_dict()})


def test_decisions_are_journalled_with_time_state_and_directive(sweep: Sweep, tmp_path: Path):
    sweep.report(healthy(200))
    sweep.time = 5.0
    sweep.report(healthy(1863))
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert [(line["time"], line["trial"], line.get("step")) for line in lines] == [
        (1000.0, "a", None),
        (1000.0, "a", 200),
        (1005.0, "a", 1863),
    ]
    lines = lines[1:]
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


def decided(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, *answers: Decision) -> None:
    """Lets the policy answer with these, in order."""
    left = list(answers)
    monkeypatch.setattr(
        "service.orchestration.scheduler.decide",
        lambda state, report, rules: (state, replace(left.pop(0), step=report.step)),
    )


def test_a_pause_is_asked_for_like_a_stop_and_nothing_more_is_decided(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
):
    decided(sweep, monkeypatch, Decision(0, Verdict.PAUSE, actions=(Action("pause"),)))
    assert sweep.report(healthy(300)) == CONTINUE
    ((_, directive),) = sweep.sent
    assert (directive.stop, directive.verdict) == (True, "PAUSE")
    assert sweep.report(healthy(400), directive=1) == CONTINUE
    record = sweep.scheduler.trials["a"]
    assert [d.verdict for d in record.decisions] == [Verdict.PAUSE]
    assert (record.step, record.note) == (400, "")
    sweep.time = sweep.config.tune.grace_s + 0.1
    assert sweep.report(healthy(500), directive=1) == STOP


def test_what_an_older_directive_asked_for_in_vain_is_asked_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
):
    decided(
        sweep,
        monkeypatch,
        Decision(0, Verdict.RAISE, actions=(Action("sdm_weight", 0.1), Action("head_lr", 3e-3))),
        Decision(0, Verdict.ROLLBACK, actions=(Action("sdm_weight", 0.0),)),
        Decision(0, Verdict.GO, actions=(Action("head_lr", 1e-3),)),
    )
    sweep.report(healthy(300))
    sweep.report(healthy(400), directive=0)
    assert sweep.sent[-1][1].actions == (Action("head_lr", 3e-3), Action("sdm_weight", 0.0))
    sweep.report(healthy(500), directive=2)
    assert sweep.sent[-1][1].number == 3
    assert sweep.sent[-1][1].actions == (Action("head_lr", 1e-3),)


def test_a_journal_that_cannot_be_written_says_so_before_anything_is_sent(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
):
    sweep.report(stuck(200))
    sweep.journal.path.chmod(0o400)
    sweep.journal.path.rename(sweep.journal.path.with_suffix(".was"))
    sweep.journal.path.mkdir()
    with pytest.raises(RunError, match=r"journal .*decisions\.jsonl cannot be written"):
        sweep.report(stuck(300))
    assert sweep.sent == []


def test_no_more_trials_are_made_than_may_run_together(tmp_path: Path):
    sweep = Sweep(tmp_path / "decisions.jsonl")
    sweep.config = override(sweep.config, ["tune.max_concurrent=2"])
    sweep = Sweep(tmp_path / "other.jsonl", sweep.config)
    assert sweep.scheduler.has_room()
    first, _ = sweep.add("a"), sweep.add("b")
    assert not sweep.scheduler.has_room()
    sweep.scheduler.on_trial_complete(None, first, {"outcome": '{"verdict": "WAIT"}'})
    assert sweep.scheduler.has_room()
    sweep.scheduler.is_closed = True
    assert not sweep.scheduler.has_room()


def test_a_trial_that_was_asked_to_stop_and_lost_its_process_is_not_started_again(sweep: Sweep):
    trial = sweep.add("a")
    sweep.report(stuck(300))
    sweep.scheduler.on_trial_error(None, trial)
    sweep.add("a")
    tune = controller("a")
    tune.get_trials()[0].status = "PENDING"
    sweep.scheduler.choose_trial_to_run(tune)
    assert tune.stopped == ["a"]
    sweep.scheduler.on_trial_remove(None, trial)
    assert [line["event"] for line in sweep.lines] == ["trial", "decision", "end"]


def test_a_trial_that_the_user_or_the_cluster_stopped_has_not_ended_for_good(sweep: Sweep):
    outcomes = [
        {"verdict": "STOPPED", "words": "interrupted"},
        {"error": {"type": "ClusterError", "message": "lost"}},
        {"error": {"type": "DataError", "message": "bad"}},
        {"verdict": "WAIT"},
    ]
    for name, outcome in zip("abcd", outcomes, strict=True):
        trial = sweep.add(name)
        sweep.scheduler.on_trial_complete(None, trial, {"outcome": json.dumps(outcome)})
    assert [line["trial"] for line in sweep.lines if line["event"] == "end"] == ["c", "d"]
    assert sweep.scheduler.ended == set("abcd")


def test_a_trial_past_its_last_step_is_left_to_evaluate_though_it_falls_behind(tmp_path: Path):
    tune = TuneConfig(base="asha", base_grace_steps=150, reduction_factor=2)
    sweep = Sweep(tmp_path / "asha.jsonl", base=make_base(tune, 600))
    for name, fraction in (("first", 0.3), ("second", 0.4), ("last", 0.5)):
        sweep.add(name)
        sweep.report(replace(healthy(300, ce_fraction=fraction), total_steps=300), name)
    assert sweep.sent == []
    sweep.time = 10 * sweep.config.tune.grace_s
    running = controller("last")
    sweep.scheduler.choose_trial_to_run(running)
    assert running.stopped == []
    record = sweep.scheduler.trials["last"]
    assert (record.is_stopping, record.stop_at, record.note) == (False, None, "")
    # The base has heard of it all the same: a trial on the way is measured by it.
    sweep.add("other")
    sweep.report(replace(healthy(300, ce_fraction=0.5), total_steps=600), "other")
    assert [key for key, directive in sweep.sent if directive.stop] == ["other"]


def test_a_no_go_at_the_last_step_needs_no_stop(sweep: Sweep):
    assert sweep.report(replace(stuck(300), total_steps=300)) == CONTINUE
    record = sweep.scheduler.trials["a"]
    assert [d.verdict for d in record.decisions] == [Verdict.NO_GO]
    assert (sweep.sent, record.stop_at) == ([], None)


def test_a_trial_that_overtakes_its_stop_is_not_killed_while_it_evaluates(sweep: Sweep):
    sweep.report(replace(stuck(300), total_steps=400))
    sweep.time = sweep.config.tune.grace_s + 0.1
    assert sweep.report(replace(stuck(400), total_steps=400)) == CONTINUE
    running = controller("a")
    sweep.scheduler.choose_trial_to_run(running)
    assert (running.stopped, sweep.scheduler.trials["a"].killed) == ([], False)


UNFIT = {"policy.first_look": 900}


def test_a_sample_that_contradicts_itself_ends_its_trial_and_not_the_sweep(sweep: Sweep):
    with pytest.raises(ConfigError):
        with_sample(sweep.config, UNFIT)
    assert sweep.add("bad", **UNFIT).status == "TERMINATED"
    assert sweep.add("good").status == "PENDING"
    assert sweep.report(healthy(300), "good") == CONTINUE
    assert sweep.scheduler.ended == {"bad"}
    assert sweep.told == [("bad", {})]
    end = next(line for line in sweep.lines if line["event"] == "end")
    assert (end["trial"], end["outcome"]["error"]["type"]) == ("bad", "ConfigError")
    again = Sweep(sweep.journal.path, sweep.config)
    again.scheduler.replay(sweep.lines)
    assert again.add("bad", **UNFIT).status == "TERMINATED"
    assert again.add("good").status == "PAUSED"
    assert [line["trial"] for line in again.lines if line["event"] == "end"] == ["bad"]


def test_the_failures_that_a_continued_trial_may_have_are_those_of_the_config_now(tmp_path: Path):
    first = Sweep(tmp_path / "decisions.jsonl")
    first.add("a")
    again = Sweep(first.journal.path, override(first.config, ["cluster.max_failures=7"]))
    again.scheduler.replay(first.lines)
    assert again.add("a").max_failures == 7
