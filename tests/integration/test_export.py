"""A real run, interrupted and resumed, as TensorBoard, MLflow and Weights & Biases come to show it.

MLflow and Weights & Biases are tried where they are installed: `pip install 'crossreid[mlflow]'`,
`'crossreid[wandb]'`. They run in processes of their own, whose warnings are theirs.
"""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import cli
from service.distributed import Distributed
from service.errors import ExitCode
from service.orchestration.local import train_here
from service.orchestration.progress import Update
from service.orchestration.runs import Run, create_run, held
from service.orchestration.sinks import open_sinks
from service.settings import override
from service.training.journal import read_journal
from service.training.loop import train
from service.training.ports import Ports
from tests.journals import scalars, texts
from tests.small import small_config

SETTINGS = ["train.max_steps=60", "train.checkpoint_every=10", "policy.final_look=60"]
LOOKS = ["policy.first_look=40", "policy.no_go_from=50"]


@pytest.fixture(scope="module")
def run(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Stopped by its user after 25 steps, continued, and at its end."""
    storage = tmp_path_factory.mktemp("runs")
    values = [f"run.storage={storage}", "telemetry.sinks=[tensorboard]", *SETTINGS, *LOOKS]
    config = override(small_config(records), values)

    def interrupt(update: Update) -> None:
        if update.step >= 25 and not stopped:
            stopped.append(update.step)
            os.kill(os.getpid(), signal.SIGINT)

    stopped: list[int] = []
    made, _ = train_here(config, run_id="night", on_progress=interrupt)
    train_here(None, resume=str(made.path))
    assert len([e for e in read_journal(made.path) if e["event"] == "start"]) == 2
    return made


def is_as_reported(shown: list[tuple[int, float]], run: Run, line: str) -> bool:
    """Whether a health line stands there as in the journal; its attempts superseded nothing."""
    reports = [e["health"] for e in read_journal(run.path) if e["event"] == "health"]
    assert [step for step, _ in shown] == [health["step"] for health in reports]
    return [v for _, v in shown] == pytest.approx([health[line] for health in reports], rel=1e-6)


def export(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "export", *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, **variables},
    )


def needs(package: str) -> pytest.MarkDecorator:
    is_missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(is_missing, reason=f"pip install 'crossreid[{package}]' to try it")


def test_a_resumed_run_is_exported_whole_and_in_order(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["export", str(run.path), "--to", "tensorboard", "--out", str(tmp_path / "tb")]
    assert cli.main([*words, "--json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    found = scalars(tmp_path / "tb" / run.run_id)
    for line in ("ce", "top1", "head_norm", "images_per_second"):
        assert is_as_reported(found[f"health/{line}"], run, line)
    assert [step for step, _ in found["epoch/sdm_weight"]] == [0, 16, 32, 48]
    assert told["trials"][0]["numbers"] == sum(len(line) for line in found.values())
    starts = [words for tag, _, words in texts(tmp_path / "tb" / run.run_id) if tag == "run/start"]
    assert [words.split()[1] for words in starts] == ["1", "2"]


def test_what_is_heard_while_it_trains_is_what_an_export_gives(records: Path, tmp_path: Path):
    values = [f"run.storage={tmp_path}", "telemetry.sinks=[tensorboard]", *SETTINGS, *LOOKS]
    made = create_run(override(small_config(records), values), "live")
    with open_sinks(made.config, made.run_id, made.path) as sinks:
        ports = Ports(event=lambda event: sinks.hear("main", event))
        train(made.config, made.path, Distributed.from_environment(), ports)
    live = scalars(made.path / "tensorboard"), texts(made.path / "tensorboard")
    assert len(live[0]["health/ce"]) > 3
    assert cli.main(["export", str(made.path), "--to", "tensorboard"]) == ExitCode.OK
    assert (scalars(made.path / "tensorboard"), texts(made.path / "tensorboard")) == live


def test_a_run_that_sends_itself_is_not_exported_to_the_same_place(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["export", str(run.path), "--to", "tensorboard"]
    with held(run):
        assert cli.main(words) == ExitCode.USER_ERROR
        assert "goes to tensorboard by itself" in capsys.readouterr().err
        assert cli.main([*words, "--out", str(tmp_path)]) == ExitCode.OK


def test_mistakes_are_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty = create_run(override(run.config, [f"run.storage={tmp_path}"]), "empty")
    for words, told in (
        ([str(empty.path), "--to", "tensorboard"], "holds no journal.jsonl"),
        ([str(run.path), "--to", "wandb", "--out", "x"], "--out is TensorBoard's folder"),
        ([str(run.path), "--to", "tensorboard", "--out", "/dev/null/x"], "did not take trial main"),
        (["nobody", "--to", "tensorboard"], "no run 'nobody'"),
    ):
        assert cli.main(["export", *words]) == ExitCode.USER_ERROR
        assert told in capsys.readouterr().err


@needs("mlflow")
def test_mlflow_keeps_every_number_and_the_newest_run_counts(run: Run, tmp_path: Path):
    server = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    for _ in range(2):
        done = export(str(run.path), "--to", "mlflow", "--json", **server)
        assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["trials"][0]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        of = "select {} from {} where run_uuid = ?"
        tag = "select run_uuid, value from tags where key = 'crossreid.superseded_by'"
        ((old, new),) = database.execute(tag).fetchall()
        assert (old == new, new in told["where"]) == (False, True)
        kept = database.execute(of.format("key, step, value", "metrics"), [new]).fetchall()
        assert len(kept) == len(set(kept)) == told["numbers"]
        ce = sorted((step, value) for key, step, value in kept if key == "health/ce")
        assert is_as_reported(ce, run, "ce")
        params = dict(database.execute(of.format("key, value", "params"), [new]).fetchall())
        assert params["train.max_steps"] == "60"
        tags = dict(database.execute(of.format("key, value", "tags"), [new]).fetchall())
        assert tags["crossreid.verdict"] == read_journal(run.path)[-1]["verdict"]
        assert "attempt 2 begins after step" in tags["mlflow.note.content"]
        (status,) = database.execute(of.format("status", "runs"), [new]).fetchone()
        assert status == "FINISHED"


READ_WANDB = """
import json, struct, sys
from wandb.proto.wandb_internal_pb2 import Record
data, at, parts, found = open(sys.argv[1], "rb").read(), 7, [], []
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    parts = [*(parts if kind in (3, 4) else []), data[at + 7 : at + 7 + length]]
    at += 7 + length
    if kind in (1, 4):
        record = Record.FromString(b"".join(parts))
        items = record.history.item
        found.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
print(json.dumps([line for line in found if line]))
"""
"""Reads a file of W&B's: blocks of 32 KiB, records in parts (1 whole, 2 first, 3 next, 4 last)."""


@needs("wandb")
def test_weights_and_biases_keeps_every_number_offline(run: Run, tmp_path: Path):
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    done = export(str(run.path), "--to", "wandb", "--json", **offline)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)["trials"][0]
    (file,) = Path(told["where"]).glob("*.wandb")
    read = [sys.executable, "-c", READ_WANDB, str(file)]
    history = json.loads(subprocess.run(read, capture_output=True, check=True).stdout)
    ce = [(line["step"], line["health/ce"]) for line in history if "health/ce" in line]
    assert is_as_reported(ce, run, "ce")
    tags = [tag for line in history for tag in line if "/" in tag and "events/" not in tag]
    assert len(tags) == told["numbers"]
    (table,) = file.parent.rglob("*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[1] for row in rows].count("start") == 2
