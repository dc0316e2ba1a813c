"""Training in this process through the same door as on Ray: interrupted, resumed, evaluated."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import CheckpointError, DataError, ExitCode, NonFiniteError, SamplerError
from service.orchestration.evaluate import evaluate_run
from service.orchestration.local import train_here
from service.orchestration.progress import Update
from service.orchestration.runs import create_run
from service.orchestration.summary import read_summary
from service.settings import override
from service.telemetry.sinks.event_files import FOLDER
from tests.journals import texts
from tests.small import small_config


def test_an_interrupted_run_goes_on_where_it_was_and_can_be_evaluated(
    records: Path, tmp_path: Path
):
    settings = override(small_config(records), [f"run.storage={tmp_path}"])
    updates: list[Update] = []

    def interrupt(update: Update) -> None:
        updates.append(update)
        if update.step >= 5 and not any(u.step >= 5 for u in updates[:-1]):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run, outcome = train_here(settings, on_progress=interrupt)
    assert (outcome.verdict, outcome.exit_code) == ("INTERRUPTED", ExitCode.INTERRUPTED)
    assert signal.getsignal(signal.SIGINT) is before
    stopped = read_summary(run.path)
    assert stopped is not None
    assert stopped["verdict"] == "STOPPED"
    assert 5 <= stopped["steps"] < settings.train.max_steps
    assert any("[sampler]" in message for update in updates for message in update.messages)

    again, outcome = train_here(None, resume=str(run.path))
    assert again.path == run.path
    assert (outcome.verdict, outcome.exit_code) == ("GO", ExitCode.OK)
    assert outcome.summary["steps"] == settings.train.max_steps

    _, summary = evaluate_run(str(run.path))
    assert summary["evaluated_step"] == settings.train.max_steps
    assert summary["mAP"]["mean"] > summary["chance_mAP"]
    assert summary["verdict"] == "GO"
    assert read_summary(run.path) == summary


def test_an_interrupt_after_the_last_step_changes_nothing(records: Path, tmp_path: Path):
    settings = override(
        small_config(records), [f"run.storage={tmp_path}", "train.max_steps=20", "policy.window=10"]
    )

    stopped: list[int] = []

    def interrupt(update: Update) -> None:
        if update.step == settings.train.max_steps and not stopped:
            stopped.append(update.step)
            os.kill(os.getpid(), signal.SIGINT)

    run, outcome = train_here(settings, on_progress=interrupt)
    summary = read_summary(run.path)
    assert summary is not None
    assert outcome.verdict == summary["verdict"] != "STOPPED"
    assert outcome.verdict != "INTERRUPTED"


def test_an_error_before_the_first_look_is_told_to_the_sinks_too(records: Path, tmp_path: Path):
    overflow = ["model.neck.norm_scale=1e38", "telemetry.sinks=[tensorboard]"]
    settings = override(small_config(records), [f"run.storage={tmp_path}", *overflow])
    with pytest.raises(NonFiniteError):
        train_here(settings, run_id="broken")
    assert "run/error" in {tag for tag, _, _ in texts(tmp_path / "broken" / FOLDER)}


def test_a_run_without_a_checkpoint_cannot_be_evaluated(records: Path, tmp_path: Path):
    run = create_run(override(small_config(records), [f"run.storage={tmp_path}"]), "empty")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        evaluate_run(str(run.path))


def test_what_the_data_cannot_hold_is_refused_before_anything_is_made(
    records: Path, tmp_path: Path
):
    for wrong in ("sampler.ids_per_batch=99", f"data.records={tmp_path}/nowhere"):
        settings = override(small_config(records), [f"run.storage={tmp_path}/runs", wrong])
        with pytest.raises((SamplerError, DataError)):
            train_here(settings)
    assert not (tmp_path / "runs").exists()


@pytest.mark.distributed
def test_torchrun_trains_one_run_on_two_ranks(records: Path, tmp_path: Path):
    config = tmp_path / "run.yaml"
    values = [f"run.storage={tmp_path}/runs", "train.max_steps=80"]
    config.write_text(override(small_config(records), values).to_yaml())
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "service"]
    done = subprocess.run(
        [sys.executable, "-m", *words, "train", str(config), "--no-ray"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    summary = read_summary(run)
    assert summary is not None
    assert (summary["world_size"], summary["verdict"]) == (2, "GO")
    assert done.stdout.count("\nGO\n") == 1
