"""Evaluating a run: on its own records only, and while it trains and deletes checkpoints."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.distributed import Distributed
from service.errors import CheckpointError, DamagedCheckpointError
from service.orchestration.evaluate import evaluate_run
from service.orchestration.runs import Run, create_run
from service.training import store as store_module
from service.training.checkpoint import best_of
from service.training.loop import train
from service.training.ports import Ports
from service.training.store import FolderStore, folder_name
from tests.small import make_records, small_config

SHORT = ("train.max_steps=40", "train.checkpoint_every=10", "log.health_every=10")


def trained(records: Path, storage: Path, *overrides: str) -> Run:
    run = create_run(small_config(records, [*SHORT, f"run.storage={storage}", *overrides]), "one")
    train(run.config, run.path, Distributed.single(), Ports())
    return run


@pytest.fixture(scope="module")
def straight(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with its checkpoints of steps 10, 20, 30 and 40."""
    return trained(records, tmp_path_factory.mktemp("straight"), "train.keep_checkpoints=99")


def test_a_run_is_evaluated_on_the_records_it_was_trained_on_and_no_others(tmp_path: Path):
    """Ingested again for other people, their number is the model's, or it is not."""
    records = make_records(tmp_path, people=12)
    run = trained(records, tmp_path / "runs", "train.max_steps=4")

    def ingest_again(people: int, seed: int) -> None:
        for made in ("orbench", "records"):
            shutil.rmtree(tmp_path / made)
        make_records(tmp_path, people=people, seed=seed)

    for people, seed in ((15, 0), (12, 1)):
        ingest_again(people, seed)
        with pytest.raises(CheckpointError, match="was written with other records: fingerprint"):
            evaluate_run(str(run.path))
    assert "mAP" not in (run.path / "summary.json").read_text()
    ingest_again(12, 0)
    assert evaluate_run(str(run.path))[1]["evaluated_step"] == 4


# -- while the run trains --------------------------------------------------------------------------


class Shrinking(FolderStore):
    """Checkpoints that a run goes on with: when a file of `step` is read the first time, `acts`."""

    def __init__(self, folder: Path, step: int, file: str, acts: Callable[[], None]) -> None:
        super().__init__(folder)
        self.step, self.file, self.acts = step, file, acts
        self.has_acted = False

    def read(self, step: int, file: str) -> bytes | None:
        if (step, file) == (self.step, self.file) and not self.has_acted:
            self.has_acted = True
            self.acts()
        return super().read(step, file)


@pytest.fixture
def going(
    straight: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[tuple[int, ...], tuple[int, ...], int, str], Path]:
    """The run with the checkpoints `before`, which are those of `after` once a file is read."""

    def made(before: tuple[int, ...], after: tuple[int, ...], step: int, file: str) -> Path:
        folder, aside = tmp_path / "one", tmp_path / "aside"
        shutil.copytree(straight.path, folder)
        shutil.copytree(straight.path, aside)
        for other in {10, 20, 30, 40} - set(before):
            shutil.rmtree(folder / folder_name(other))

        def go_on() -> None:
            for new in set(after) - set(before):
                (aside / folder_name(new)).rename(folder / folder_name(new))
            for old in set(before) - set(after):
                FolderStore(folder).delete(old)

        store = Shrinking(folder, step, file, go_on)
        monkeypatch.setattr(store_module, "open_checkpoints", lambda place, run_dir: store)
        return folder

    return made


@pytest.mark.parametrize("file", ["manifest.json", "state.pt"])
def test_the_last_is_the_newer_one_where_the_run_deletes_the_one_that_was_looked_for(
    going: Callable[..., Path], file: str
):
    folder = going((10, 20), (30, 40), 20, file)
    assert evaluate_run(str(folder))[1]["evaluated_step"] == 40


def test_the_best_is_looked_for_again_where_the_run_deletes_it(
    going: Callable[..., Path], straight: Run
):
    """Gone before its manifest is read, it must not leave the second best as the best."""
    best = best_of(FolderStore(straight.path), [10, 20, 30, 40])
    before = tuple(step for step in (10, 20, 30, 40) if step != best)[:2]
    first = best_of(FolderStore(straight.path), list(before))
    assert best is not None
    assert first is not None
    other = next(step for step in before if step != first)
    folder = going(before, (best, other), first, "manifest.json")
    assert evaluate_run(str(folder), checkpoint="best")[1]["evaluated_step"] == best


def test_a_step_that_the_run_deletes_meanwhile_is_told_with_those_that_there_are(
    going: Callable[..., Path],
):
    folder = going((10, 20), (20, 30), 10, "state.pt")
    with pytest.raises(CheckpointError, match=r"no checkpoint '10'; expected .* 20, 30"):
        evaluate_run(str(folder), checkpoint="10")


def test_a_checkpoint_that_lacks_its_state_is_damaged_and_no_other_one_is_taken(
    going: Callable[..., Path],
):
    folder = going((10, 20), (10, 20), 20, "manifest.json")
    (folder / folder_name(20) / "state.pt").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint_00000020 lacks state\.pt"):
        evaluate_run(str(folder))
