"""Job entrypoints: short, importing orchestration only, and fit to be started again."""

import ast
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.config import Config
from service.data.synthetic import SynthSettings, synthesize
from service.errors import ClusterError, ExitCode
from service.orchestration import entry, train
from service.orchestration.job import ACCEPTED
from service.orchestration.progress import Update
from service.orchestration.reading import ANSWER
from service.orchestration.runs import create_run
from service.settings import load_config, override
from service.telemetry.logs import LOGGER
from service.training.ports import Outcome
from tests.faulty import FaultyFileSystem, register

JOBS = sorted(Path(__file__).parents[2].glob("jobs/[a-z]*.py"))


@pytest.fixture(autouse=True)
def log() -> Iterator[list[str]]:
    """What the entry says; its handler is taken away again."""
    lines: list[str] = []
    logger = logging.getLogger(LOGGER)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.propagate = False
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "night.yaml"
    text = f"run: {{name: night, storage: {tmp_path}/runs}}\ndata: {{records: {tmp_path}}}\n"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_is_short_and_imports_orchestration_only(job: Path):
    text = job.read_text()
    assert len(text.splitlines()) < 20
    modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
    assert all((module or "").startswith("service.orchestration") for module in modules)


def test_all_jobs_are_there():
    assert {"train", "tune", "evaluate", "ingest"} <= {job.stem for job in JOBS}


def fake_launch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    given: list[tuple[Any, Any]] = []

    def launch(config: Config, *, run_id: Any, resume: Any, on_progress: Any) -> Any:
        given.append((run_id, resume))
        name = run_id or "new"
        run = create_run(config, name) if resume is None else create_run(config, f"{name}2")
        on_progress(Update("main", messages=("waiting for machines",)))
        on_progress(Update("main", messages=(f"run {name}",), folder=str(run.path)))
        return run, Outcome("NO_GO", "x", "it stands", "move it", 3, {})

    monkeypatch.setattr(train, "launch_training", launch)
    return given


def test_a_job_started_again_with_its_run_id_continues_the_run(
    config: str, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    given = fake_launch(monkeypatch)
    words = [config, "train.epochs=3", "--run-id", "night-1"]
    assert entry.train_entry(words) == ExitCode.NO_GO
    assert entry.train_entry(words) == ExitCode.NO_GO
    folder = Path(load_config(config).run.storage) / "night-1"
    assert given == [("night-1", None), (None, str(folder))]
    assert "NO_GO: it stands - move it" in log
    assert load_config(folder / "config.yaml").train.epochs == 3


def test_a_run_id_that_leads_out_of_the_storage_is_refused(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    given = fake_launch(monkeypatch)
    create_run(load_config(config), "elsewhere", tmp_path)
    for entrypoint in (entry.train_entry, entry.tune_entry):
        words = [config, "--run-id", "../elsewhere", "tune.space={run.seed: {grid: [1]}}"]
        assert entrypoint(words) == ExitCode.USER_ERROR
        assert "'../elsewhere' must be" in log[-1]
    assert given == []


def test_a_sweep_whose_name_is_taken_is_not_said_to_resume(config: str, log: list[str]):
    create_run(load_config(config), "night-1")
    words = [config, "--run-id", "night-1", "tune.space={run.seed: {grid: [1]}}"]
    assert entry.tune_entry(words) == ExitCode.USER_ERROR
    assert "night-1 exists already" in log[-1]
    assert "--resume" not in log[-1]


def test_an_ingest_says_how_far_it_is(tmp_path: Path, log: list[str]):
    synthesize(tmp_path / "o", SynthSettings(people=6, images_per_person=5, image_size=(32, 32)))
    assert entry.ingest_entry([f"{tmp_path}/o", f"{tmp_path}/r", "32x32"]) == ExitCode.OK
    assert log[-2].startswith(f"{tmp_path}/o  step ")


def test_a_mistake_is_one_line_and_its_exit_code(config: str, log: list[str]):
    assert entry.train_entry([config, "train.epoch=3"]) == ExitCode.USER_ERROR
    assert len(log) == 1
    assert log[0].startswith("refused: ConfigError: ")
    assert entry.evaluate_entry(["nobody"]) == ExitCode.USER_ERROR
    assert entry.ingest_entry(["folder"]) == ExitCode.USER_ERROR
    assert entry.tune_entry([config]) == ExitCode.USER_ERROR
    assert entry.train_entry([]) == ExitCode.USER_ERROR
    assert entry.train_entry([config, "--run-id"]) == ExitCode.USER_ERROR


def test_a_name_that_must_be_new_is_not_continued(
    config: str, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    given = fake_launch(monkeypatch)
    words = [config, "--run-id", "night-1", "--new"]
    assert entry.train_entry(words) == ExitCode.NO_GO
    assert entry.train_entry(words) == ExitCode.USER_ERROR
    assert "night-1 exists already" in log[-1]
    assert given == [("night-1", None), ("night-1", None)]


def test_a_run_goes_on_with_its_own_config_and_what_is_laid_over_it(
    config: str, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    run = create_run(load_config(config), "night-1")
    asked: list[Any] = []

    def launch(given: Config, **words: Any) -> Any:
        asked.append((given, words["resume"]))
        return run, Outcome("GO", "", "", "", 0, {})

    monkeypatch.setattr(train, "launch_training", launch)
    words = ["--resume", str(run.path), "cluster.num_workers=3"]
    assert entry.train_entry(words) == ExitCode.OK
    assert asked == [(override(run.config, ["cluster.num_workers=3"]), str(run.path))]
    assert entry.train_entry(["--resume", "nobody"]) == ExitCode.USER_ERROR
    assert "no run 'nobody'" in log[-1]


def test_a_job_accepts_once_the_run_is_taken_and_not_while_it_waits(
    config: str, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    run = create_run(load_config(config), "one")
    fake_launch(monkeypatch)
    assert entry.train_entry(["--resume", str(run.path)]) == ExitCode.NO_GO
    told = [line.partition(" ")[0] for line in log]
    assert told.index("waiting") < told.index(ACCEPTED.strip())
    assert told.count(ACCEPTED.strip()) == 1


@pytest.mark.parametrize(("leaves", "mark"), [(True, ""), (False, "refused: ")])
def test_an_error_says_that_nothing_was_begun_only_where_that_is_so(
    config: str, monkeypatch: pytest.MonkeyPatch, log: list[str], leaves: bool, mark: str
):
    def launch(given: Config, *, on_progress: Any, **words: Any) -> Any:
        folder = create_run(given, "one").path if leaves else Path("/nowhere/one")
        on_progress(Update("main", folder=str(folder)))
        raise ClusterError("workers were lost too often")

    monkeypatch.setattr(train, "launch_training", launch)
    assert entry.train_entry([config, "--run-id", "one"]) == ExitCode.USER_ERROR
    assert log[-1] == f"{mark}ClusterError: workers were lost too often"


def test_a_stopped_ingest_takes_its_half_done_work_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synthesize(tmp_path / "o", SynthSettings(people=6, images_per_person=5, image_size=(32, 32)))

    class Stopped(entry.PlainProgress):
        def __call__(self, update: Update) -> None:
            assert len(list(tmp_path.glob(".r.partial-*"))) == 1
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(entry, "PlainProgress", Stopped)
    words = [f"{tmp_path}/o", f"{tmp_path}/r", "32x32"]
    assert entry.ingest_entry(words) == ExitCode.INTERRUPTED
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


@pytest.mark.parametrize(
    ("fault", "words"), [("refuses", "cannot be written"), ("truncates", "loses what is written")]
)
def test_an_ingest_is_not_accepted_where_its_records_would_be_lost(
    tmp_path: Path, log: list[str], fault: str, words: str
):
    """Before its folder is read, which here is none to read."""
    register()
    faults = FaultyFileSystem.fresh()
    setattr(faults, fault, "state.pt")
    asked = [str(tmp_path), "faulty://bucket/rec", "32x32"]
    assert entry.ingest_entry(asked) == ExitCode.USER_ERROR
    assert FaultyFileSystem.files() == []
    FaultyFileSystem.fresh()
    (told,) = log
    assert told.startswith("refused: DataError: RECORDS=faulty://bucket/rec ")
    assert words in told


def test_an_ingest_is_not_accepted_into_the_jobs_own_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
):
    package = tmp_path / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    assert entry.ingest_entry([str(tmp_path), "rec", "32x32"]) == ExitCode.USER_ERROR
    assert "refused: ConfigError: RECORDS=rec lies in the job's own package" in log[-1]
    assert list(package.iterdir()) == []


def test_an_ingest_with_a_password_among_its_words_is_refused(log: list[str]):
    assert entry.ingest_entry(["/raw", "s3://key:hush@b/rec", "32x32"]) == ExitCode.USER_ERROR
    assert "RECORDS=s3://<login>@b/rec has a password" in log[-1]


def test_a_look_at_a_run_answers_also_that_there_is_none(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], log: list[str]
):
    run = create_run(load_config(config), "one")
    words = [str(run.path), "--job", "one", "--state", "RUNNING"]
    assert entry.status_entry(words) == ExitCode.OK
    assert f'{ANSWER}{{"run": "one", "state": "starting"' in capsys.readouterr().out
    assert entry.status_entry([f"{tmp_path}/runs/two"]) == ExitCode.OK
    assert capsys.readouterr().out == f"{ANSWER}null\n"
    (run.path / "config.yaml").write_text("data: 3")
    assert entry.status_entry([str(run.path)]) == ExitCode.USER_ERROR
    assert capsys.readouterr().out == ""
    assert "ConfigError" in log[-1]


def test_a_kill_that_finds_nobody_is_an_error(log: list[str]):
    assert entry.kill_entry(["raysubmit_none"]) == ExitCode.USER_ERROR
    assert "no process of the job raysubmit_none" in log[-1]
    assert entry.kill_entry([]) == ExitCode.USER_ERROR
