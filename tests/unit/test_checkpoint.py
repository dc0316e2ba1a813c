"""A checkpoint is there whole or not at all, and only with the config that made it."""

from pathlib import Path

import pytest
import torch

from service.errors import CheckpointError
from service.training.checkpoint import (
    CheckpointWriter,
    checkpoints,
    read_checkpoint,
    step_of,
    write_checkpoint,
)

STATE = {"model": {"w": torch.arange(4.0)}, "progress": {"step": 3, "reason": "x"}, "memory": None}


def write(folder: Path, step: int = 3) -> Path:
    return write_checkpoint(folder, STATE, step=step, made_with={"config": "f" * 16})


def test_what_is_written_is_read_back(tmp_path: Path):
    folder = write(tmp_path)
    found = read_checkpoint(folder, made_with={"config": "f" * 16})
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])
    assert found["progress"] == STATE["progress"]
    assert [step_of(f) for f in checkpoints(tmp_path)] == [3]


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path: Path):
    (tmp_path / "checkpoint_00000009").mkdir()
    (tmp_path / "checkpoint_00000009" / "state.pt").write_bytes(b"half")
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "state.pt").write_bytes(b"short"), "damaged"),
        (lambda f: (f / "state.pt").unlink(), "lacks state.pt"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest"),
        (lambda f: (f / "manifest.json").write_text('{"schema": 99}'), "schema 99"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str):
    folder = write(tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


def test_another_config_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="other config: fingerprint ffff"):
        read_checkpoint(write(tmp_path), made_with={"config": "0" * 16})


def test_a_checkpoint_cannot_run_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    folder = write_checkpoint(tmp_path, {"evil": Evil()}, step=1, made_with={"config": "f"})
    with pytest.raises(Exception, match="Weights only load failed"):
        read_checkpoint(folder)


def test_the_writer_snapshots_before_it_returns_and_keeps_the_newest(tmp_path: Path):
    writer = CheckpointWriter(tmp_path, made_with={"config": "f"}, keep=2)
    weights = torch.zeros(1000)
    for step in (1, 2, 3):
        weights.fill_(step)
        writer.write({"w": weights}, step)
        weights.fill_(-1)
    writer.close()
    assert [step_of(f) for f in checkpoints(tmp_path)] == [2, 3]
    assert float(read_checkpoint(checkpoints(tmp_path)[-1])["w"][0]) == 3


def test_a_store_that_refuses_is_reported(tmp_path: Path):
    target = tmp_path / "file"
    target.write_text("not a folder")
    writer = CheckpointWriter(target, made_with={"config": "f"}, keep=1)
    writer.write({"w": torch.zeros(1)}, 1)
    with pytest.raises(CheckpointError, match="cannot write checkpoint"):
        writer.close()
