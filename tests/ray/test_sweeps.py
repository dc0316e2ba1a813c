"""Sweeps as Tune's own parts see them, and sweeps whose driver or trials go away."""

import json
import os
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from tensorboardX.proto.event_pb2 import Event

from service.config import Config
from service.errors import ExitCode
from service.orchestration.bases import StandIn
from service.orchestration.summary import read_summary
from service.orchestration.tune import launch_tuning
from service.settings import override
from service.training.journal import read_journal
from tests.ray.sweeping import (
    check_nothing_decided_twice,
    lines_of,
    processes_with,
    stop_in_a_row,
    wait_for,
)
from tests.small import small_config

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]
ROOT = Path(__file__).parents[2]


def scalars_in(folder: Path) -> Iterator[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in TensorBoard's files below `folder`."""
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


@pytest.mark.prove
@pytest.mark.usefixtures("cluster")
def test_asha_optuna_and_tensorboard_work_under_go_no_go(records: Path, tmp_path: Path):
    settings = override(
        small_config(records),
        [
            f"run.storage={tmp_path}",
            "cluster.poll_s=0.1",
            "run.seed=3",
            "tune.space={optim.head_lr: {loguniform: [3e-4, 1e-2]}}",
            "tune.samples=3",
            "tune.search=optuna",
            "tune.base=asha",
            "tune.base_grace_steps=60",
            "tune.reduction_factor=2",
            "tune.loggers=[tensorboard, csv]",
            "tune.max_concurrent=2",
            "train.max_steps=160",
        ],
    )
    sweep = launch_tuning(settings)
    decisions = lines_of(sweep.path, "decision")
    assert {line["metrics"]["step"] for line in decisions} == {line["step"] for line in decisions}

    # Ray's own scheduler, asked again about the same reports in the same order.
    asha = AsyncHyperBandScheduler("step", "ce_fraction", "min", 160, 60, 2, stop_last_trials=False)
    stopped: dict[str, int] = {}
    known: Any = {}
    for line in decisions:
        key = line["trial"]
        if key not in known:
            known[key] = StandIn(key)
            asha.on_trial_add(None, known[key])  # type: ignore[arg-type]
        answer = asha.on_trial_result(None, known[key], line["metrics"])  # type: ignore[arg-type]
        if answer == TrialScheduler.STOP:
            stopped[key] = line["step"]
    notes = {row.trial: row.note for row in sweep.rows if row.note}
    assert notes == {key: f"stopped by asha at step {step}" for key, step in stopped.items()}
    assert stopped
    saved = sum(160 - row.steps for row in sweep.rows if row.trial in stopped)
    assert sweep.steps_saved == saved > 0
    assert sweep.exit_code == ExitCode.OK

    trial = sweep.rows[0].trial
    (folder,) = (sweep.path / "tune").glob(f"*{trial}*/")
    found = {(t, step): value for t, step, value in scalars_in(folder)}
    mine = [line for line in decisions if line["trial"] == trial]
    for line in mine:
        for name in ("ce_fraction", "top1", "pair_coverage"):
            written = found["ray/tune/" + name, line["step"]]
            assert written == pytest.approx(line["metrics"][name], rel=1e-5)
    logged = {step for tag, step in found if tag == "ray/tune/head_norm"}
    assert {line["step"] for line in mine} <= logged
    assert max(logged) <= sweep.rows[0].steps
    assert "ce_fraction" in (folder / "progress.csv").read_text().splitlines()[0]


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("cluster")
def test_twenty_trials_stopped_in_a_row_leave_nothing(
    records: Path, tmp_path: Path, record_property: Any
):
    check_times(stop_in_a_row(records, tmp_path, 20), record_property)


@pytest.mark.prove
def test_trials_stopped_in_a_row_leave_nothing_where_the_dashboard_runs(
    records: Path, tmp_path: Path, record_property: Any
):
    words = [sys.executable, "-m", "tests.ray.sweeping", str(records), str(tmp_path), "4"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    check_times(json.loads(done.stdout.splitlines()[-1]), record_property)


def check_times(measured: dict[str, float], record_property: Any) -> None:
    for name, seconds in measured.items():
        record_property(name, round(seconds, 2))
    assert measured["decision_to_effect_s"] <= 1.0
    assert measured["stop_to_free_s"] <= 3.0


class Driver:
    """`crossreid tune` as a process of its own, with a Ray of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.mark = uuid.uuid4().hex
        environ = {**os.environ, "CROSSREID_TEST": self.mark, "OMP_NUM_THREADS": "1"}
        environ.pop("RAY_ADDRESS", None)
        self.log = folder / f"driver-{self.mark[:4]}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "tune", *words, "--json"],
                cwd=ROOT,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def kill(self) -> None:
        """Kills the driver and waits until its Ray has gone after it."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        wait_for(lambda: not processes_with("CROSSREID_TEST", self.mark), 120, "Ray has ended")

    def result(self) -> dict[str, Any]:
        out, _ = self.process.communicate()
        assert self.process.returncode == 0, self.log.read_text()[-3000:]
        return json.loads(out)


@pytest.fixture
def tiny(records: Path, tmp_path: Path) -> Config:
    """Three trials, two at a time; the second cannot learn."""
    return override(
        small_config(records),
        [
            f"run.storage={tmp_path}",
            "cluster.poll_s=0.1",
            "train.max_steps=400",
            "train.checkpoint_every=20",
            "tune.space={optim.head_lr: {grid: [3e-3, 1e-6, 2e-3]}}",
            "tune.max_concurrent=2",
        ],
    )


@pytest.mark.prove
def test_a_sweep_whose_driver_was_killed_goes_on_without_losing_or_repeating_anything(
    tiny: Config, tmp_path: Path
):
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    sweep = tmp_path / "night"
    first = Driver(tmp_path, str(tmp_path / "tiny.yaml"), "--run-id", "night")
    wait_for(lambda: bool(lines_of(sweep, "end")), 120, "a trial has ended")
    first.kill()
    (ended,) = lines_of(sweep, "end")
    decided = lines_of(sweep, "decision")
    with (sweep / "decisions.jsonl").open("a") as file:
        file.write('{"event": "decision", "trial": "torn')

    found = Driver(tmp_path, "--resume", str(sweep)).result()
    check_ended_as_planned(sweep, found)
    # The trial that had ended was not run again; the other went on from its own checkpoint.
    assert attempts(sweep, ended["trial"]) == [0]
    going = {line["trial"] for line in decided} - {ended["trial"]}
    for trial in going:
        started = attempts(sweep, trial)
        last = max((line["step"] for line in decided if line["trial"] == trial), default=0)
        assert len(started) == 2
        assert started[1] >= last - 40
    assert lines_of(sweep, "decision")[: len(decided)] == decided


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_sweep_whose_driver_is_killed_again_and_again_still_ends_as_planned(
    tiny: Config, tmp_path: Path
):
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    sweep = tmp_path / "night"
    driver = Driver(tmp_path, str(tmp_path / "tiny.yaml"), "--run-id", "night")
    for more in (1, 6, 8, 10):
        seen = len(lines_of(sweep, "decision"))
        wanted = seen + more
        wait_for(lambda w=wanted: len(lines_of(sweep, "decision")) >= w, 180, f"{wanted} decisions")
        driver.kill()
        driver = Driver(tmp_path, "--resume", str(sweep))
    check_ended_as_planned(sweep, driver.result())


def check_ended_as_planned(sweep: Path, found: dict[str, Any]) -> None:
    """As the same sweep ends without interruption: which trials, their verdicts and steps."""
    check_nothing_decided_twice(sweep)
    by_lr = {row["sample"]["optim.head_lr"]: row for row in found["trials"]}
    assert {lr: row["verdict"] for lr, row in by_lr.items()} == {
        3e-3: "GO",
        1e-6: "NO_GO",
        2e-3: "GO",
    }
    assert (by_lr[3e-3]["steps"], by_lr[2e-3]["steps"]) == (400, 400)
    assert by_lr[1e-6]["steps"] < 400
    assert len(lines_of(sweep, "trial")) == len(lines_of(sweep, "end")) == 3
    for row in found["trials"]:
        summary = read_summary(sweep / row["trial"])
        assert summary is not None
        assert summary["verdict"] == row["verdict"]


def attempts(sweep: Path, trial: str) -> list[int]:
    """The steps after which the trial's attempts began."""
    return [e["step"] for e in read_journal(sweep / trial) if e["event"] == "start"]
