"""Checkpoints of whole runs: stores that fail, damage, machines that leave, exact resumes."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.decisions import Action, Directive
from service.distributed import Distributed
from service.errors import CheckpointError, DamagedCheckpointError
from service.orchestration.evaluate import evaluate_run
from service.orchestration.runs import create_run, read_summary
from service.settings import override
from service.training import saving
from service.training import writer as writer_module
from service.training.checkpoint import checkpoints, load, step_of
from service.training.journal import Event, read_journal
from service.training.loop import Trainer, train
from service.training.ports import Outcome, Ports
from service.training.store import Store, open_checkpoints
from tests.faulty import Faults, FaultyFileSystem, register
from tests.integration.test_loop import CLOCKS, same, sending, without_clock
from tests.small import small_config

SHORT = [
    *("train.max_steps=40", "train.checkpoint_every=10", "log.health_every=10", "log.every=8"),
    # No decision finds fault with the clock, which no two runs share.
    *("policy.min_throughput=0", "policy.max_data_wait=1"),
]
REMOTE = "run.checkpoints=faulty://bucket/at"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    register()
    monkeypatch.setattr(writer_module, "PAUSES_S", (0.01, 0.02))
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()


def run(records: Path, folder: Path, *overrides: str, ports: Ports | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    config = small_config(records, [*SHORT, *overrides])
    return train(config, folder, Distributed.single(), ports or Ports())


def events(folder: Path, name: str) -> list[Event]:
    return [e for e in read_journal(folder) if e["event"] == name]


def steps(folder: Path, name: str) -> list[int]:
    return [e["step"] for e in events(folder, name)]


def remote(folder: Path) -> Store:
    return open_checkpoints(REMOTE.partition("=")[2], folder)


def lines(folder: Path, *names: str) -> list[Event]:
    """The last journal line of each kind and step, without clocks, in order."""
    clocks = (*CLOCKS, "seconds", "data_wait_s", "time", "attempt")

    def plain(value: Any) -> Any:
        is_dict = isinstance(value, dict)
        return {k: plain(v) for k, v in value.items() if k not in clocks} if is_dict else value

    last = {(e["step"], e["event"]): plain(e) for e in read_journal(folder) if e["event"] in names}
    return [last[key] for key in sorted(last)]


def dies_at(step: int) -> Callable[[int], None]:
    """A poll that kills the run before that step."""
    left = iter(range(step - 1))

    def poll(applied: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return poll


@pytest.mark.parametrize("killed_at", [14, 31])
def test_a_killed_run_tells_the_journal_of_an_uninterrupted_one(
    records: Path, tmp_path: Path, killed_at: int
):
    """Checkpoints fall at 10 and 30, inside periods of the events `steps`, which are of 8."""
    run(records, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path / "killed", ports=Ports(poll=dies_at(killed_at)))
    run(records, tmp_path / "killed")
    assert steps(tmp_path / "killed", "start") == [0, killed_at // 10 * 10]
    told = lines(tmp_path / "straight", "steps", "health", "decision")
    assert [e["step"] for e in told if e["event"] == "steps"] == [8, 16, 24, 32, 40]
    assert all(e["count"] == 8 for e in told if e["event"] == "steps")
    assert lines(tmp_path / "killed", "steps", "health", "decision") == told


def test_a_run_with_its_checkpoints_elsewhere_is_stopped_resumed_and_the_same(
    records: Path, tmp_path: Path, faults: Faults
):
    run(records, tmp_path / "straight")
    stop = Ports(poll=lambda applied: Directive.to_stop(1, "") if _enough(applied) else None)
    polls = iter(range(13))

    def _enough(applied: int) -> bool:
        return applied < 1 and next(polls, None) is None

    assert run(records, tmp_path / "run", REMOTE, ports=stop).verdict == "STOPPED"
    assert remote(tmp_path / "run").steps() == [10, 13]
    run(records, tmp_path / "run", REMOTE)
    assert not checkpoints(tmp_path / "run")
    assert steps(tmp_path / "run", "start") == [0, 13]
    store = remote(tmp_path / "run")
    assert store.steps()[-2:] == [30, 40]
    straight = load(open_checkpoints(None, tmp_path / "straight"), 40)
    first, second = without_clock(straight), without_clock(load(store, 40))
    assert second["progress"].pop("directive") - first["progress"].pop("directive") == 1
    assert all(same(first[part], second[part]) for part in first)


def test_training_goes_on_while_the_store_refuses(records: Path, tmp_path: Path, faults: Faults):
    def event(told: Event) -> None:
        if told["event"] == "checkpoint" and told["step"] == 10:
            faults.refuses = True
        if told["event"] == "steps" and told["step"] == 32:
            faults.refuses = False

    outcome = run(records, tmp_path, REMOTE, ports=Ports(event=event))
    assert outcome.summary["steps"] == 40
    assert remote(tmp_path).steps()[-1] == 40
    failed = events(tmp_path, "checkpoint_failed")
    assert 1 <= len(failed) <= 2
    assert "cannot reach faulty://bucket/at" in failed[0]["message"]


def test_a_last_checkpoint_that_takes_long_is_told_of(
    records: Path, tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saving, "TELL_S", 0.2)
    monkeypatch.setattr(saving, "WAIT_S", 0.05)
    faults.holds = threading.Event()
    told: list[Event] = []

    def event(found: Event) -> None:
        told.append(found)
        if [e["event"] for e in told].count("checkpoint_slow") == 2:
            faults.holds.set()

    run(records, tmp_path, REMOTE, "train.checkpoint_every=1000", ports=Ports(event=event))
    slow = events(tmp_path, "checkpoint_slow")
    assert [e["step"] for e in slow[:2]] == [40, 40]
    assert 0.2 <= slow[0]["seconds"] < slow[1]["seconds"]


def test_one_failure_too_many_ends_the_run(records: Path, tmp_path: Path, faults: Faults):
    faults.refuses = True
    allowed = ["train.failed_checkpoints=1", "train.checkpoint_every=2", "train.max_steps=4000"]
    with pytest.raises(CheckpointError, match="access denied"):
        run(records, tmp_path, REMOTE, *allowed)
    assert len(steps(tmp_path, "checkpoint_failed")) >= 2
    assert max(steps(tmp_path, "steps"), default=0) < 3000
    assert events(tmp_path, "error")[-1]["kind"] == "CheckpointError"
    assert read_summary(tmp_path) is None
    faults.refuses = False
    assert run(records, tmp_path, REMOTE, "train.max_steps=20").verdict
    assert steps(tmp_path, "start")[-1] == 0


@pytest.mark.parametrize("fault", ["refuses", "truncates", "room"])
def test_a_run_is_never_done_without_its_last_checkpoint(
    records: Path, tmp_path: Path, faults: Faults, fault: str
):
    setattr(faults, fault, {"refuses": True, "truncates": "state.pt", "room": 1000}[fault])
    with pytest.raises(CheckpointError):
        run(records, tmp_path, REMOTE, "train.max_steps=12")
    assert read_summary(tmp_path) is None
    assert steps(tmp_path, "end") == []
    assert (remote(tmp_path).steps(), FaultyFileSystem.files()) == ([], [])


def test_a_last_checkpoint_that_failed_before_is_tried_once_more(
    records: Path, tmp_path: Path, faults: Faults
):
    """The run is stopped right after the step whose checkpoint failed."""
    stopped = threading.Event()

    def event(told: Event) -> None:
        if told["event"] == "checkpoint_failed":
            faults.refuses = False
            stopped.set()

    def poll(applied: int) -> Directive | None:
        if told_steps and told_steps[-1] == 10:
            assert stopped.wait(10)
            return Directive.to_stop(1, "")
        return None

    told_steps: list[int] = []
    faults.refuses = True
    ports = Ports(
        event=event, poll=poll, progress=lambda step, total, line: told_steps.append(step)
    )
    assert run(records, tmp_path, REMOTE, ports=ports).summary["steps"] == 10
    assert steps(tmp_path, "checkpoint_failed") == [10]
    assert remote(tmp_path).steps() == [10]


def damage_state(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema": 2, "step"')


def lose_state(folder: Path) -> None:
    (folder / "state.pt").unlink()


@pytest.mark.parametrize("damage", [damage_state, damage_manifest, lose_state, shutil.rmtree])
def test_a_damaged_checkpoint_is_told_and_the_next_older_one_taken(
    records: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    run(records, tmp_path / "straight", "train.keep_checkpoints=99")
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "straight", resumed)
    (resumed / "summary.json").unlink()
    newest = checkpoints(resumed)[-1]
    damage(newest)
    run(records, resumed, "train.keep_checkpoints=99")
    (told,) = events(resumed, "checkpoint_damaged")
    assert told["folder"] == str(newest)
    assert newest.name in told["message"]
    assert steps(resumed, "start") == [0, 30]
    stores = [open_checkpoints(None, tmp_path / name) for name in ("straight", "resumed")]
    assert [store.steps() for store in stores] == [[10, 20, 30, 40]] * 2
    straight, again = (without_clock(load(store, 40)) for store in stores)
    assert all(same(straight[part], again[part]) for part in straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 99}, "has schema 99"), ({"made_with": {"config": "0"}}, "with other config")],
)
def test_a_checkpoint_of_another_kind_is_an_error_and_not_passed_over(
    records: Path, tmp_path: Path, change: dict[str, Any], message: str
):
    run(records, tmp_path)
    manifest = checkpoints(tmp_path)[-1] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"_00000040.* {message}"):
        run(records, tmp_path)
    assert events(tmp_path, "checkpoint_damaged") == []


@pytest.mark.parametrize("damage", [damage_state, shutil.rmtree])
def test_a_run_without_a_whole_checkpoint_never_begins_again_in_silence(
    records: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    run(records, tmp_path)
    names = [folder.name for folder in checkpoints(tmp_path)]
    for folder in checkpoints(tmp_path):
        damage(folder)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is whole: .*run\.checkpoints"
    ) as told:
        run(records, tmp_path)
    assert not isinstance(told.value, DamagedCheckpointError)
    listed = names if damage is damage_state else names[-1:]
    assert all(name in str(told.value) for name in listed)
    assert len(events(tmp_path, "checkpoint_damaged")) == len(listed)
    assert steps(tmp_path, "start") == [0]


def test_checkpoints_that_are_looked_for_elsewhere_are_missed(
    records: Path, tmp_path: Path, faults: Faults
):
    run(records, tmp_path)
    with pytest.raises(CheckpointError, match="_00000040 is gone, which was written"):
        run(records, tmp_path, REMOTE)


def test_a_store_that_is_down_is_an_error_and_not_a_new_beginning(
    records: Path, tmp_path: Path, faults: Faults
):
    run(records, tmp_path, REMOTE)
    faults.down = True
    with pytest.raises(CheckpointError, match="no route"):
        run(records, tmp_path, REMOTE)
    assert steps(tmp_path, "start") == [0]


def test_machines_that_leave_cost_one_checkpoint_each_time(records: Path, tmp_path: Path):
    """The answer stays the same for some steps, changes, is withdrawn, and comes again."""
    asked = iter(["", "a", "a", "a", "a, b", "", "", "a, b"])
    ports = Ports(leaving=lambda: next(asked, "a, b"), leaving_every_s=0.0)
    run(records, tmp_path / "left", "train.keep_checkpoints=99", ports=ports)
    told = [(e["step"], e["machines"]) for e in events(tmp_path / "left", "leaving")]
    assert told == [(1, "a"), (4, "a, b"), (7, "a, b")]
    run(records, tmp_path / "straight", "train.keep_checkpoints=99")
    stores = [open_checkpoints(None, tmp_path / name) for name in ("left", "straight")]
    assert stores[1].steps() == [10, 20, 30, 40]
    assert set(stores[0].steps()) <= {1, 4, 7, 10, 20, 30, 40}
    assert set(stores[0].steps()) & {1, 4, 7}
    left, straight = (without_clock(load(store, 40)) for store in stores)
    assert all(same(left[part], straight[part]) for part in left)
    names = ("steps", "health", "decision")
    assert lines(tmp_path / "left", *names) == lines(tmp_path / "straight", *names)


def test_a_run_goes_on_from_what_it_saved_when_machines_left(records: Path, tmp_path: Path):
    """At 12, between two flushes of its measurements, and lost two steps later."""
    asked = iter([""] * 12)
    ports = Ports(leaving=lambda: next(asked, "a machine"), leaving_every_s=0.0, poll=dies_at(16))
    run(records, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path / "left", ports=ports)
    run(records, tmp_path / "left")
    assert steps(tmp_path / "left", "start") == [0, 12]
    names = ("steps", "health", "decision")
    assert lines(tmp_path / "left", *names) == lines(tmp_path / "straight", *names)


def test_machines_are_asked_for_as_seldom_as_the_port_says(records: Path, tmp_path: Path):
    asked: list[int] = []

    def leaving() -> str:
        asked.append(1)
        return ""

    run(records, tmp_path, ports=Ports(leaving=leaving, leaving_every_s=1e6))
    assert not asked


def test_the_best_the_last_or_any_checkpoint_is_evaluated(
    records: Path, tmp_path: Path, faults: Faults
):
    config = override(small_config(records, SHORT), [f"run.storage={tmp_path}", REMOTE])
    made = create_run(config, "r")
    worse = Ports(
        poll=sending(Directive(1, 21, (Action("head_lr", 0.0),))), event=lambda event: None
    )
    train(made.config, made.path, Distributed.single(), replace(worse, decides=False))
    scores = {e["step"]: e["health"]["ce_fraction"] for e in events(made.path, "health")}
    best = min((10, 20, 30, 40), key=lambda step: scores[step])
    kept = remote(made.path).steps()
    assert kept == sorted({best, 30, 40})
    chosen = {"last": 40, "best": best, "30": 30}
    for name, step in chosen.items():
        _, summary = evaluate_run(str(made.path), checkpoint=name)
        assert summary["evaluated_step"] == step
    for name in ("10" if best != 10 else "20", "newest", "-1"):
        with pytest.raises(CheckpointError, match="expected last, best or one of the steps"):
            evaluate_run(str(made.path), checkpoint=name)


def test_without_a_report_none_is_the_best(records: Path, tmp_path: Path):
    config = small_config(records, [f"run.storage={tmp_path}", "train.checkpoint_every=2"])
    made = create_run(config, "r")
    with pytest.raises(KeyboardInterrupt):
        train(made.config, made.path, Distributed.single(), Ports(poll=dies_at(4)))
    assert [step_of(folder) for folder in checkpoints(made.path)] == [2]
    with pytest.raises(CheckpointError, match="evaluate --checkpoint last"):
        evaluate_run(str(made.path), checkpoint="best")


def test_a_new_run_does_not_take_over_the_checkpoints_of_another_of_its_name(
    records: Path, tmp_path: Path
):
    place = f"run.checkpoints={tmp_path / 'kept'}"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    run(records, tmp_path / "one" / "same", place)
    with pytest.raises(CheckpointError, match=r"checkpoint_00000040 belongs to another run"):
        run(records, tmp_path / "two" / "same", place)
    assert steps(tmp_path / "two" / "same", "start") == []


def test_reading_a_checkpoint_may_take_longer_than_a_collective(records: Path, tmp_path: Path):
    """Several ranks are tried in tests/distributed; here only that the waiting ends."""
    run(records, tmp_path / "one", "train.max_steps=20", "train.epochs=1000")
    again = run(
        records, tmp_path / "one", "train.max_steps=20", "cluster.collective_timeout_s=0.01"
    )
    assert again.summary["steps"] == 20


def test_a_disk_that_is_full_under_the_journal_is_an_error_in_words(records: Path, tmp_path: Path):
    def fill(applied: int) -> None:
        journal = trainer.journal
        assert journal is not None
        if trainer.progress.step == 20 and journal._file.name != "/dev/full":
            journal.close()
            journal._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115

    config = small_config(records, SHORT)
    trainer = Trainer(config, tmp_path, Distributed.single(), Ports(poll=fill))
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space"):
        trainer.run()
    trainer.close()
