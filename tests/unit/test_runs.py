"""Run folders: names, resuming and refusing."""

from datetime import datetime
from pathlib import Path

import pytest

from service.config import Config, DataConfig
from service.errors import RunError
from service.orchestration.runs import (
    create_run,
    make_run_id,
    new_run_id,
    open_run,
    resume_run,
    write_summary,
)
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
    with pytest.raises(RunError, match=r"run one exists already .* --resume one"):
        create_run(override(config, ["run.seed=1"]), "one")
    assert (run.path / "config.yaml").read_bytes() == before


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
    changed = override(config, ["optim.head_lr=1e-5", "log.every=7"])
    with pytest.raises(RunError, match=r"optim\.head_lr was .*0\.01.* and is .*1e-05") as caught:
        resume_run("one", changed)
    assert "log.every" not in str(caught.value)


@pytest.mark.parametrize("verdict", ["GO", "NO_GO"])
def test_an_ended_run_is_refused_with_its_outcome(config: Config, verdict: str):
    run = create_run(config, "one")
    write_summary(run.path, {"verdict": verdict, "cause": "x", "steps": 400})
    with pytest.raises(RunError, match=rf"has ended: {verdict} \(x\) after 400 steps"):
        resume_run("one", config)


def test_a_stopped_run_may_go_on(config: Config):
    run = create_run(config, "one")
    write_summary(run.path, {"verdict": "STOPPED", "cause": "", "steps": 40})
    assert resume_run("one", config) == run
