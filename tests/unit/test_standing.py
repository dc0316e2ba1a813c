"""Where a run stands, from the journals that runs leave."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.causes import Cause
from service.config import Config, DataConfig
from service.decisions import Decision, Verdict
from service.errors import RunError
from service.orchestration.driver import JOB_VARIABLE
from service.orchestration.reading import find_standing, is_there, read_standing
from service.orchestration.runs import create_run, held, is_held, is_seen, plan_run, taken
from service.orchestration.standing import Life, Standing, State, standing
from service.orchestration.summary import write_summary
from service.orchestration.sweep_journal import SweepJournal
from service.settings import override
from service.training.journal import Event, read_journal
from tests.journals import CHECKPOINT_EVERY, LOG_EVERY, Trainer

RUNNING = Life(held=True)
GONE = Life()
SPACE = "tune.space={optim.head_lr: {grid: [1e-2, 1e-3, 1e-4]}}"


def told(folder: Path, life: Life, now: float, summary: Any = None) -> Standing:
    return standing("night", read_journal(folder), now=now, life=life, summary=summary)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path)


def test_a_run_that_trains_says_where_it_is_and_when_it_will_be_done(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 14)
    found = told(trainer.folder, RUNNING, trainer.now + 4)
    total = 100_000
    assert (found.state, found.verdict, found.step) == (State.TRAINING, "GO", 14)
    assert found.total == total
    assert found.eta_s == pytest.approx((total - 14) * 0.125)
    assert (found.epoch, found.sdm_weight) == (2, 0.0)
    assert found.ce_fraction == pytest.approx((6.0 - 0.14) / math.log(400))
    assert found.images_per_second == pytest.approx(80 / (LOG_EVERY * 0.125))
    assert (found.world_size, found.attempt, found.restarts) == (2, 1, 0)
    assert found.checkpoint_step == 2 * CHECKPOINT_EVERY
    assert found.silent_s == pytest.approx(5)
    written = [e["time"] for e in read_journal(trainer.folder) if e["event"] == "checkpoint"]
    assert found.checkpoint_age_s == pytest.approx(trainer.now + 4 - written[-1])
    assert found.newest == "[verdict] step=12 GO"


def test_the_pace_is_that_of_the_last_steps_however_many_each_event_stands_for(trainer: Trainer):
    trainer.begin(0)
    counts = [(1, 9.0, 50), *((step, 1.0, 1) for step in range(2, 6)), (6, 4.0, 4)]
    for step, seconds, count in counts:
        event = {"event": "steps", "step": step, "ce": 5.0, "top1": 0.1, "images": 1.0}
        trainer.write({**event, "seconds": seconds, "count": count})
    trainer.write({"event": "health", "step": 6, "health": {"total_steps": 106, "sdm_weight": 0}})
    found = told(trainer.folder, RUNNING, trainer.now)
    assert found.eta_s == pytest.approx(100 * (4 * 1.0 + 4 * 4.0) / 8)


def test_a_resumed_attempt_supersedes_what_was_written_past_its_start(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 20)
    trainer.begin(12)
    found = told(trainer.folder, RUNNING, trainer.now)
    assert (found.step, found.checkpoint_step, found.restarts) == (12, 12, 1)
    assert (found.eta_s, found.images_per_second, found.top1) == (None, None, None)
    at_12 = [e for e in read_journal(trainer.folder) if e["event"] == "checkpoint"][1]
    assert found.checkpoint_age_s == pytest.approx(trainer.now - at_12["time"])
    trainer.begin(0)
    assert told(trainer.folder, RUNNING, trainer.now).checkpoint_step is None


ENDS = [
    ("GO", State.ENDED, False),
    ("NO_GO", State.ENDED, False),
    ("PAUSE", State.PAUSED, True),
    ("STOPPED", State.STOPPED, True),
]


@pytest.mark.parametrize(("verdict", "state", "can_resume"), ENDS)
def test_an_end_says_whether_the_run_goes_on(
    trainer: Trainer, verdict: str, state: State, can_resume: bool
):
    trainer.begin(0)
    trainer.train(1, 6)
    trainer.end(6, verdict)
    found = told(trainer.folder, GONE, trainer.now, {"verdict": verdict, "steps": 6})
    assert (found.state, found.verdict, found.can_resume) == (state, verdict, can_resume)
    assert found.eta_s is None
    # A driver that has just ended it still shows the end; one that goes on has workers coming up.
    for driver in (Life(held=True), Life(held=True, job="RUNNING", job_id="night")):
        assert told(trainer.folder, driver, trainer.now).state is state
        again = replace(driver, attempts=1)
        assert told(trainer.folder, again, trainer.now).state is State.STARTING
    submitted = Life(job="RUNNING", job_id="night.2", is_taken=False)
    assert told(trainer.folder, submitted, trainer.now).state is State.STARTING


@pytest.mark.parametrize("behind_s", [3600.0, -3600.0])
def test_clocks_that_differ_by_an_hour_change_no_state_and_no_age_is_below_0(
    trainer: Trainer, behind_s: float
):
    """The journal's times are of the worker's clock, `now` is of the reader's."""
    trainer.begin(0)
    trainer.train(1, 14)
    life = Life(job="RUNNING", job_id="night")
    found = told(trainer.folder, life, trainer.now + behind_s)
    assert (found.state, found.step) == (State.TRAINING, 14)
    assert found.eta_s is not None
    assert (found.checkpoint_age_s or 0) >= 0
    assert (found.silent_s or 0) >= 0


def test_what_was_decided_beyond_where_a_resumed_attempt_begins_counts_no_more(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 20)
    assert told(trainer.folder, RUNNING, trainer.now).newest == "[verdict] step=18 GO"
    trainer.begin(6)
    found = told(trainer.folder, RUNNING, trainer.now)
    assert (found.step, found.checkpoint_step, found.verdict) == (6, 6, "WAIT")
    assert (found.epoch, found.sdm_weight, found.newest) == (1, 0.1, "")


def test_a_driver_that_died_leaves_a_lost_run_and_an_error_a_failed_one(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 8)
    for life in (GONE, Life(job="FAILED"), Life(job="STOPPED")):
        found = told(trainer.folder, life, trainer.now)
        assert (found.state, found.can_resume, found.eta_s) == (State.LOST, True, None)
    error = {"kind": "NonFiniteError", "cause": "non_finite", "name": "non_finite"}
    trainer.write({"event": "error", **error, "message": "the gradient became NaN"})
    found = told(trainer.folder, GONE, trainer.now)
    assert (found.state, found.verdict, found.cause) == (State.FAILED, "ERROR", "non_finite")
    assert found.words == "the gradient became NaN"
    assert found.newest == "NonFiniteError: the gradient became NaN"


def test_what_an_earlier_attempt_summed_up_is_no_end_of_this_one(trainer: Trainer):
    trainer.begin(0)
    trainer.end(6, "PAUSE")
    trainer.begin(6)
    trainer.train(7, 12)
    found = told(trainer.folder, GONE, trainer.now, {"verdict": "PAUSE", "steps": 6})
    assert found.state is State.LOST


def test_a_run_lost_in_its_evaluation_has_its_verdict(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 6)
    summary = {"verdict": "GO", "cause": "", "steps": 6}
    found = told(trainer.folder, GONE, trainer.now, summary)
    assert (found.state, found.verdict) == (State.ENDED, "GO")


def test_all_steps_done_and_no_end_yet_is_an_evaluation(trainer: Trainer):
    trainer.begin(0)
    trainer.write({"event": "health", "step": 9, "health": {"total_steps": 9, "sdm_weight": 0.1}})
    assert told(trainer.folder, RUNNING, trainer.now).state is State.EVALUATING


@pytest.mark.parametrize(
    ("life", "state"),
    [
        (Life(job="PENDING"), State.WAITING),
        (Life(job="RUNNING"), State.STARTING),
        (RUNNING, State.STARTING),
        (GONE, State.LOST),
    ],
)
def test_without_a_line_others_say_what_goes_on(tmp_path: Path, life: Life, state: State):
    found = told(tmp_path, life, 1000.0)
    assert (found.state, found.step, found.total, found.silent_s) == (state, 0, None, None)


def test_the_newest_thing_told_is_an_error_a_decision_or_what_has_a_message(trainer: Trainer):
    trainer.begin(0)
    decision = Decision(20, Verdict.WAIT).to_dict()
    trainer.write({"event": "decision", **decision})
    assert told(trainer.folder, RUNNING, trainer.now).newest == ""
    trainer.write({"event": "checkpoint_failed", "step": 12, "message": "no space left"})
    newest = told(trainer.folder, RUNNING, trainer.now).newest
    assert newest == "[checkpoint_failed] step=12 no space left"


def test_a_standing_survives_json_also_from_a_version_with_more_fields(trainer: Trainer):
    trainer.begin(0)
    trainer.train(1, 9)
    found = told(trainer.folder, RUNNING, trainer.now)
    sweep = Standing("s", State.TRAINING, trials=(found,))
    assert Standing.from_dict({**sweep.to_dict(), "mood": "good"}) == sweep


# -- from folders ----------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config(data=DataConfig(records="records"))
    return override(made, [f"run.storage={tmp_path / 'runs'}", "run.name=night"])


def test_a_folder_is_read_with_its_lock_and_its_places(config: Config):
    run = create_run(override(config, ["run.checkpoints=s3://bucket/c"]), "one")
    trainer = Trainer(run.path)
    trainer.begin(0)
    trainer.train(1, 6)
    with held(run):
        found = read_standing(run.path)
        assert (found.state, found.folder) == (State.TRAINING, str(run.path))
    assert found.checkpoint_at == "s3://bucket/c/one/checkpoint_00000006"
    trainer.end(6, "NO_GO")
    write_summary(run.path, {"verdict": "NO_GO", "steps": 6})
    assert read_standing(run.path).state is State.ENDED
    local = create_run(config, "two")
    Trainer(local.path).begin(6)
    assert read_standing(local.path).checkpoint_at == f"{local.path}/checkpoint_00000006"


def test_a_driver_that_has_taken_the_run_is_told_from_the_one_before(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    run = create_run(config, "one")
    trainer = Trainer(run.path)
    newest = Life(job="RUNNING", job_id="one.2")

    def state(life: Life | None = None) -> State:
        return read_standing(run.path, life).state

    def submitted(job: str) -> None:
        told_by_ray = {"runtime_env": {}, "metadata": {"job_submission_id": job}}
        monkeypatch.setenv(JOB_VARIABLE, json.dumps(told_by_ray))

    submitted("one")
    with taken(run, new=False):
        trainer.begin(0)
        trainer.train(1, 6)
        assert state(Life(job="RUNNING", job_id="one")) is State.TRAINING
    # The first driver was killed; the second is yet to take the run, then its workers come up.
    assert (state(), state(newest)) == (State.LOST, State.STARTING)
    submitted("one.2")
    with taken(run, new=False):
        assert (state(), state(newest)) == (State.STARTING, State.STARTING)
        trainer.begin(6)
        assert (state(), state(newest)) == (State.TRAINING, State.TRAINING)
    # Somebody goes on with it who is no job.
    monkeypatch.delenv(JOB_VARIABLE)
    with taken(run, new=False):
        trainer.begin(6)
        assert state(Life(job="FAILED", job_id="one.2")) is State.TRAINING


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes files of this name such as another user may not open, or look for."""

    def close(name: str) -> None:
        opened, looked = Path.open, Path.stat

        def refuse(call: Any) -> Any:
            def called(self: Path, *args: Any, **words: Any) -> Any:
                if self.name == name:
                    raise PermissionError(13, "Permission denied", str(self))
                return call(self, *args, **words)

            return called

        monkeypatch.setattr(Path, "open", refuse(opened))
        monkeypatch.setattr(Path, "stat", refuse(looked))

    return close


def test_a_folder_that_may_not_be_searched_is_not_seen_and_no_traceback(
    config: Config, closed: Callable[[str], None]
):
    run = create_run(config, "one")
    closed("config.yaml")
    assert not is_seen(run.path)
    assert find_standing(run.path, Life()) is None
    assert plan_run(config, "one").path == run.path, "whoever makes it there is told"
    for look in (read_standing, is_there):
        with pytest.raises(RunError, match=r"cannot be read: .*Permission denied"):
            look(run.path)


def test_a_lock_that_may_not_be_looked_at_is_neither_held_nor_free(
    config: Config, closed: Callable[[str], None]
):
    run = create_run(config, "one")
    Trainer(run.path).begin(0)
    with held(run):
        assert is_held(run.path) is True
    assert is_held(run.path) is False
    closed(".lock")
    assert is_held(run.path) is None
    with pytest.raises(RunError, match=r"cannot be told: the lock .* --address URL asks its clus"):
        read_standing(run.path)
    assert read_standing(run.path, Life(job="RUNNING", job_id="one")).state is State.TRAINING
    assert read_standing(run.path, Life(job="FAILED", job_id="one")).state is State.LOST


def test_looking_keeps_no_driver_out_and_changes_nothing(config: Config):
    run = create_run(config, "one")
    with taken(run, new=False):
        pass
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    read_standing(run.path)
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


def test_a_sweep_counts_its_trials(config: Config):
    run = create_run(override(config, [SPACE]), "sweep")
    journal = SweepJournal(run.path / "decisions.jsonl")
    assert read_standing(run.path, Life(job="RUNNING")).state is State.STARTING
    for trial in ("a", "b", "c"):
        line: Event = {"event": "trial", "time": 1.0, "trial": trial, "sample": {}}
        journal.append(line)
        decision = Decision(40, Verdict.GO if trial == "a" else Verdict.WAIT).to_dict()
        told_of = {"step": 40, "total": 90, "decision": decision}
        journal.append({**line, "event": "decision", **told_of})
    journal.append({"event": "end", "time": 2.0, "trial": "b", "outcome": {"verdict": "NO_GO"}})
    found = read_standing(run.path, Life(job="RUNNING"))
    assert (found.state, found.step, found.total) == (State.TRAINING, 1, 3)
    states = [(t.run, t.state, t.verdict, t.step, t.total) for t in found.trials]
    assert states == [
        ("a", State.TRAINING, "GO", 40, 90),
        ("b", State.ENDED, "NO_GO", 40, 90),
        ("c", State.TRAINING, "WAIT", 40, 90),
    ]
    assert found.newest == "a: [verdict] step=40 GO"
    # From 1 to 2 s, and done is one trial of three, with 40 of 90 steps of each other.
    done = (1 + 2 * 40 / 90) / 3
    assert found.eta_s == pytest.approx((1 - done) / done)
    assert (found.verdict, found.words) == ("", "")
    left = read_standing(run.path)
    assert (left.state, left.trials[0].state) == (State.LOST, State.STOPPED)
    write_summary(run.path, {"verdict": "STOPPED"})
    ended = read_standing(run.path)
    assert (ended.state, ended.words, ended.eta_s) == (
        State.STOPPED,
        "1 GO, 1 NO_GO, 1 WAIT",
        None,
    )


def test_a_sweep_that_has_just_begun_is_waited_for_as_a_run_is(config: Config):
    run = create_run(override(config, [SPACE]), "sweep")
    assert read_standing(run.path, Life(job="PENDING")).state is State.WAITING
    journal = SweepJournal(run.path / "decisions.jsonl")
    with taken(run, new=False):
        found = read_standing(run.path)
        assert (found.state, found.begun) == (State.STARTING, False)
        journal.append({"event": "sweep", "sweep": "sweep"})
        found = read_standing(run.path)
        assert (found.state, found.step, found.total) == (State.STARTING, 0, 3)
        journal.append({"event": "trial", "time": 1.0, "trial": "a", "sample": {}})
        found = read_standing(run.path)
        assert (found.state, found.begun) == (State.TRAINING, True)
    assert read_standing(run.path).state is State.LOST


def test_a_plain_run_whose_config_has_a_space_is_no_sweep(config: Config):
    run = create_run(override(config, [SPACE]), "one")
    trainer = Trainer(run.path)
    with taken(run, new=False):
        found = read_standing(run.path)
        assert (found.state, found.step, found.total) == (State.STARTING, 0, None)
        trainer.begin(0)
        trainer.train(1, 14)
        found = read_standing(run.path)
        assert (found.state, found.step, found.total) == (State.TRAINING, 14, 100_000)
    trainer.end(14, "STOPPED")
    write_summary(run.path, {"verdict": "STOPPED", "steps": 14})
    found = read_standing(run.path)
    assert (found.state, found.step, found.total) == (State.STOPPED, 14, 100_000)
    assert found.checkpoint_at == f"{run.path}/checkpoint_00000012"


def test_a_trial_that_goes_on_as_a_run_of_its_own_is_one_and_its_sweep_stays_a_sweep(
    config: Config,
):
    sweep = create_run(override(config, [SPACE]), "sweep")
    journal = SweepJournal(sweep.path / "decisions.jsonl")
    journal.append({"event": "trial", "time": 1.0, "trial": "a", "sample": {}})
    write_summary(sweep.path, {"verdict": "STOPPED"})
    trial = create_run(sweep.config, "a", sweep.path)
    trainer = Trainer(trial.path, decides=False)
    trainer.begin(0)
    trainer.train(1, 12)
    with taken(trial, new=False):
        assert read_standing(trial.path).state is State.STARTING
        trainer.begin(12)
        trainer.train(13, 15)
        found = read_standing(trial.path)
        assert (found.state, found.step, found.total) == (State.TRAINING, 15, 100_000)
        assert read_standing(sweep.path).state is State.STOPPED
    assert read_standing(trial.path).state is State.LOST


def test_a_job_or_driver_has_begun_once_it_has_trained_whatever_others_did_before(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    run = create_run(config, "one")
    trainer = Trainer(run.path)

    def begun(job: str = "") -> bool:
        return read_standing(run.path, Life(job="STOPPED", job_id=job) if job else None).begun

    assert not begun()
    with taken(run, new=False):
        assert not begun()
        trainer.begin(0)
        assert begun()
    assert begun()
    # A job that ended before it took the folder, then one that did before its workers came up.
    assert not begun("one.2")
    monkeypatch.setenv(JOB_VARIABLE, json.dumps({"metadata": {"job_submission_id": "one.2"}}))
    with taken(run, new=False):
        assert (begun(), begun("one.2")) == (False, False)
        trainer.attempt += 1
        trainer.write({"event": "checkpoint_unread", "message": "the store is away"})
        assert (begun(), begun("one.2")) == (False, False), "it waits for its checkpoint"
        trainer.begin(0)
    assert (begun(), begun("one.2"), begun("one.3")) == (True, True, False)


def test_a_sweep_has_the_cause_that_its_trials_have_in_common(config: Config):
    space = "tune.space={optim.head_lr: {grid: [1e-2, 1e-3]}}"
    run = create_run(override(config, [space]), "sweep")
    journal = SweepJournal(run.path / "decisions.jsonl")
    for trial in ("a", "b"):
        told_of = Decision(40, Verdict.NO_GO, Cause.HEAD_LR_TOO_SMALL).to_dict()
        line: Event = {"event": "decision", "time": 1.0, "trial": trial, "step": 40, "total": 90}
        journal.append({**line, "decision": told_of})
        journal.append({"event": "end", "trial": trial, "outcome": {"verdict": "NO_GO"}})
    write_summary(run.path, {"verdict": "NO_GO"})
    found = read_standing(run.path)
    assert (found.cause, found.words) == (str(Cause.HEAD_LR_TOO_SMALL), "2 NO_GO")


def test_looking_loads_neither_torch_nor_ray():
    code = (
        "import sys, service.orchestration.reading, service.orchestration.orders;"
        "print({'ray', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
