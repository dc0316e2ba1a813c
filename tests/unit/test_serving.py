"""The target files by which Prometheus finds exporters at any port."""

import json
from pathlib import Path

import pytest

from service.errors import RunError
from service.orchestration.runs import Run, held, is_held, make_run
from service.orchestration.serving import TARGETS, announced
from tests.reports import CONFIG


def run_in(storage: Path, name: str) -> Run:
    return make_run(Run(name, storage / name, CONFIG))


def test_a_target_file_is_there_while_the_run_is_and_prometheus_can_read_it(tmp_path: Path):
    with announced(tmp_path, "a", "127.0.0.1:9109") as file:
        assert file == tmp_path / TARGETS / "a.json"
        assert json.loads(file.read_text()) == [{"targets": ["127.0.0.1:9109"]}]
    assert list((tmp_path / TARGETS).iterdir()) == []


def test_files_of_lost_drivers_go_and_those_of_living_ones_stay(tmp_path: Path):
    living, lost = run_in(tmp_path, "living"), run_in(tmp_path, "lost")
    folder = tmp_path / TARGETS
    folder.mkdir()
    for name in ("living", "lost", "never-was"):
        (folder / f"{name}.json").write_text("[]")
    with held(lost):
        pass
    with held(living):
        assert is_held(living.path)
        assert not is_held(lost.path)
        with announced(tmp_path, "new", "127.0.0.1:1"):
            assert {path.stem for path in folder.iterdir()} == {"living", "new"}


def test_a_storage_that_refuses_is_said(tmp_path: Path):
    (tmp_path / TARGETS).write_text("a file in the way")
    with (
        pytest.raises(RunError, match="by which Prometheus finds this run"),
        announced(tmp_path, "a", "x:1"),
    ):
        pass
