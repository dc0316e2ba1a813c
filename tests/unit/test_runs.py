"""Run folders: names, resuming and refusing."""

import shlex
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from service.config import Config, DataConfig
from service.errors import RunError
from service.orchestration import runs
from service.orchestration.runs import (
    create_run,
    held,
    interrupted,
    is_run,
    make_run,
    make_run_id,
    new_run_id,
    open_run,
    plan_run,
    resume_run,
    taken,
)
from service.orchestration.summary import write_summary
from service.settings import load_config, override


@pytest.fixture
def config(tmp_path: Path) -> Config:
    values = [f"run.storage={tmp_path / 'runs'}", "run.name=night"]
    return override(Config(data=DataConfig(records="records")), values)


def test_a_run_id_says_name_and_time():
    found = make_run_id("night", datetime(2026, 2, 3, 4, 5, 6), "0a1b")
    assert found == "night-20260203-040506-0a1b"
    assert new_run_id("night") != new_run_id("night")


def test_a_new_run_keeps_its_resolved_config(config: Config):
    run = create_run(config, "one")
    kept = load_config(run.path / "config.yaml")
    assert kept == run.config
    assert Path(kept.data.records).is_absolute()
    assert kept.fingerprint() == config.fingerprint()
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_a_taken_name_is_refused_and_nothing_is_changed(config: Config):
    run = create_run(config, "one")
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"run one exists already .* --resume .*/runs/one$"):
        create_run(override(config, ["run.seed=1"]), "one")
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_command_that_cannot_continue_a_run_does_not_offer_it(config: Config):
    create_run(config, "one")
    with pytest.raises(RunError, match="take another name") as caught:
        plan_run(config, "one", can_resume=False)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "a/b", "", ".", "-x", "a b", "a\n", "x" * 65])
def test_a_name_that_would_lead_elsewhere_is_refused(config: Config, tmp_path: Path, name: str):
    with pytest.raises(RunError, match="must be 1 to 64 letters"):
        create_run(config, name)
    assert list(tmp_path.iterdir()) == []
    assert create_run(config, "A_1-" + "x" * 60).path.is_dir()


def test_a_folder_appears_with_its_config_or_not_at_all(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, text: str) -> None:
        path.write_text(text[:3])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_text", full)
        with pytest.raises(RunError, match="no space left"):
            create_run(config, "one")
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "runs" / "one").mkdir()
    assert open_run(str(create_run(config, "one").path)).run_id == "one"


def test_what_is_said_about_resuming_works_when_it_is_typed(tmp_path: Path):
    storage = tmp_path / "my runs"
    config = override(Config(data=DataConfig(records="r")), [f"run.storage={str(storage)!r}"])
    run = create_run(config, "one")
    said = interrupted(run).remedy.removeprefix("continue it with ")
    option, folder = shlex.split(said)
    assert option == "--resume"
    assert open_run(folder) == run
    assert resume_run(folder) == run
    write_summary(run.path, {"verdict": "GO", "steps": 5})
    words = shlex.split(interrupted(run).remedy)
    assert words[-3:] == ["crossreid", "evaluate", str(run.path)]


def test_storage_that_cannot_be_written_is_named(config: Config, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot create the run folder .*run\.storage"):
        create_run(override(config, [f"run.storage={tmp_path / 'file'}"]))


def test_a_url_as_storage_is_refused(config: Config):
    with pytest.raises(RunError, match="mount the store"):
        create_run(override(config, ["run.storage=s3://bucket/runs"]))


def test_a_run_is_found_by_id_and_by_folder(config: Config):
    run = create_run(config, "one")
    assert open_run("one", config.run.storage) == run
    assert open_run(str(run.path)) == run


def test_an_unknown_run_names_where_it_was_looked_for(config: Config):
    with pytest.raises(RunError, match=r"no run 'two': no config.yaml in .*runs/two"):
        open_run("two", config.run.storage)


def test_a_run_resumes_with_its_own_config_or_an_equal_one(config: Config):
    run = create_run(config, "one")
    assert resume_run(str(run.path)) == run
    other = override(config, ["cluster.num_workers=3", "log.every=7"])
    resumed = resume_run("one", other)
    assert resumed.config.cluster.num_workers == 3
    assert resumed.path == run.path


def test_another_config_is_refused_and_the_setting_named(config: Config):
    create_run(config, "one")
    changed = ["optim.head_lr=1e-5", "run.seed=3", "log.every=7", "train.keep_checkpoints=9"]
    with pytest.raises(RunError, match=r"optim\.head_lr was .*0\.01.* and is .*1e-05") as caught:
        resume_run("one", override(config, changed))
    assert "run.seed was 0 and is 3" in str(caught.value)
    assert "log.every" not in str(caught.value)
    assert "keep_checkpoints" not in str(caught.value)


@pytest.mark.parametrize("verdict", ["GO", "NO_GO"])
def test_an_ended_run_is_refused_with_its_outcome(config: Config, verdict: str):
    run = create_run(config, "one")
    write_summary(run.path, {"verdict": verdict, "cause": "x", "steps": 400})
    with pytest.raises(RunError, match=rf"has ended: {verdict} \(x\) after 400 steps"):
        resume_run("one", config)


@pytest.mark.parametrize("text", ['{"verdict": "G', "\xff", "[]", ""])
def test_a_damaged_summary_is_named(config: Config, text: str):
    run = create_run(config, "one")
    (run.path / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"runs/one/summary\.json is damaged"):
        resume_run("one", config)


def test_a_run_that_was_only_evaluated_may_go_on(config: Config):
    run = create_run(config, "one")
    write_summary(run.path, {"run_id": "one", "evaluated_step": 40, "mAP": {"mean": 0.2}})
    assert resume_run("one", config) == run


def test_a_stopped_run_may_go_on(config: Config):
    run = create_run(config, "one")
    write_summary(run.path, {"verdict": "STOPPED", "cause": "", "steps": 40})
    assert resume_run("one", config) == run


def test_a_run_is_trained_by_one_driver_at_a_time(config: Config):
    run = create_run(config, "one")
    with held(run):
        again = held(run)
        with pytest.raises(RunError, match="being trained by another process"):
            again.__enter__()
    with held(run):
        assert (run.path / "config.yaml").is_file()


@pytest.mark.parametrize("error", [RunError, OSError, KeyboardInterrupt])
def test_a_new_runs_folder_goes_again_when_nothing_was_begun(
    config: Config, error: type[BaseException]
):
    new = plan_run(config, "one")
    with pytest.raises(error), taken(new, new=True):
        raise error
    assert not new.path.exists()


def test_a_new_runs_folder_stays_when_something_was_begun(config: Config):
    new = plan_run(config, "one")

    def begin_and_fail() -> None:
        with taken(new, new=True):
            (new.path / "journal.jsonl").touch()
            raise RunError

    with pytest.raises(RunError):
        begin_and_fail()
    assert (new.path / "journal.jsonl").exists()


def test_a_resumed_runs_folder_stays_though_nothing_was_begun(config: Config):
    run = create_run(config, "one")
    with pytest.raises(RunError), taken(run, new=False):
        raise RunError
    assert is_run(run.path)


def test_a_folder_that_another_driver_took_at_once_stays(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    """It resumes the run between its making and its holding."""
    new = plan_run(config, "one")
    monkeypatch.setattr(runs, "make_run", lambda run: run)
    make_run(new)
    with (
        held(new),
        pytest.raises(RunError, match="being trained by another process"),
        taken(new, new=True),
    ):
        pass
    assert is_run(new.path)


def test_a_folder_that_somebody_removed_hides_no_error(config: Config):
    new = plan_run(config, "one")

    def remove_and_fail() -> None:
        with taken(new, new=True):
            shutil.rmtree(new.path)
            raise RunError("the error")

    with pytest.raises(RunError, match="the error"):
        remove_and_fail()


@pytest.mark.parametrize(
    ("summary", "remedy"),
    [
        ({"verdict": "GO", "steps": 9}, "crossreid evaluate .*/one$"),
        ({"verdict": "GO", "steps": 9, "mAP": {}}, "start a new run instead$"),
        ({"verdict": "NO_GO", "cause": "no_gradient", "steps": 9}, "start a new run instead$"),
    ],
)
def test_a_run_that_has_ended_says_what_is_left_to_do(
    config: Config, summary: dict[str, Any], remedy: str
):
    run = create_run(config, "one")
    write_summary(run.path, summary)
    with pytest.raises(RunError, match=remedy):
        resume_run(str(run.path))


def test_a_sweep_is_not_continued_as_a_run(config: Config):
    run = create_run(config, "sweep")
    (run.path / "decisions.jsonl").write_text("")
    with pytest.raises(RunError, match="is a sweep; continue it with crossreid tune --resume"):
        resume_run(str(run.path))


def test_a_run_that_its_workers_refused_gives_its_name_back(config: Config):
    run = plan_run(config, "night")

    def refused() -> None:
        with taken(run, new=True):
            (run.path / ".writer.lock").touch()
            raise RunError("refused")

    with pytest.raises(RunError, match="refused"):
        refused()
    assert not run.path.exists()


def test_a_continued_run_says_where_its_checkpoints_are_now(config: Config, tmp_path: Path):
    run = create_run(config, "night")
    moved = override(config, [f"run.checkpoints={tmp_path / 'moved'}"])
    with taken(resume_run(str(run.path), moved), new=False):
        pass
    assert open_run(str(run.path)).config.run.checkpoints == str(tmp_path / "moved")
