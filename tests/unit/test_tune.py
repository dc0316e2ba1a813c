"""How a sweep is continued or refused, and what its watch passes on; without Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.logger import CSVLoggerCallback

from service import cli
from service.background import Background
from service.config import Config, DataConfig
from service.decisions import Directive
from service.errors import ClusterError, ConfigError, DataError, ExitCode, RunError
from service.gonogo import Rules
from service.orchestration import entry, orphans, train, tune, watch
from service.orchestration.nested import _trial_run, past_end
from service.orchestration.orphans import QUIET_S, remove_orphans
from service.orchestration.rows import Sweep
from service.orchestration.runs import Run, held, make_run
from service.orchestration.scheduler import GoNoGoScheduler
from service.orchestration.summary import read_summary, write_summary
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal
from service.orchestration.sweeps import head_line, is_sweep, resume_sweep
from service.orchestration.trials import TrialRecord, is_end, new_record
from service.orchestration.tune import _can_restore
from service.orchestration.watch import Watch
from service.orchestration.worker import error_values
from service.settings import override
from service.training.journal import Journal
from service.views_sweep import final
from tests.reports import CONFIG
from tests.small import make_records, small_config

SPACE = "tune.space={run.seed: {grid: [0, 1]}}"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("small"), people=12)


@pytest.fixture
def sweep(tmp_path: Path) -> Run:
    """A sweep that was started."""
    config = override(Config(data=DataConfig(records="/r")), [SPACE, f"run.storage={tmp_path}"])
    run = make_run(Run("s", tmp_path / "s", config))
    SweepJournal(run.path / FILE_NAME).append(head_line("s", config))
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_sweep_is_found_by_its_folder_or_its_id(sweep: Run, tmp_path: Path):
    assert is_sweep(sweep.path)
    assert not is_sweep(tmp_path)
    assert resume_sweep(str(sweep.path)) == sweep
    assert resume_sweep("s", sweep.config) == sweep


def test_a_sweep_may_go_on_elsewhere_but_not_as_another_one(sweep: Run):
    elsewhere = override(sweep.config, ["cluster.num_workers=2", "tune.max_concurrent=2"])
    assert resume_sweep("s", elsewhere).config.tune.max_concurrent == 2
    before = files(sweep.path)
    for other in ("optim.weight_decay=0.3", "tune.samples=3", "run.seed=1"):
        with pytest.raises(RunError, match=r"belongs to another sweep.*nothing was changed"):
            resume_sweep("s", override(sweep.config, [other]))
    assert files(sweep.path) == before


def test_a_finished_sweep_is_refused_and_an_interrupted_one_is_not(sweep: Run):
    write_summary(sweep.path, {"verdict": "STOPPED", "steps": 7})
    assert resume_sweep(str(sweep.path)) == sweep
    write_summary(sweep.path, {"verdict": "GO", "steps": 700})
    with pytest.raises(RunError, match=r"sweep s has ended: GO after 700 steps"):
        resume_sweep(str(sweep.path))


@pytest.mark.parametrize("verdict", ["GO", "ERROR", "PAUSE"])
def test_a_sweep_is_not_finished_while_a_trial_has_no_end(sweep: Run, verdict: str):
    journal = SweepJournal(sweep.path / FILE_NAME)
    for event, trial in (("trial", "a"), ("trial", "b"), ("end", "a")):
        journal.append({"event": event, "trial": trial})
    write_summary(sweep.path, {"verdict": verdict, "steps": 700})
    assert resume_sweep(str(sweep.path)) == sweep
    journal.append({"event": "end", "trial": "b"})
    with pytest.raises(RunError, match=f"sweep s has ended: {verdict} after 700 steps"):
        resume_sweep(str(sweep.path))


def told_at_end(sweep: Run, *outcomes: dict[str, Any]) -> Sweep:
    """The end of a sweep whose trials told these outcomes."""
    records = {
        f"t{at}": TrialRecord(Rules.of(sweep.config), outcome=told if is_end(told) else None)
        for at, told in enumerate(outcomes)
    }
    results = [
        SimpleNamespace(
            metrics={"trial_id": f"t{at}", "outcome": json.dumps(told)},
            config={},
            error=None,
            path=None,
        )
        for at, told in enumerate(outcomes)
    ]
    return tune._ended(sweep, results, records, was_interrupted=False)


def test_a_sweep_of_errors_is_not_called_no_go_and_goes_on_if_the_cluster_was_to_blame(sweep: Run):
    lost = {"error": error_values(ClusterError("workers were lost"))}
    bad = {"error": error_values(DataError("bad"))}
    found = told_at_end(sweep, bad, lost)
    assert (found.verdict, found.is_open) == ("ERROR", True)
    summary = read_summary(sweep.path)
    assert summary is not None
    assert summary["verdict"] == found.to_dict()["verdict"] == "ERROR"
    assert f"crossreid tune --resume {sweep.path}" in final(found)
    whole = told_at_end(sweep, bad)
    assert (whole.verdict, whole.is_open) == ("ERROR", False)
    assert "--resume" not in final(whole)


def test_a_trial_goes_on_where_and_as_often_as_the_config_says_now(sweep: Run):
    first = _trial_run(sweep.config, "t", sweep.path)
    elsewhere = override(sweep.config, ["cluster.max_failures=9"])
    again = _trial_run(elsewhere, "t", sweep.path)
    assert (again.path, again.config.cluster.max_failures) == (first.path, 9)


def test_loggers_and_failures_of_a_continued_sweep_are_those_of_its_config_now(
    sweep: Run, monkeypatch: pytest.MonkeyPatch
):
    own = SimpleNamespace(_tune_config=SimpleNamespace(), _run_config=SimpleNamespace())
    monkeypatch.setattr(tune, "_can_restore", lambda *_, **__: True)
    monkeypatch.setattr(tune.Tuner, "restore", lambda *_, **__: SimpleNamespace(_local_tuner=own))
    now = override(sweep.config, ["tune.loggers=[csv]", "cluster.max_failures=9"])
    run = Run(sweep.run_id, sweep.path, now)
    tune._tuner(run, GoNoGoScheduler(now, sweep.path / FILE_NAME))
    assert [type(found) for found in own._run_config.callbacks] == [CSVLoggerCallback]
    assert own._run_config.failure_config.max_failures == 9


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tune.base=asha", "tune.base_grace_steps=100000"], "would never stop one"),
        (["tune.search=optuna"], "grid"),
        (["tune.space={policy.hold: {grid: [0.98]}, policy.collapse: {grid: [0.97]}}"], "fit"),
    ],
)
def test_what_a_sweep_would_be_refused_for_is_told_before_it_has_a_folder(
    records: Path, tmp_path: Path, capsys: Any, words: list[str], told: str
):
    config = small_config(records, [f"run.storage={tmp_path}/runs", SPACE])
    file = tmp_path / "sweep.yaml"
    file.write_text(config.to_yaml())
    assert cli.main(["tune", str(file), "--dry-run", *words]) == ExitCode.USER_ERROR
    assert told in capsys.readouterr().err
    with pytest.raises(ConfigError, match=told):
        tune.launch_tuning(override(config, words), experiment_id="night")
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_refuses_a_name_that_the_run_would_refuse(
    records: Path, tmp_path: Path, capsys: Any
):
    config = small_config(records, [f"run.storage={tmp_path}", SPACE])
    file = tmp_path / "sweep.yaml"
    file.write_text(config.to_yaml())
    make_run(Run("taken", tmp_path / "taken", config))
    for name, told in (("../x", "must be 1 to 64"), ("taken", "exists already")):
        code = cli.main(["tune", str(file), "--dry-run", "--run-id", name])
        assert (code, told in capsys.readouterr().err) == (ExitCode.USER_ERROR, True)


def test_a_training_is_not_continued_as_a_sweep(sweep: Run):
    Journal(sweep.path, 1).close()
    with pytest.raises(RunError, match=r"is a run, not a sweep.*train --resume"):
        resume_sweep(str(sweep.path))
    with pytest.raises(RunError, match=r"no run 'nobody'"):
        resume_sweep("nobody")


def test_a_sweep_killed_before_its_first_line_begins_anew(sweep: Run):
    (sweep.path / FILE_NAME).unlink()
    assert resume_sweep(str(sweep.path)) == sweep


def outcome(verdict: str, words: str = "") -> dict[str, Any]:
    values = {"verdict": verdict, "cause": "", "words": words, "remedy": "", "exit_code": 0}
    return {**values, "summary": {"steps": 40}}


@pytest.mark.parametrize(
    ("events", "has_ended"),
    [
        ([], False),
        ([{"event": "start"}], False),
        ([{"event": "start"}, {"event": "end", **outcome("WAIT")}], True),
        ([{"event": "start"}, {"event": "end", **outcome("STOPPED", "no gradient")}], True),
        ([{"event": "start"}, {"event": "end", **outcome("STOPPED", "interrupted")}], False),
        ([{"event": "end", **outcome("WAIT")}, {"event": "start"}], False),
    ],
)
def test_a_trial_has_ended_when_its_own_journal_says_so(
    sweep: Run, events: list[dict[str, Any]], has_ended: bool
):
    journal = Journal(sweep.path, 1)
    for event in events:
        journal.append(event)
    journal.close()
    found = past_end(sweep)
    assert (found is not None) == has_ended
    if found is not None:
        assert found == outcome(found["verdict"], found["words"])


def snapshot(sweep: Run, name: str, text: str) -> Path:
    folder = sweep.path / "tune"
    folder.mkdir(exist_ok=True)
    (folder / "tuner.pkl").write_bytes(b"")
    (folder / f"experiment_state-{name}.json").write_text(text)
    return folder


def test_a_snapshot_that_was_cut_off_is_moved_aside_for_the_one_before(sweep: Run):
    folder = snapshot(sweep, "1", "{}")
    snapshot(sweep, "2", '{"trial_da')
    assert _can_restore(sweep, folder, has_trials=True)
    assert sorted(p.name for p in folder.glob("exp*")) == [
        "experiment_state-1.json",
        "experiment_state-2.torn",
    ]


def test_without_a_snapshot_random_trials_are_made_again_and_guided_ones_cannot(sweep: Run):
    folder = snapshot(sweep, "1", "{")
    assert not _can_restore(sweep, folder, has_trials=True)
    guided = Run("s", sweep.path, override(sweep.config, ["tune.search=optuna"]))
    with pytest.raises(RunError, match=r"what optuna had learned is lost. The trials are whole"):
        _can_restore(guided, folder, has_trials=True)
    assert not _can_restore(guided, folder, has_trials=False)


def test_a_sweep_has_one_driver(sweep: Run):
    with held(sweep), pytest.raises(RunError, match=r"by another process"), held(sweep):
        pass


class Told:
    """A monitor and a reader that note what they are told, interrupted at the second look."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.ends: list[str] = []
        self.samples: dict[str, Any] = {}
        self.looks = 0
        self.put_while_closed: dict[str, bool] = {}
        self.started = ["a"]
        self.is_saving, self.step_s = False, 0.0
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def look(self, reader: Any) -> None:
        self.looks += 1
        if self.looks == 2:
            raise KeyboardInterrupt

    def ended(self, key: str) -> None:
        self.ends.append(key)

    def sampled(self, key: str, sample: Any) -> None:
        self.samples[key] = sample

    def put(self, key: str, directive: Directive) -> None:
        assert directive.stop
        self.put_while_closed[key] = self.scheduler.is_closed


def test_the_watch_tells_who_has_ended_and_starts_nothing_while_it_stops(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr("service.orchestration.train.LOOK_S", 0.01)
    monkeypatch.setattr("service.orchestration.train.STOP_S", 0.1)
    record = SimpleNamespace(killed=False, sample={"run.seed": 1}, outcome=None)
    late = SimpleNamespace(killed=False, sample={}, outcome=None)
    over = SimpleNamespace(killed=False, sample={}, outcome={})
    trials = {"a": record, "late": late, "over": over}
    scheduler: Any = SimpleNamespace(trials=trials, ended={"b"}, is_closed=False)
    told: Any = Told(scheduler)
    never: Any = SimpleNamespace(wait=lambda seconds: False)
    task: Background[Any] = never
    assert Watch(task, scheduler, told, told).until_end() == ([], True)
    assert told.ends == ["b"]
    assert told.samples == {"a": {"run.seed": 1}, "late": {}, "over": {}}
    # Also who has told of no workers yet: the control plane keeps the request for them.
    assert told.put_while_closed == {"a": True, "late": True}
    assert len(told.said) == 1
    assert "interrupt again to leave" in told.said[0]


def test_an_error_is_told_by_the_driver_under_which_it_happened_and_no_later_one():
    records = {key: new_record(CONFIG, {}) for key in ("before", "now")}
    error = {"error": {"type": "NonFiniteError", "message": "x"}}
    records["before"].outcome = error
    scheduler: Any = SimpleNamespace(trials=records, ended={"before", "now"})
    told: list[tuple[str, ...]] = []
    monitor: Any = SimpleNamespace(
        look=lambda reader: None,
        sampled=lambda key, sample: None,
        failed=lambda key, name: told.append((key, name)),
        ended=lambda key: told.append((key,)),
    )
    watching = Watch(SimpleNamespace(), scheduler, monitor, SimpleNamespace())  # type: ignore[arg-type]
    records["now"].outcome = error
    watching._look()
    assert sorted(told) == [("before",), ("now",), ("now", "non_finite")]


def watching(look: Callable[[Any], None], started: list[str], step_s: float = 0.0) -> Any:
    """A monitor, as far as it is asked while trials stop."""
    return SimpleNamespace(
        look=look, started=started, is_saving=False, step_s=step_s, say=lambda line: None
    )


@pytest.mark.parametrize(("step_s", "patience_s"), [(0.1, 15), (3.0, 15), (7.0, 28), (60.0, 240)])
def test_a_run_has_some_steps_to_stop_in_however_long_they_take(
    monkeypatch: pytest.MonkeyPatch, step_s: float, patience_s: float
):
    clock = [0.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    monitor = watching(lambda reader: None, ["main"], step_s)
    reader: Any = SimpleNamespace(put=lambda key, directive: None)

    def wait(seconds: float) -> bool:
        clock[0] += seconds
        return False

    train.stop_trials(SimpleNamespace(wait=wait), monitor, reader, lambda: ["main"])  # type: ignore[arg-type]
    assert clock[0] == patience_s


def test_a_trial_whose_workers_come_up_after_the_interrupt_is_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(train, "STOP_S", 5.0)
    put: list[str] = []
    going, started = ["early"], ["early"]

    def look(reader: Any) -> None:
        going.append("late")

    monitor = watching(look, started)
    reader: Any = SimpleNamespace(put=lambda key, directive: put.append(key))
    task: Any = SimpleNamespace(wait=lambda seconds: "late" in put)
    train.stop_trials(task, monitor, reader, lambda: list(going))
    assert put == ["early", "early", "late"]


def test_a_run_whose_workers_never_came_up_is_not_waited_for():
    looks: list[Any] = []
    monitor = watching(looks.append, [])
    reader: Any = SimpleNamespace(put=lambda key, directive: None)
    task: Any = SimpleNamespace(wait=lambda seconds: False)
    train.stop_trials(task, monitor, reader, lambda: ["main"])
    assert len(looks) == 1


@pytest.mark.parametrize(("first", "last"), [("process", "controller"), ("controller", "process")])
def test_a_killed_trial_is_freed_once_all_it_ran_in_is_dead_and_nothing_came_for_a_while(
    first: str, last: str, monkeypatch: pytest.MonkeyPatch
):
    clock, dead, left = [0.0], set[str](), set[bytes]()
    looks: list[float] = []
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watch, "actor_is_dead", lambda actor: actor in dead)
    monkeypatch.setattr(watch, "remove_orphans", lambda: looks.append(clock[0]) or left)
    record = SimpleNamespace(killed=False, process="process", controller="controller", outcome=None)
    scheduler: Any = SimpleNamespace(trials={"a": record})
    told: Any = Told(scheduler)
    watching = Watch(SimpleNamespace(), scheduler, told, told)  # type: ignore[arg-type]

    def free(at: float) -> bool:
        clock[0] = at
        return watching._free()

    assert free(0.0)
    record.killed = True
    assert not free(1.0)
    dead.add(first)
    assert not free(10.0)
    assert not free(20.0)
    dead.add(last)
    assert not free(20.0 + QUIET_S - 0.1)
    left.add(b"late")
    assert not free(20.0 + QUIET_S)
    left.clear()
    assert not free(20.1 + QUIET_S)
    assert free(20.0 + 2 * QUIET_S)
    # Nobody is asked any more, however long the sweep goes on, until another trial is killed.
    asked = len(looks)
    assert free(1000.0)
    assert len(looks) == asked
    scheduler.trials["b"] = SimpleNamespace(killed=True, process="", controller="", outcome=None)
    assert not free(1000.0)
    assert not free(1059.0)
    assert not free(1061.0)
    assert free(1061.0 + QUIET_S)


def test_the_journal_of_a_sweep_is_plain_json(sweep: Run):
    (line,) = (sweep.path / FILE_NAME).read_text().splitlines()
    assert {"sweep", "fingerprint", "space"} <= set(json.loads(line))


def test_a_job_that_is_started_again_continues_its_sweep(
    sweep: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[tuple[Any, Any]] = []

    def launch(config: Config, *, experiment_id: Any, resume: Any, on_progress: Any) -> Any:
        given.append((experiment_id, resume))
        return Sweep("s", sweep.path, (), None, 0)

    monkeypatch.setattr(tune, "launch_tuning", launch)
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep.config.to_yaml())
    assert entry.tune_entry([str(file), "--run-id", "new"]) == ExitCode.OK
    assert entry.tune_entry([str(file), "--run-id", "s"]) == ExitCode.OK
    assert given == [("new", None), (None, str(sweep.path))]


@pytest.mark.parametrize(
    ("marked", "dead", "removed"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_a_group_is_an_orphan_also_when_its_creator_made_it_after_its_death(
    marked: bool, dead: bool, removed: bool, monkeypatch: pytest.MonkeyPatch
):
    group = SimpleNamespace(
        creator_actor_dead=marked, creator_actor_id=b"\x01", placement_group_id=b"g" * 18
    )
    asked: list[Any] = []
    monkeypatch.setattr(orphans, "_made_by_actors", lambda: [group])
    monkeypatch.setattr(orphans, "actor_is_dead", lambda actor: dead and actor == "01")
    monkeypatch.setattr(orphans, "remove_placement_group", asked.append)
    assert remove_orphans() == ({group.placement_group_id} if removed else set())
    assert len(asked) == removed
