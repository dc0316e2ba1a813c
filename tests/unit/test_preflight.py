"""Where an ingest on the cluster writes to: refused before anything is read, and left as it was."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigError, CrossReidError, DataError
from service.orchestration.preflight import preflight_records
from service.training.store import FolderStore
from tests.faulty import Faults, FaultyFileSystem, register

REMOTE = "faulty://bucket/rec"


@pytest.fixture
def faults() -> Iterator[Faults]:
    register()
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()


def said_of(records: str) -> list[str]:
    said: list[str] = []
    preflight_records(records, said.append)
    return said


def refuses(records: str, message: str, kind: type[CrossReidError] = DataError) -> None:
    with pytest.raises(kind, match=message):
        preflight_records(records, print)


@pytest.mark.parametrize("start", ["", "file://"])
def test_a_target_that_may_be_written_is_left_as_it_was(tmp_path: Path, start: str):
    assert said_of(f"{start}{tmp_path}/new/rec") == []
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "rec").mkdir()
    assert said_of(f"{start}{tmp_path}/rec") == []
    assert [path.name for path in tmp_path.rglob("*")] == ["rec"]


def test_a_store_that_may_be_written_is_left_as_it_was(faults: Faults):
    assert said_of(REMOTE) == []
    assert len(faults.writes) == 2
    assert FaultyFileSystem.files() == []


def test_a_store_that_refuses_is_named(faults: Faults):
    faults.refuses = True
    refuses(REMOTE, rf"RECORDS={REMOTE} cannot be written on the head.*access denied.*give one")
    assert FaultyFileSystem.files() == []


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_store_that_loses_what_it_takes_is_refused(faults: Faults, file: str):
    faults.truncates = file
    refuses(REMOTE, rf"^RECORDS={REMOTE} loses what is written to it: .*use another store$")
    assert FaultyFileSystem.files() == []


def test_a_folder_that_loses_what_it_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FolderStore, "read", lambda *_: b"other")
    refuses(f"{tmp_path}/new/rec", "loses what is written to it")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_lets_nothing_be_deleted_is_told_of_and_taken(faults: Faults):
    faults.refuses_deletes = True
    (told,) = said_of(REMOTE)
    assert told.startswith("RECORDS lets nothing be deleted: ")
    assert re.search(rf"The probe in {REMOTE}/\.crossreid-probe-\w+/\w+ stays$", told)


@pytest.mark.parametrize("start", ["", "file://"])
def test_a_folder_is_probed_beside_its_name_where_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
):
    probed: list[Path] = []
    put = FolderStore.put

    def spy(store: FolderStore, *words: Any) -> None:
        probed.append(store.folder.parent)
        put(store, *words)

    monkeypatch.setattr(FolderStore, "put", spy)
    said_of(f"{start}{tmp_path}/rec")
    assert probed == [tmp_path]


def test_a_folder_that_cannot_be_made_is_named_and_left_as_it_was(tmp_path: Path):
    (tmp_path / "file").write_text("")
    refuses(f"{tmp_path}/file/rec", r"RECORDS=.*/file/rec cannot be written on the head")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("start", ["", "file://"])
def test_a_folder_in_the_jobs_own_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1"
    (package / "deep").mkdir(parents=True)
    monkeypatch.chdir(package / "deep")
    inside = f"{start}{package}/rec" if start else "rec"
    words = r"RECORDS=.*rec lies in the job's own package.*RECORDS=/data/records"
    refuses(inside, words, ConfigError)
    assert said_of(f"{start}{tmp_path}/rec") == []
    assert [path.name for path in package.rglob("*")] == ["deep"]
