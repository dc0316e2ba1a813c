"""The target files by which Prometheus finds exporters at any port."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import RunError
from service.orchestration import serving
from service.orchestration.cluster import Cluster
from service.orchestration.progress import ignore
from service.orchestration.runs import Run, held, is_held, make_run
from service.orchestration.serving import TARGETS, announced
from service.orchestration.sinks import storage_of
from service.orchestration.sweep_journal import FILE_NAME as JOURNAL
from tests.reports import CONFIG


def run_in(storage: Path, name: str) -> Run:
    return make_run(Run(name, storage / name, CONFIG))


def test_a_target_file_is_there_while_the_run_is_and_prometheus_can_read_it(tmp_path: Path):
    with announced(tmp_path, tmp_path / "a", "127.0.0.1:9109") as file:
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
        with announced(tmp_path, tmp_path / "new", "127.0.0.1:1"):
            assert {path.stem for path in folder.iterdir()} == {"living", "new"}


def test_a_trial_that_goes_on_alone_is_found_where_its_sweep_would_be(tmp_path: Path):
    sweep = run_in(tmp_path, "sweep")
    (sweep.path / JOURNAL).write_text("")
    trial = run_in(sweep.path, "t1")
    assert storage_of(trial.path) == tmp_path
    with held(trial), announced(tmp_path, trial.path, "127.0.0.1:1") as file:
        assert file == tmp_path / TARGETS / "sweep.t1.json"
        with announced(tmp_path, tmp_path / "new", "127.0.0.1:1"):
            assert file.exists()
    lost = announced(tmp_path, trial.path, "127.0.0.1:1")
    with lost, announced(tmp_path, tmp_path / "new", "127.0.0.1:1"):
        assert not file.exists()


def test_an_interrupt_while_an_end_is_told_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt() -> float:
        raise KeyboardInterrupt

    lease = SimpleNamespace(reach="127.0.0.1:1", release=interrupt)
    monkeypatch.setattr(serving, "acquire", lambda config, run, local: lease)
    run = Run("a", tmp_path / "a", CONFIG)
    with serving.served(run, Cluster("", local=True), ignore, "main") as found:
        assert found is lease


def test_a_storage_that_refuses_is_said(tmp_path: Path):
    (tmp_path / TARGETS).write_text("a file in the way")
    with (
        pytest.raises(RunError, match="by which Prometheus finds this run"),
        announced(tmp_path, tmp_path / "a", "x:1"),
    ):
        pass
