"""How a sweep's results become rows and an exit code, and what the watch passes on; without Ray."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.config import Config, DataConfig
from service.decisions import Directive
from service.errors import DataError
from service.orchestration.background import Background
from service.orchestration.runs import Run
from service.orchestration.tune import Row, _exit_code, _row, _Watch
from service.orchestration.worker import error_values


@pytest.fixture
def sweep(tmp_path: Path) -> Run:
    return Run("sweep", tmp_path, Config(data=DataConfig(records="r")))


def result(
    error: Exception | None = None, outcome: dict[str, Any] | None = None, **metrics: Any
) -> Any:
    """As Tune returns it."""
    told = metrics | ({"outcome": json.dumps(outcome)} if outcome else {})
    return SimpleNamespace(metrics=told or None, config=None, error=error, path="/t/trial_7")


def test_a_trial_that_never_reported_has_a_line_with_its_error(sweep: Run):
    row = _row(sweep, result(RuntimeError("ray::trial()\n  at x\nValueError: why\n")), {})
    assert (row.trial, row.verdict, row.cause) == ("trial_7", "ERROR", "ValueError: why")
    silent = _row(sweep, result(RuntimeError("")), {})
    assert (silent.verdict, silent.cause) == ("ERROR", "RuntimeError")
    assert _row(sweep, SimpleNamespace(**{**vars(result()), "path": None}), {}).trial == "unknown"


def test_a_damaged_summary_costs_its_trial_only(sweep: Run):
    (sweep.path / "t1").mkdir()
    (sweep.path / "t1" / "summary.json").write_text("{")
    row = _row(sweep, result(trial_id="t1", outcome={"verdict": "WAIT"}), {})
    assert row.verdict == "ERROR"
    assert "is damaged" in row.cause


def test_a_sweep_of_errors_ends_with_the_exit_code_of_a_training(sweep: Run):
    fault = {"verdict": "ERROR", "words": "TypeError: x", "remedy": "see"}
    broken = _row(sweep, result(trial_id="a", outcome=fault), {})
    data = {"error": error_values(DataError("bad"))}
    mistaken = _row(sweep, result(trial_id="b", outcome=data), {})
    lost = _row(sweep, result(RuntimeError("gone"), trial_id="c"), {})
    assert (broken.exit_code, mistaken.exit_code, lost.exit_code) == (1, 2, 1)
    assert _exit_code((broken, lost)) == 1
    assert _exit_code((mistaken,)) == 2
    assert _exit_code((broken, mistaken)) == 1
    assert _exit_code((broken, Row("d", {}, "NO_GO"))) == 3
    assert _exit_code((broken, Row("d", {}, "NO_GO"), Row("e", {}, "GO"))) == 0
    assert _exit_code(()) == 2


def test_secrets_in_errors_do_not_reach_the_table(sweep: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORE_SECRET", "0123456789")
    row = _row(sweep, result(RuntimeError("refused 0123456789")), {})
    assert row.cause == "refused <STORE_SECRET>"


class Told:
    """A monitor and a reader that note what they are told, interrupted at the second look."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.ends: list[str] = []
        self.looks = 0
        self.put_while_closed: dict[str, bool] = {}
        self.started = ["a"]

    def look(self, reader: Any) -> None:
        self.looks += 1
        if self.looks == 2:
            raise KeyboardInterrupt

    def ended(self, key: str) -> None:
        self.ends.append(key)

    def put(self, key: str, directive: Directive) -> None:
        assert directive.stop
        self.put_while_closed[key] = self.scheduler.is_closed


def test_the_watch_tells_who_has_ended_and_starts_nothing_while_it_stops(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("service.orchestration.tune.LOOK_S", 0.01)
    monkeypatch.setattr("service.orchestration.train.LOOK_S", 0.01)
    monkeypatch.setattr("service.orchestration.train.STOP_S", 0.1)
    scheduler: Any = SimpleNamespace(trials={}, ended={"b"}, is_closed=False)
    told: Any = Told(scheduler)
    never: Any = SimpleNamespace(wait=lambda seconds: False)
    task: Background[Any] = never
    assert _Watch(task, scheduler, told, told).until_end() == ([], True)
    assert told.ends == ["b"]
    assert told.put_while_closed == {"a": True}
