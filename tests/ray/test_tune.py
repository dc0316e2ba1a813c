"""A sweep: one trial learns and is steered without a restart, the other is stopped and freed."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from service.decisions import Directive
from service.errors import ExitCode, RunError
from service.orchestration import tune
from service.orchestration.control import ControlReader
from service.orchestration.monitor import Monitor
from service.orchestration.orphans import actor_is_dead, end_actor
from service.orchestration.progress import Update
from service.orchestration.summary import read_summary
from service.orchestration.tune import BEST_FILE, JOURNAL, launch_tuning
from service.settings import load_config, override
from service.training.journal import read_journal
from tests.ray.sweeping import check_nothing_decided_twice
from tests.small import small_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


class Watcher:
    """Notes when a CPU was free after a NO_GO, and when a weight was applied."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.total = 0
        self.is_judged = False
        self.free_at: float | None = None
        self.steps_when_free: dict[str, int] = {}
        self.applied_at: dict[str, float] = {}

    def __call__(self, update: Update) -> None:
        if update.step:
            self.steps[update.trial], self.total = update.step, update.total
        for message in update.messages:
            self.is_judged |= "NO_GO" in message
            if message.startswith("[control]") and "sdm_weight=0.1" in message:
                self.applied_at[update.trial] = time.time()
        if self.is_judged and not self.free_at and ray.available_resources().get("CPU", 0) >= 1:
            self.free_at = time.time()
            self.steps_when_free = dict(self.steps)


def test_the_stuck_trial_is_stopped_and_freed_while_the_healthy_one_is_steered(
    records: Path, tmp_path: Path, record_property: Any
):
    settings = override(
        small_config(records),
        [
            f"run.storage={tmp_path}",
            "cluster.poll_s=0.1",
            "tune.space={optim.head_lr: {grid: [3e-3, 1e-6]}}",
            "tune.max_concurrent=2",
            "train.max_steps=200",
        ],
    )
    watcher = Watcher()
    sweep = launch_tuning(settings, on_progress=watcher)

    by_lr = {row.sample["optim.head_lr"]: row for row in sweep.rows}
    healthy, stuck = by_lr[3e-3], by_lr[1e-6]
    assert (healthy.verdict, stuck.verdict) == ("GO", "NO_GO")
    assert stuck.cause == "the head's learning rate is too small to move the head"
    assert healthy.steps == 200
    assert stuck.steps < 200
    assert sweep.exit_code == ExitCode.OK
    assert sweep.best == healthy

    lines = [json.loads(x) for x in (sweep.path / JOURNAL).read_text().splitlines()]
    assert [line["event"] for line in lines[:1]] == ["sweep"]
    decisions = [line for line in lines if line["event"] == "decision"]
    no_go = next(d for d in decisions if d["decision"]["verdict"] == "NO_GO")
    assert no_go["trial"] == stuck.trial
    assert watcher.free_at is not None
    assert watcher.steps_when_free[healthy.trial] < 200
    record_property("seconds_from_no_go_to_free_cpu", round(watcher.free_at - no_go["time"], 2))

    raised = next(d for d in decisions if d["decision"]["verdict"] == "RAISE")
    assert raised["trial"] == healthy.trial
    delay = watcher.applied_at[healthy.trial] - raised["time"]
    record_property("seconds_from_raise_to_its_echo_at_the_driver", round(delay, 2))

    journal = read_journal(sweep.path / healthy.trial)
    assert {event["attempt"] for event in journal} == {1}
    applied = next(event for event in journal if event["event"] == "directive")
    assert applied["directive"]["actions"] == [{"name": "sdm_weight", "value": 0.1}]
    later = [e["health"] for e in journal if e["event"] == "health" and e["step"] > applied["step"]]
    assert later[0]["sdm_weight"] == 0.1
    assert later[0]["sdm_rows"] > 0

    best = load_config(sweep.path / BEST_FILE)
    assert best.optim.head_lr[0].lr == 3e-3
    assert (
        best.fingerprint() == load_config(sweep.path / healthy.trial / "config.yaml").fingerprint()
    )
    summary = json.loads((sweep.path / "summary.json").read_text())
    assert summary["best"] == healthy.trial
    told = json.loads((sweep.path / stuck.trial / "summary.json").read_text())
    assert (told["verdict"], told["cause"]) == ("NO_GO", stuck.cause)


def test_a_trial_that_does_not_stop_is_killed_and_its_cpu_is_free(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    send = ControlReader.put

    def put(self: ControlReader, key: str, directive: Directive) -> None:
        """A trial that never hears that it must stop."""
        if not directive.stop:
            send(self, key, directive)

    killed: list[str | None] = []

    def end(actor: str | None) -> None:
        killed.append(actor)
        end_actor(actor)

    monkeypatch.setattr(ControlReader, "put", put)
    monkeypatch.setattr(tune, "end_actor", end)
    settings = override(
        small_config(records),
        [
            f"run.storage={tmp_path}",
            "tune.space={optim.head_lr: {grid: [1e-6]}}",
            "tune.grace_s=0.5",
            "train.max_steps=5000",
        ],
    )
    sweep = launch_tuning(settings)
    (row,) = sweep.rows
    assert (row.verdict, row.cause) == (
        "NO_GO",
        "the head's learning rate is too small to move the head",
    )
    assert row.steps < 5000
    assert sweep.exit_code == ExitCode.NO_GO
    (process,) = killed
    assert actor_is_dead(process or "")
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < until, "the killed trial still holds its CPU"
        time.sleep(0.2)


@pytest.mark.prove
def test_an_interrupted_sweep_starts_nothing_more_and_goes_on_when_it_is_resumed(
    records: Path, tmp_path: Path, record_property: Any, monkeypatch: pytest.MonkeyPatch
):
    settings = override(
        small_config(records),
        [
            f"run.storage={tmp_path}",
            "cluster.poll_s=0.1",
            "tune.space={run.seed: {grid: [0, 1]}}",
            "train.max_steps=150",
        ],
    )
    interrupted_at: list[float] = []

    def interrupt(update: Update) -> None:
        if update.step >= 70 and not interrupted_at:
            interrupted_at.append(time.monotonic())
            raise KeyboardInterrupt

    sweep = launch_tuning(settings, on_progress=interrupt)
    record_property("seconds_to_stop", round(time.monotonic() - interrupted_at[0], 1))
    assert sweep.exit_code == ExitCode.INTERRUPTED
    (row,) = sweep.rows
    assert row.note == "interrupted on the way"
    summary = read_summary(sweep.path / row.trial)
    assert summary is not None
    assert summary["verdict"] == "STOPPED"
    assert [path.name for path in sweep.path.glob("*/config.yaml")] == ["config.yaml"]

    # A driver so slow that trials have ended before it has heard their reports.
    decided = Monitor.decided
    monkeypatch.setattr(Monitor, "decided", lambda *told: (time.sleep(0.5), decided(*told)))
    again = launch_tuning(None, resume=str(sweep.path))
    assert [(row.verdict, row.steps) for row in again.rows] == [("GO", 150), ("GO", 150)]
    assert again.rows[0].trial == row.trial
    starts = [e["step"] for e in read_journal(sweep.path / row.trial) if e["event"] == "start"]
    assert starts[0] == 0
    assert starts[1:] == [summary["steps"]]
    check_nothing_decided_twice(sweep.path)
    with pytest.raises(RunError, match="has ended: GO after 300 steps"):
        launch_tuning(None, resume=str(sweep.path))
