"""Training on Ray workers: judged, surviving a killed worker, and refused when it cannot fit."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from service.config import Config
from service.errors import ClusterError, ExitCode, ModelError, RunError
from service.orchestration.progress import Update
from service.orchestration.runs import Run, create_run
from service.orchestration.summary import read_summary
from service.orchestration.train import ended, fit, launch_training
from service.orchestration.worker import Job, WorkerFault
from service.settings import override
from service.training.journal import read_journal
from tests.ray.processes import pids_of
from tests.small import small_config
from tests.states import checkpoints, step_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    # Ray Data, which Ray Train imports, warns of its own settings.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]


def config(records: Path, folder: Path, *overrides: str) -> Config:
    fixed = [f"run.storage={folder}", "cluster.num_workers=2", "telemetry.enabled=true"]
    return override(small_config(records, ["telemetry.port=0"]), [*fixed, *overrides])


class Watcher:
    """An `on_progress` that keeps what it heard, kills a worker at a step, interrupts at another.

    It is called in the main thread, where a Ctrl-C arrives.
    """

    def __init__(self, kill_at: int | None = None, interrupt_at: int | None = None) -> None:
        self.updates: list[Update] = []
        self.kill_at = kill_at
        self.interrupt_at = interrupt_at
        self.killed_at_s: float | None = None
        self.back_after_s: float | None = None

    def __call__(self, update: Update) -> None:
        self.updates.append(update)
        if self.kill_at is not None and update.step >= self.kill_at and self.killed_at_s is None:
            os.kill(pids_of("RayTrainWorker")[0], signal.SIGKILL)
            self.killed_at_s = time.monotonic()
        if self.killed_at_s and update.restarts and self.back_after_s is None:
            self.back_after_s = time.monotonic() - self.killed_at_s
        if self.interrupt_at is not None and update.step >= self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt

    @property
    def messages(self) -> list[str]:
        return [message for update in self.updates for message in update.messages]


def starts(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_journal(run.path) if event["event"] == "start"]


@pytest.mark.prove
def test_a_run_survives_a_killed_worker_an_interrupt_and_ends_judged_and_evaluated(
    records: Path, tmp_path: Path, record_property: Any
):
    settings = config(
        records,
        tmp_path,
        "train.max_steps=200",
        "train.checkpoint_every=10",
        "eval.after_training=true",
    )
    first = Watcher(kill_at=20, interrupt_at=100)
    run, outcome = launch_training(settings, on_progress=first)
    assert (outcome.verdict, outcome.exit_code) == ("INTERRUPTED", ExitCode.INTERRUPTED)
    assert outcome.remedy == f"continue it with --resume {run.path}"
    assert first.updates[-1].restarts == 1
    assert any("ended without a word" in message for message in first.messages)
    assert first.back_after_s is not None
    record_property("seconds_from_kill_to_training", round(first.back_after_s, 1))
    stopped_at = step_of(checkpoints(run.path)[-1])
    assert 100 <= stopped_at < 200

    with pytest.raises(RunError, match=r"another config: optim\.head_lr"):
        launch_training(override(settings, ["optim.head_lr=1e-5"]), resume=run.run_id)
    second = Watcher()
    again, outcome = launch_training(settings, resume=run.run_id, on_progress=second)
    assert again.path == run.path
    assert (outcome.verdict, outcome.exit_code) == ("GO", ExitCode.OK)
    assert (second.updates[-1].step, second.updates[-1].total) == (200, 200)
    assert any("metrics at http://127.0.0.1:" in message for message in second.messages)

    began = starts(run)
    assert [event["attempt"] for event in began] == [1, 2, 3]
    assert {event["world_size"] for event in began} == {2}
    assert began[1]["step"] >= 10
    assert began[1]["step"] % 10 == 0
    assert began[2]["step"] == stopped_at
    assert step_of(checkpoints(run.path)[-1]) == 200

    summary = read_summary(run.path)
    assert summary == outcome.summary
    assert summary["memory_hash_equal"] is True
    assert summary["mAP"]["mean"] > summary["chance_mAP"]
    with pytest.raises(RunError, match=f"run {run.run_id} has ended: GO after 200 steps"):
        launch_training(settings, resume=run.run_id)
    with pytest.raises(RunError, match="exists already"):
        launch_training(settings, run_id=run.run_id)


def test_what_the_workers_find_wrong_is_the_commands_error_and_not_retried(
    records: Path, tmp_path: Path
):
    watcher = Watcher()
    wrong = config(records, tmp_path, "model.freeze=[nothing.there]", "cluster.num_workers=1")
    with pytest.raises(ModelError, match=r"'nothing.there', which is no module"):
        launch_training(wrong, on_progress=watcher)
    assert max(update.restarts for update in watcher.updates) == 0


def test_a_fault_of_the_program_ends_the_run_with_its_traceback_and_is_not_retried(
    records: Path, tmp_path: Path
):
    settings = config(records, tmp_path, "cluster.num_workers=1")
    run = create_run(settings)

    def crash(values: dict[str, Any]) -> dict[str, Any]:
        tries = Path(values["run_dir"]) / "tries"
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        raise WorkerFault("TypeError: no such thing", "Traceback: here")

    outcome = ended(run, fit(settings, Job("", str(run.path), "", ""), worker=crash))
    assert (outcome.verdict, outcome.exit_code) == ("ERROR", 1)
    assert outcome.words == "TypeError: no such thing"
    assert (run.path / "error.txt").read_text() == "Traceback: here"
    assert (run.path / "tries").read_text() == "x"


def test_more_workers_than_the_cluster_has_are_refused_before_anything_starts(
    records: Path, tmp_path: Path
):
    with pytest.raises(ClusterError, match=r"needs 8 CPUs .* has 2; try cluster.num_workers=2"):
        launch_training(config(records, tmp_path, "cluster.num_workers=8"))
    assert not list(tmp_path.iterdir())
