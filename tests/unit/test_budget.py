"""What a sweep may cost: every trial to its end, counted one by one."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import cli
from service.config import Config
from service.errors import ClusterError, ExitCode, SamplerError
from service.orchestration.budget import Budget, Pace, budget, check_here, measured_pace
from service.orchestration.runs import Run, make_run
from service.orchestration.summary import write_summary
from service.settings import override
from service.training.journal import Journal
from tests.small import make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("small"), people=12)


@pytest.fixture
def config(records: Path, tmp_path: Path) -> Config:
    """Trials of 120 steps."""
    return small_config(records, [f"run.storage={tmp_path}/runs", "sampler.ids_per_batch=4"])


def sweeping(config: Config, space: str, *overrides: str) -> Config:
    return override(config, [f"tune.space={space}", *overrides])


def test_every_trial_counts_to_its_end(config: Config):
    found = budget(sweeping(config, "{optim.head_lr: {grid: [1e-2, 3e-3]}}", "tune.samples=3"))
    assert (found.trials, found.concurrent, found.steps) == (6, 1, 720)
    assert (found.shortest, found.longest, found.unit, found.units) == (120, 120, "CPU", 1.0)
    assert found.unit_hours is None


def test_samples_that_change_a_trials_length_are_counted_one_by_one(config: Config):
    lengths = [50, 80, 120]
    space = "{train.max_steps: {grid: [50, 80, 120]}, run.seed: {grid: [0, 1]}}"
    found = budget(sweeping(config, space, "tune.samples=2"))
    each = [length for length, _, _ in itertools.product(lengths, range(2), range(2))]
    assert (found.trials, found.steps) == (len(each), sum(each))
    assert (found.shortest, found.longest) == (50, 120)
    drawn = budget(sweeping(config, "{train.max_steps: {choice: [50, 80]}}", "tune.samples=3"))
    assert (drawn.steps, drawn.shortest) == (3 * 80, 50)


def test_epochs_are_as_long_as_their_samplers_plan(config: Config):
    space = "{sampler.ids_per_batch: {grid: [2, 4]}}"
    base = override(config, ["train.epochs=1", "train.max_steps=null"])
    found = budget(sweeping(base, space))
    one_by_one = [
        budget(sweeping(base, "{run.seed: {grid: [0]}}", f"sampler.ids_per_batch={p}")).steps
        for p in (2, 4)
    ]
    assert one_by_one[0] > one_by_one[1]
    assert found.steps == sum(one_by_one)


def test_a_sample_that_does_not_fit_the_records_is_named(config: Config):
    with pytest.raises(SamplerError, match=r'with \{"sampler.ids_per_batch": 500\}'):
        budget(sweeping(config, "{sampler.ids_per_batch: {grid: [4, 500]}}"))


def test_hours_are_those_of_all_that_a_trial_holds(config: Config):
    gpus = ["cluster.num_workers=2", "cluster.gpus_per_worker=4", "tune.max_concurrent=3"]
    space = "{run.seed: {grid: [0, 1, 2, 3, 4, 5]}}"
    found = budget(sweeping(config, space, *gpus), Pace(30.0, "as given"))
    assert (found.unit, found.units) == ("GPU", 8.0)
    assert found.unit_hours == pytest.approx(6 * 120 * 30 * 8 / 3600)
    assert found.hours is not None
    assert found.hours >= 2 * 120 * 30 / 3600
    assert found.to_dict()["worker_steps"] == 6 * 120 * 2
    assert found.to_dict()["gpu_hours_at_most"] == found.unit_hours


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_no_order_of_trials_takes_longer_than_the_hours_say(config: Config, slots: int):
    lengths = (50, 60, 120, 50, 120)
    space = "{train.max_steps: {grid: [50, 60, 120]}}"
    found = budget(sweeping(config, space, f"tune.max_concurrent={slots}"), Pace(3600.0, "x"))
    worst = 0
    for order in set(itertools.permutations(lengths[:3])):
        free = [0] * slots
        for length in order:
            free[free.index(min(free))] += length
        worst = max(worst, *free)
    assert found.hours is not None
    assert found.hours >= worst - 1e-9


def plan(trials: int, concurrent: int, steps: int, longest: int) -> Budget:
    pace = Pace(3600.0, "x")
    return Budget(trials, concurrent, steps, 1, longest, 1, "CPU", 1.0, pace)


@pytest.mark.parametrize(("trials", "slots"), [(1, 1), (3, 2), (4, 2), (5, 4), (9, 9)])
def test_trials_of_one_length_take_as_many_turns_as_it_needs(trials: int, slots: int):
    turns = -(-trials // slots)
    assert plan(trials, slots, 100 * trials, 100).hours == pytest.approx(100 * turns)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 5))
def test_in_no_order_does_a_sweep_take_longer_than_the_hours_say(lengths: list[int], slots: int):
    free = [0] * min(slots, len(lengths))
    for length in lengths:
        free[free.index(min(free))] += length
    hours = plan(len(lengths), len(free), sum(lengths), max(lengths)).hours
    assert hours is not None
    assert max(free) <= hours + 1e-9


def finished(config: Config, name: str, seconds: float) -> None:
    path = Path(config.run.storage) / name
    run = make_run(Run(path.name, path, config))
    journal = Journal(run.path, 1)
    journal.append({"event": "start"})
    for value in (9.0, seconds, seconds * 1.1, seconds * 0.9):
        journal.append({"event": "steps", "seconds": value})
    journal.close()
    write_summary(run.path, {"verdict": "GO"})


def test_the_pace_is_that_of_the_newest_finished_run_of_the_same_work(config: Config):
    assert measured_pace(config) is None
    finished(config, "old", 2.0)
    os.utime(Path(config.run.storage) / "old" / "summary.json", (1, 1))
    finished(override(config, ["optim.weight_decay=0.1"]), "new", 0.5)
    finished(override(config, ["sampler.ids_per_batch=8"]), "other", 7.0)
    torn = Path(config.run.storage) / "new" / "journal.jsonl"
    torn.write_text(torn.read_text() + '{"event": "st')
    assert measured_pace(config) == Pace(0.5, "as in run new")
    finished(config, "sweep/trial", 0.25)
    assert measured_pace(config) == Pace(0.25, "as in run trial")


def test_more_trials_at_a_time_than_this_machine_holds_are_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    space = "{run.seed: {grid: [0, 1, 2]}}"
    check_here(sweeping(config, space, "tune.max_concurrent=2"))
    with pytest.raises(ClusterError, match=r"3 trials at a time need 3 CPUs.* has 2; try tune.max"):
        check_here(sweeping(config, space, "tune.max_concurrent=9"))
    check_here(sweeping(config, space, "tune.max_concurrent=9", "cluster.address=far:1"))


@pytest.fixture
def file(config: Config, tmp_path: Path) -> str:
    found = tmp_path / "sweep.yaml"
    found.write_text(sweeping(config, "{optim.head_lr: {grid: [3e-3, 1e-5]}}").to_yaml())
    return str(found)


def dry(capsys: Any, file: str, *words: str) -> tuple[int, str, str]:
    code = cli.main(["tune", file, "--dry-run", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_dry_run_says_what_is_not_known_and_makes_nothing(file: str, tmp_path: Path, capsys: Any):
    code, out, _ = dry(capsys, file)
    assert code == ExitCode.OK
    assert out.startswith("2 trials, 1 at a time, each 1 worker with 1 CPU: 1 CPU at once\n")
    assert "at most 240 steps and 240 worker-steps" in out
    assert "which is unknown" in out
    assert "--seconds-per-step" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_hours_when_it_knows_the_pace(file: str, capsys: Any):
    code, out, _ = dry(capsys, file, "--seconds-per-step", "15", "--json")
    assert code == ExitCode.OK
    values = json.loads(out)
    assert values["cpu_hours_at_most"] == pytest.approx(1.0)
    assert values["seconds_from"] == "as given"
    assert values["space"] == {"optim.head_lr": {"grid": [3e-3, 1e-5]}}


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "-inf"])
def test_a_pace_that_no_step_has_is_refused(file: str, seconds: str, capsys: Any):
    code, out, err = dry(capsys, file, f"--seconds-per-step={seconds}")
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert f"must be above 0 and finite; found {seconds}" in err


def test_a_pace_is_refused_where_nothing_is_counted(file: str, tmp_path: Path, capsys: Any):
    code = cli.main(["tune", file, "--seconds-per-step", "1"])
    assert (code, "is for --dry-run" in capsys.readouterr().err) == (ExitCode.USER_ERROR, True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["tune", "train"])
@pytest.mark.parametrize("by", ["override", "file"])
def test_an_id_to_resume_is_looked_for_in_the_storage_that_is_given(
    file: str, config: Config, tmp_path: Path, command: str, by: str, capsys: Any
):
    words = [f"run.storage={tmp_path}/elsewhere"] if by == "override" else [file]
    code = cli.main([command, *words, "--resume", "nobody"])
    place = f"{tmp_path}/{'elsewhere' if by == 'override' else 'runs'}/nobody"
    err = capsys.readouterr().err
    assert (code, f"no config.yaml in {place}" in err) == (ExitCode.USER_ERROR, True), err


def test_what_is_resumed_from_another_storage_takes_the_other_overrides_too(
    config: Config, tmp_path: Path
):
    storage = tmp_path / "elsewhere"
    make_run(Run("night", storage / "night", config))
    overrides = ["train.epochs=9", f"run.storage={storage}"]
    found = cli._train_config(None, overrides, "night")
    assert (found.train.epochs, found.run.storage) == (9, str(storage))
    assert cli._train_config(None, [], "night") is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tune.samples=0"], "tune.samples: Input should be greater than or equal to 1"),
        (["tune.space={optim.head_lr: {grid: []}}"], "an empty list has nothing to try"),
        (["tune.space={optim.head_lrr: {grid: [1]}}"], "did you mean 'optim.head_lr'?"),
        (["tune.spaces={}"], "tune.spaces: unknown setting"),
        (["tune.space={optim.neck_lr: {uniform: [1e-2, 1e-3]}}"], "low to its high end"),
        (["tune.space={optim.neck_lr: {loguniform: [0, 1e-3]}}"], "low end above 0"),
        (["tune.base=pbt"], "tune.base: Input should be 'fifo', 'asha' or 'median'"),
    ],
)
def test_a_space_without_trials_or_with_unknown_names_is_refused_by_its_path(
    file: str, words: list[str], told: str, capsys: Any
):
    code, _, err = dry(capsys, file, *words)
    assert code == ExitCode.USER_ERROR
    assert told in err


def test_resume_goes_on_with_a_sweep_and_takes_nothing_new(file: str, capsys: Any):
    for words in (["--run-id", "x"], ["--dry-run"]):
        code = cli.main(["tune", "--resume", "s", *words])
        assert (code, "--resume goes on" in capsys.readouterr().err) == (2, True)
    assert cli.main(["tune", file, "--resume", "nobody"]) == ExitCode.USER_ERROR
    assert "no run 'nobody'" in capsys.readouterr().err
