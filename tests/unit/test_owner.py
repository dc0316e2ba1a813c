"""A place of checkpoints belongs to one run."""

import json
import threading
from pathlib import Path

import pytest

from service.errors import CheckpointError
from service.training.owner import claim
from service.training.store import OWNER_FILE, FolderStore


def run_folder(base: Path, name: str) -> Path:
    (base / name).mkdir()
    return base / name


def test_a_place_that_is_free_becomes_the_runs_and_stays_it(tmp_path: Path):
    run, place = run_folder(tmp_path, "run"), tmp_path / "new" / "place"
    for is_new in (True, False, True):
        claim(FolderStore(place), run, is_new=is_new)
    assert (place / OWNER_FILE).read_text() == (run / OWNER_FILE).read_text()
    assert json.loads((place / OWNER_FILE).read_text())["run"] == str(run)


def test_a_run_that_was_moved_keeps_its_place(tmp_path: Path):
    run, place = run_folder(tmp_path, "run"), FolderStore(tmp_path / "place")
    claim(place, run, is_new=True)
    claim(place, run.rename(tmp_path / "moved"), is_new=False)


@pytest.mark.parametrize("is_new", [True, False])
def test_anothers_place_is_refused_and_left_as_it_is(tmp_path: Path, is_new: bool):
    one, two = run_folder(tmp_path, "one"), run_folder(tmp_path, "two")
    place = FolderStore(tmp_path / "place")
    claim(place, one, is_new=True)
    before = (place.folder / OWNER_FILE).read_text()
    with pytest.raises(CheckpointError, match=f"place belongs to the run in {one}; take another"):
        claim(place, two, is_new=is_new)
    assert (place.folder / OWNER_FILE).read_text() == before


@pytest.mark.parametrize("words", ["", "{", "[]", "{}"])
def test_a_damaged_mark_is_named_and_taken_for_nobodys(tmp_path: Path, words: str):
    place = FolderStore(run_folder(tmp_path, "place"))
    (place.folder / OWNER_FILE).write_text(words)
    with pytest.raises(CheckpointError, match=r"nobody: its owner\.json is damaged"):
        claim(place, run_folder(tmp_path, "run"), is_new=False)


class Crossing(FolderStore):
    """Both runs find the place free before either marks it, and look again after both have."""

    def __init__(self, folder: Path, barrier: threading.Barrier) -> None:
        super().__init__(folder)
        self.barrier = barrier

    def own(self, owner: str) -> None:
        self.barrier.wait(10)
        super().own(owner)
        self.barrier.wait(10)


def test_of_two_runs_that_come_at_once_one_gets_the_place(tmp_path: Path):
    barrier, refused = threading.Barrier(2), list[str]()

    def come(name: str) -> None:
        try:
            claim(Crossing(tmp_path / "place", barrier), run_folder(tmp_path, name), is_new=True)
        except CheckpointError:
            refused.append(name)

    threads = [threading.Thread(target=come, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (loser,) = refused
    winner = {"one": "two", "two": "one"}[loser]
    owner = (tmp_path / "place" / OWNER_FILE).read_text()
    assert owner == (tmp_path / winner / OWNER_FILE).read_text()
