"""A checkpoint is there whole or not at all, and only with the config that made it."""

from pathlib import Path

import pytest
import torch

from service.errors import CheckpointError, DamagedCheckpointError
from service.training.checkpoint import (
    best_of,
    load,
    save,
    snapshot,
)
from service.training.store import FolderStore
from tests.states import checkpoints, read_checkpoint, step_of

STATE = {"model": {"w": torch.arange(4.0)}, "progress": {"step": 3, "reason": "x"}, "memory": None}
MADE_WITH = {"config": "f" * 16}


def write(folder: Path, step: int = 3, score: float | None = None) -> Path:
    save(FolderStore(folder), STATE, step=step, made_with=MADE_WITH, score=score)
    return folder / f"checkpoint_{step:08d}"


def test_what_is_written_is_read_back(tmp_path: Path):
    folder = write(tmp_path)
    found = read_checkpoint(folder, made_with=MADE_WITH)
    assert torch.equal(found["model"]["w"], STATE["model"]["w"])
    assert found["progress"] == STATE["progress"]
    assert [step_of(f) for f in checkpoints(tmp_path)] == [3]
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "state.pt"]


def test_what_is_written_again_replaces_what_was_there(tmp_path: Path):
    folder = write(tmp_path)
    (folder / "state.pt").write_bytes(b"short")
    write(tmp_path)
    assert read_checkpoint(folder)["progress"] == STATE["progress"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path: Path):
    (tmp_path / "checkpoint_00000009").mkdir()
    (tmp_path / "checkpoint_00000009" / "state.pt").write_bytes(b"half")
    assert checkpoints(tmp_path) == []


def test_a_folder_of_another_name_is_none_of_ours(tmp_path: Path):
    write(tmp_path)
    for name in ("checkpoint_best", "checkpoint_7", "checkpoint_00000003.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert FolderStore(tmp_path).steps() == [3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "state.pt").write_bytes(b"short"), "damaged: 5 bytes"),
        (lambda f: (f / "state.pt").unlink(), r"lacks state\.pt"),
        (lambda f: (f / "manifest.json").unlink(), r"lacks manifest\.json"),
        (lambda f: (f / "manifest.json").write_text("{"), r"no readable manifest\.json"),
        (lambda f: (f / "manifest.json").write_text("[]"), r"no readable manifest\.json"),
        (lambda f: (f / "manifest.json").write_text('{"schema": 2}'), "KeyError: 'files'"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff"), r"no readable manifest\.json"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage, message: str):
    folder = write(tmp_path)
    damage(folder)
    with pytest.raises(DamagedCheckpointError, match=message):
        read_checkpoint(folder)


def test_a_flipped_bit_is_damage(tmp_path: Path):
    folder = write(tmp_path)
    data = bytearray((folder / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "state.pt").write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="sha256"):
        read_checkpoint(folder)


def test_another_schema_is_no_damage(tmp_path: Path):
    folder = write(tmp_path)
    (folder / "manifest.json").write_text('{"schema": 99}')
    with pytest.raises(CheckpointError, match="schema 99, this version reads 2") as found:
        read_checkpoint(folder)
    assert not isinstance(found.value, DamagedCheckpointError)


def test_what_may_not_be_read_is_no_damage(tmp_path: Path):
    folder = write(tmp_path)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot read") as found:
        read_checkpoint(folder)
    assert not isinstance(found.value, DamagedCheckpointError)


def test_another_config_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="other config: fingerprint ffff") as found:
        read_checkpoint(write(tmp_path), made_with={"config": "0" * 16})
    assert not isinstance(found.value, DamagedCheckpointError)


def test_a_checkpoint_cannot_run_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    store = FolderStore(tmp_path)
    save(store, {"evil": Evil()}, step=1, made_with=MADE_WITH)
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        load(store, 1)


def test_a_snapshot_shares_nothing_with_what_it_was_taken_of():
    weights, names = torch.zeros(3), ["a"]
    taken = snapshot({"w": [weights], "n": names})
    weights.fill_(1)
    names.append("b")
    assert taken["w"][0].tolist() == [0, 0, 0]
    assert taken["n"] == ["a"]


def test_a_snapshot_takes_the_memory_of_a_spare_one_where_it_fits():
    spare = snapshot({"a": torch.ones(3), "b": [torch.ones(2)], "c": torch.ones(2), "d": 1})
    places = {"a": spare["a"].data_ptr(), "b": spare["b"][0].data_ptr()}
    value = {
        "a": torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])),
        "b": (torch.tensor([4.0, 5.0]), torch.tensor([6.0])),
        "c": torch.tensor([7, 8]),
        "d": torch.arange(4).view(2, 2).t(),
        "e": torch.tensor(9.0).expand(2),
    }
    taken = snapshot(value, spare)
    assert {"a": taken["a"].data_ptr(), "b": taken["b"][0].data_ptr()} == places
    assert taken["a"].tolist() == [1, 2, 3]
    assert [part.tolist() for part in taken["b"]] == [[4, 5], [6]]
    assert (taken["c"].dtype, taken["c"].tolist()) == (torch.int64, [7, 8])
    assert (taken["d"].tolist(), taken["e"].tolist()) == ([[0, 2], [1, 3]], [9, 9])
    assert not taken["a"].requires_grad


def test_the_best_has_the_lowest_score_and_the_earliest_of_equals(tmp_path: Path):
    store = FolderStore(tmp_path)
    for step, score in ((1, None), (2, 0.9), (3, 0.7), (4, 0.7), (5, 0.8)):
        write(tmp_path, step, score)
    assert best_of(store, store.steps()) == 3
    assert best_of(store, [1]) is None
    (tmp_path / "checkpoint_00000003" / "manifest.json").write_text("{")
    assert best_of(store, store.steps()) == 4


def test_a_state_under_another_steps_name_is_damage(tmp_path: Path):
    write(tmp_path, 3).rename(tmp_path / "checkpoint_00000009")
    with pytest.raises(DamagedCheckpointError, match="holds the state of step 3"):
        read_checkpoint(tmp_path / "checkpoint_00000009")
