"""How a sweep's results become rows, a best config and an exit code; without Ray."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.causes import Cause
from service.config import Config, DataConfig
from service.decisions import Action, Decision, Directive, Verdict
from service.errors import DataError, ExitCode
from service.gonogo import Rules
from service.orchestration.rows import (
    Row,
    Sweep,
    best_of,
    best_yaml,
    exit_code,
    open_row,
    row_of,
    short_decisions,
    verdict_of,
)
from service.orchestration.runs import Run, resume_run
from service.orchestration.summary import read_summary, write_summary
from service.orchestration.trials import TrialRecord
from service.orchestration.worker import error_values
from service.settings import load_config, override

CONFIG = Config(data=DataConfig(records="r"))


@pytest.fixture
def sweep(tmp_path: Path) -> Run:
    return Run("sweep", tmp_path, CONFIG)


def result(
    error: Exception | None = None, outcome: dict[str, Any] | None = None, **metrics: Any
) -> Any:
    """As Tune returns it."""
    told = metrics | ({"outcome": json.dumps(outcome)} if outcome else {})
    return SimpleNamespace(metrics=told or None, config=None, error=error, path="/t/trial_7")


def record(*decisions: Decision, directive: Directive | None = None, **values: Any) -> TrialRecord:
    return TrialRecord(
        Rules.of(CONFIG), decisions=list(decisions), directive=directive, total=1000, **values
    )


STUCK = Decision(300, Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL, actions=(Action("stop"),))
STOP = Directive(1, actions=(Action("stop"),), reason="stuck", verdict="NO_GO")


def test_a_trial_that_never_reported_has_a_line_with_its_error(sweep: Run):
    row = row_of(sweep, result(RuntimeError("ray::trial()\n  at x\nValueError: why\n")), {})
    assert (row.trial, row.verdict, row.cause) == ("trial_7", "ERROR", "ValueError: why")
    silent = row_of(sweep, result(RuntimeError("")), {})
    assert (silent.verdict, silent.cause) == ("ERROR", "RuntimeError")
    lost = SimpleNamespace(**{**vars(result()), "path": None})
    assert row_of(sweep, lost, {}).trial == "unknown"


def test_a_damaged_summary_costs_its_trial_only(sweep: Run):
    (sweep.path / "t1").mkdir()
    (sweep.path / "t1" / "summary.json").write_text("{")
    row = row_of(sweep, result(trial_id="t1", outcome={"verdict": "WAIT"}), {})
    assert row.verdict == "ERROR"
    assert "is damaged" in row.cause


def test_a_stopped_trial_says_why_and_what_it_saved(sweep: Run):
    (sweep.path / "t1").mkdir()
    write_summary(sweep.path / "t1", {"run_id": "t1", "verdict": "STOPPED", "steps": 310})
    known = {"t1": record(STUCK, directive=STOP, step=300)}
    row = row_of(sweep, result(trial_id="t1", outcome={"verdict": "STOPPED"}), known)
    assert (row.verdict, row.steps, row.total, row.saved) == ("NO_GO", 310, 1000, 690)
    assert row.told == STUCK.words
    summary = read_summary(sweep.path / "t1")
    assert summary is not None
    assert (summary["verdict"], summary["cause"]) == ("NO_GO", STUCK.words)


def test_a_stop_by_the_base_keeps_the_verdict_and_is_noted(sweep: Run):
    go = Decision(300, Verdict.GO)
    note = "stopped by asha at step 300"
    known = {"t1": record(go, directive=Directive.to_stop(1, note), step=320)}
    row = row_of(sweep, result(trial_id="t1", outcome={"verdict": "STOPPED"}), known)
    assert (row.verdict, row.cause, row.note, row.told) == ("GO", "", note, note)
    assert row.saved == 680


def test_a_paused_trial_says_so_where_train_resume_looks(sweep: Run):
    path = sweep.path / "t1"
    path.mkdir()
    (path / "config.yaml").write_text(CONFIG.to_yaml())
    pause = Decision(300, Verdict.PAUSE, actions=(Action("pause"),))
    directive = Directive(1, actions=pause.actions, verdict="PAUSE")
    write_summary(path, {"run_id": "t1", "verdict": "STOPPED", "steps": 310})
    known = {"t1": record(pause, directive=directive, step=300)}
    row = row_of(sweep, result(trial_id="t1", outcome={"verdict": "STOPPED"}), known)
    assert row.verdict == "PAUSE"
    assert row.remedy.endswith(f"continue it with crossreid train --resume {path}")
    summary = read_summary(path)
    assert summary is not None
    assert summary["verdict"] == "PAUSE"
    assert resume_run(str(path)).run_id == "t1"


def test_a_trial_killed_before_it_wrote_a_summary_gets_one(sweep: Run):
    (sweep.path / "t1").mkdir()
    known = {"t1": record(STUCK, directive=STOP, step=300, outcome={})}
    row = row_of(sweep, result(trial_id="t1"), known)
    assert (row.verdict, row.steps) == ("NO_GO", 300)
    assert read_summary(sweep.path / "t1") == {
        "run_id": "t1",
        "steps": 300,
        "verdict": "NO_GO",
        "cause": STUCK.words,
    }


def test_how_a_trial_ended_under_an_earlier_driver_counts(sweep: Run):
    outcome = {"error": error_values(DataError("bad"))}
    known = {"t1": record(outcome=outcome, sample={"run.seed": 4})}
    row = row_of(sweep, result(trial_id="t1"), known)
    assert (row.verdict, row.cause, row.exit_code) == ("ERROR", "bad", 2)
    assert row.sample == {"run.seed": 4}


def test_the_rows_of_an_interrupted_sweep_say_what_is_known(sweep: Run):
    go = open_row(sweep, "a", record(Decision(300, Verdict.GO), step=320))
    assert (go.verdict, go.steps, go.note) == ("GO", 320, "interrupted on the way")
    early = open_row(sweep, "b", record(Decision(100, Verdict.WAIT), step=100))
    assert early.verdict == "STOPPED"
    waiting = open_row(sweep, "c", record())
    assert (waiting.verdict, waiting.steps, waiting.saved) == ("STOPPED", 0, 0)
    stuck = open_row(sweep, "d", record(STUCK, directive=STOP, step=300, outcome={}))
    assert (stuck.verdict, stuck.note) == ("NO_GO", "")
    outcome = {"error": error_values(DataError("bad"))}
    assert open_row(sweep, "e", record(outcome=outcome)).verdict == "ERROR"


def test_a_sweep_of_errors_ends_with_the_exit_code_of_a_training(sweep: Run):
    fault = {"verdict": "ERROR", "words": "TypeError: x", "remedy": "see"}
    broken = row_of(sweep, result(trial_id="a", outcome=fault), {})
    data = {"error": error_values(DataError("bad"))}
    mistaken = row_of(sweep, result(trial_id="b", outcome=data), {})
    lost = row_of(sweep, result(RuntimeError("gone"), trial_id="c"), {})
    assert (broken.exit_code, mistaken.exit_code, lost.exit_code) == (1, 2, 1)
    assert exit_code((broken, lost)) == 1
    assert exit_code((mistaken,)) == 2
    assert exit_code((broken, mistaken)) == 1
    no_go, paused = Row("d", {}, "NO_GO"), Row("f", {}, "PAUSE")
    assert exit_code((broken, no_go)) == 3
    assert exit_code((paused, no_go)) == ExitCode.PAUSED
    assert exit_code((broken, no_go, paused, Row("e", {}, "GO"))) == 0
    assert exit_code(()) == 2


def test_secrets_in_errors_do_not_reach_the_table(sweep: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORE_SECRET", "0123456789")
    row = row_of(sweep, result(RuntimeError("refused 0123456789")), {})
    assert row.cause == "refused <STORE_SECRET>"


def test_the_best_trial_retrieves_best_and_its_config_can_be_trained(sweep: Run):
    rows = [
        Row("a", {"run.seed": 1}, "GO", summary={"ce_fraction": 0.2}),
        Row("b", {"run.seed": 2}, "GO", summary={"ce_fraction": 0.3, "mAP": {"mean": 0.4}}),
        Row("c", {"run.seed": 3}, "NO_GO", summary={"ce_fraction": 0.1}),
    ]
    best = best_of(rows, "ce_fraction")
    assert best is rows[1]
    assert best_of([rows[0], rows[2]], "ce_fraction") is rows[0]
    assert best_of([rows[2]], "ce_fraction") is None
    file = sweep.path / "best.yaml"
    file.write_text(best_yaml(sweep, best))
    assert load_config(file) == override(CONFIG, ["run.seed=2"])


@pytest.mark.parametrize(
    ("metric", "best"), [("ce", "b"), ("ce_fraction", "a"), ("top1", "b"), ("pair_coverage", "c")]
)
def test_without_evaluation_the_best_trial_is_so_by_the_metric_of_the_sweep(metric: str, best: str):
    lines = {
        "a": {"ce": 3.0, "ce_fraction": 0.2, "top1": 0.2, "pair_coverage": 0.7},
        "b": {"ce": 1.0, "ce_fraction": 0.4, "top1": 0.6, "pair_coverage": 0.8},
        "c": {"ce": 2.0, "ce_fraction": 0.3, "top1": 0.1, "pair_coverage": 0.9},
        "silent": {},
    }
    rows = [Row(trial, {}, "GO", summary=summary) for trial, summary in lines.items()]
    found = best_of(rows, metric)
    assert found is not None
    assert found.trial == best


def test_a_sweep_is_called_after_the_best_that_a_trial_got():
    def verdict(*verdicts: str) -> str:
        return verdict_of(Row(str(at), {}, verdict) for at, verdict in enumerate(verdicts))

    assert verdict("ERROR", "NO_GO", "PAUSE", "GO") == "GO"
    assert verdict("ERROR", "NO_GO", "PAUSE") == "PAUSE"
    assert verdict("ERROR", "NO_GO") == "NO_GO"
    assert verdict("ERROR", "ERROR") == "ERROR"
    assert verdict() == "UNKNOWN"


def test_decisions_are_told_when_they_say_something_new():
    known = record(
        Decision(100, Verdict.WAIT),
        Decision(200, Verdict.WAIT),
        Decision(300, Verdict.GO),
        Decision(400, Verdict.RAISE, actions=(Action("sdm_weight", 0.1),)),
        Decision(500, Verdict.RAISE, actions=(Action("sdm_weight", 0.3),)),
        Decision(600, Verdict.GO),
        Decision(700, Verdict.GO),
        directive=Directive.to_stop(3, "stopped by asha at step 700"),
        metrics={"step": 700},
    )
    short = short_decisions(known)
    assert [(d["step"], d["verdict"], d["actions"]) for d in short] == [
        (100, "WAIT", []),
        (300, "GO", []),
        (400, "RAISE", ["sdm_weight=0.1"]),
        (500, "RAISE", ["sdm_weight=0.3"]),
        (600, "GO", []),
        (700, "GO", ["stop"]),
    ]
    assert short[-1]["cause"] == "stopped by asha at step 700"


def test_the_steps_of_a_sweep_add_up(tmp_path: Path):
    rows = (
        Row("a", {}, "GO", steps=1000, total=1000),
        Row("b", {}, "NO_GO", steps=300, total=1000, saved=700),
        Row("c", {}, "ERROR", steps=10, total=1000),
    )
    found = Sweep("s", tmp_path, rows, rows[0], 0, {"a": []})
    values = json.loads(json.dumps(found.to_dict()))
    assert (values["steps"], values["steps_saved"], values["best"]) == (1310, 700, "a")
    assert set(values) >= {"trials", "best", "steps", "steps_saved", "decisions"}
