"""Checkpoints of whole runs: stores that fail, damage, machines that leave, exact resumes."""

import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service import distributed
from service.decisions import Action, Directive
from service.distributed import Distributed
from service.errors import CheckpointError, DamagedCheckpointError
from service.orchestration.evaluate import evaluate_run
from service.orchestration.runs import create_run
from service.orchestration.summary import read_summary
from service.settings import override
from service.training import history, saving
from service.training import writer as writer_module
from service.training.checkpoint import State, load
from service.training.journal import Event, Journal, read_journal
from service.training.loop import Trainer, train
from service.training.parts import unhurried
from service.training.ports import Outcome, Ports
from service.training.store import OWNER_FILE, Store, open_checkpoints
from tests.faulty import Faults, FaultyFileSystem, SlowFolder, register
from tests.integration.test_loop import sending
from tests.small import dies_after, small_config
from tests.states import checkpoints, lines, read_checkpoint, same, step_of, without_clock

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
    monkeypatch.setattr(saving, "FIRST_PAUSES_S", (0.01,))
    monkeypatch.setattr(saving, "READ_PAUSES_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(saving, "LAST_PAUSE_S", 0.01)
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()


def run(records: Path, folder: Path, *overrides: str, ports: Ports | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    config = small_config(records, [*SHORT, *overrides])
    return train(config, folder, Distributed.single(), ports or Ports())


@pytest.fixture(scope="module")
def straight(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, which keeps all its checkpoints: to be compared with, or copied."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(records, folder, "train.keep_checkpoints=99")
    return folder


def copy(straight: Path, folder: Path) -> Path:
    """The run as it was before anybody was told of its end."""
    shutil.copytree(straight, folder)
    (folder / "summary.json").unlink()
    return folder


def events(folder: Path, name: str) -> list[Event]:
    return [e for e in read_journal(folder) if e["event"] == name]


def steps(folder: Path, name: str) -> list[int]:
    return [e["step"] for e in events(folder, name)]


def final(folder: Path) -> State:
    return read_checkpoint(checkpoints(folder)[-1])


def remote(folder: Path) -> Store:
    return open_checkpoints(REMOTE.partition("=")[2], folder)


@pytest.mark.parametrize("killed_at", [14, 31])
def test_a_killed_run_tells_the_journal_of_an_uninterrupted_one(
    records: Path, tmp_path: Path, straight: Path, killed_at: int
):
    """Checkpoints fall at 10 and 30, inside periods of the events `steps`, which are of 8."""
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path / "killed", ports=Ports(poll=dies_after(killed_at - 1)))
    run(records, tmp_path / "killed")
    assert steps(tmp_path / "killed", "start") == [0, killed_at // 10 * 10]
    told = lines(straight, "steps", "health", "decision")
    assert [e["step"] for e in told if e["event"] == "steps"] == [8, 16, 24, 32, 40]
    assert all(e["count"] == 8 for e in told if e["event"] == "steps")
    assert lines(tmp_path / "killed", "steps", "health", "decision") == told


def test_a_run_with_its_checkpoints_elsewhere_is_stopped_resumed_and_the_same(
    records: Path, tmp_path: Path, straight: Path, faults: Faults
):
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
    first, second = without_clock(final(straight)), without_clock(load(store, 40))
    assert second["progress"].pop("directive") - first["progress"].pop("directive") == 1
    assert all(same(first[part], second[part]) for part in first)


def test_training_goes_on_while_the_store_refuses(records: Path, tmp_path: Path, faults: Faults):
    """From the first checkpoint on until one has failed."""
    refusing, failed = threading.Event(), threading.Event()

    def event(told: Event) -> None:
        if told["event"] == "checkpoint" and told["step"] == 10:
            faults.refuses = True
            refusing.set()
        if told["event"] == "checkpoint_failed":
            failed.set()

    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        if step == 15:
            assert refusing.wait(60)
        if step == 35:
            assert failed.wait(60)
            faults.refuses = False

    outcome = run(records, tmp_path, REMOTE, ports=Ports(event=event, progress=progress))
    assert outcome.summary["steps"] == 40
    assert remote(tmp_path).steps()[-1] == 40
    told = events(tmp_path, "checkpoint_failed")
    assert 1 <= len(told) <= 2
    assert "cannot reach faulty://bucket/at" in told[0]["message"]


def test_a_last_checkpoint_that_takes_long_is_told_of(
    records: Path, tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saving, "TELL_S", 0.2)
    monkeypatch.setattr(distributed, "TURN_S", 0.05)
    faults.holds = holds = threading.Event()
    told: list[Event] = []

    def event(found: Event) -> None:
        told.append(found)
        if [e["event"] for e in told].count("checkpoint_slow") == 2:
            holds.set()

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
    assert remote(tmp_path).steps() == []
    assert [Path(file).name for file in FaultyFileSystem.files()] == [OWNER_FILE]
    rounds = 1 + small_config(records).train.failed_checkpoints
    assert len(steps(tmp_path, "checkpoint_failed")) >= rounds


def test_a_store_that_is_away_at_the_end_is_waited_for(
    records: Path, tmp_path: Path, faults: Faults
):
    """For longer than the tries of one checkpoint take."""
    told: list[str] = []

    def event(found: Event) -> None:
        told.append(found["event"])
        faults.refuses = told.count("checkpoint_failed") < 3

    faults.refuses = True
    short = ("train.max_steps=9", "train.checkpoint_every=1000")
    assert run(records, tmp_path, REMOTE, *short, ports=Ports(event=event)).summary["steps"] == 9
    assert remote(tmp_path).steps() == [9]
    assert steps(tmp_path, "checkpoint_failed") == [9, 9, 9]
    assert steps(tmp_path, "checkpoint_slow") == [9, 9, 9]


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
    records: Path, tmp_path: Path, straight: Path, damage: Callable[[Path], None]
):
    resumed = copy(straight, tmp_path / "run")
    newest = checkpoints(resumed)[-1]
    damage(newest)
    run(records, resumed, "train.keep_checkpoints=99")
    (told,) = events(resumed, "checkpoint_damaged")
    assert told["folder"] == str(newest)
    assert newest.name in told["message"]
    assert steps(resumed, "start") == [0, 30]
    assert [step_of(folder) for folder in checkpoints(resumed)] == [10, 20, 30, 40]
    first, again = without_clock(final(straight)), without_clock(final(resumed))
    assert all(same(first[part], again[part]) for part in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 99}, "has schema 99"), ({"made_with": {"config": "0"}}, "with other config")],
)
def test_a_checkpoint_of_another_kind_is_an_error_and_not_passed_over(
    records: Path, tmp_path: Path, straight: Path, change: dict[str, Any], message: str
):
    folder = copy(straight, tmp_path / "run")
    manifest = checkpoints(folder)[-1] / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"_00000040.* {message}"):
        run(records, folder)
    assert events(folder, "checkpoint_damaged") == []
    assert events(folder, "checkpoint_unread") == []


@pytest.mark.parametrize("damage", [damage_state, shutil.rmtree])
def test_a_run_without_a_whole_checkpoint_never_begins_again_in_silence(
    records: Path, tmp_path: Path, straight: Path, damage: Callable[[Path], None]
):
    run_dir = copy(straight, tmp_path / "run")
    names = [folder.name for folder in checkpoints(run_dir)]
    for folder in checkpoints(run_dir):
        damage(folder)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is whole: .*run\.checkpoints"
    ) as told:
        run(records, run_dir)
    assert not isinstance(told.value, DamagedCheckpointError)
    listed = names if damage is damage_state else names[-1:]
    assert all(name in str(told.value) for name in listed)
    assert len(events(run_dir, "checkpoint_damaged")) == len(listed)
    assert steps(run_dir, "start") == [0]


def test_checkpoints_that_are_looked_for_elsewhere_are_missed(
    records: Path, tmp_path: Path, straight: Path, faults: Faults
):
    folder = copy(straight, tmp_path / "run")
    with pytest.raises(CheckpointError, match="_00000040 is gone, which was written"):
        run(records, folder, REMOTE)


def test_a_store_that_is_down_is_an_error_and_not_a_new_beginning(
    records: Path, tmp_path: Path, faults: Faults
):
    run(records, tmp_path, REMOTE, "train.max_steps=20")
    faults.down = True
    with pytest.raises(CheckpointError, match="no route"):
        run(records, tmp_path, REMOTE, "train.max_steps=20")
    assert steps(tmp_path, "start") == [0]
    assert [e["seconds"] for e in events(tmp_path, "checkpoint_unread")] == [0.01, 0.02, 0.03]


def test_a_store_that_is_away_at_a_restart_is_asked_again(
    records: Path, tmp_path: Path, faults: Faults
):
    """Also with a damaged checkpoint, which is told of once."""
    run(records, tmp_path, REMOTE)
    damaged = f"/bucket/at/{tmp_path.name}/checkpoint_00000040/state.pt"
    FaultyFileSystem().pipe_file(damaged, b"x")
    faults.down = True

    def event(found: Event) -> None:
        if found["event"] == "checkpoint_unread":
            assert "no route" in found["message"]
            faults.down = found["seconds"] < 0.02
        if found["event"] == "checkpoint_damaged":
            faults.down = True

    run(records, tmp_path, REMOTE, ports=Ports(event=event))
    assert steps(tmp_path, "start") == [0, 30]
    assert len(events(tmp_path, "checkpoint_damaged")) == 1
    assert [e["seconds"] for e in events(tmp_path, "checkpoint_unread")] == [0.01, 0.02, 0.03]


def test_a_new_run_does_not_wait_long_for_a_store_that_is_not_there(
    records: Path, tmp_path: Path, faults: Faults
):
    faults.down = True
    with pytest.raises(CheckpointError, match="no route"):
        run(records, tmp_path, REMOTE)
    assert [e["seconds"] for e in events(tmp_path, "checkpoint_unread")] == [0.01]


def test_a_store_that_hangs_does_not_keep_a_run_that_failed(
    records: Path, tmp_path: Path, faults: Faults
):
    faults.holds = threading.Event()
    limit = "cluster.collective_timeout_s=0.5"
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path, REMOTE, limit, ports=Ports(poll=dies_after(12)))
    faults.holds.set()
    while any(thread.name == "checkpoints" for thread in threading.enumerate()):
        time.sleep(0.01)
    (failed,) = events(tmp_path, "checkpoint_failed")
    assert failed["step"] == 10
    assert "the store has held it up" in failed["message"]


def test_a_reading_that_hangs_does_not_keep_a_rank_whose_peer_is_lost():
    asked = iter([[1.0], [1.0]])

    def agree(values: list[float]) -> list[float]:
        found = next(asked, None)
        if found is None:
            raise RuntimeError("Connection closed by peer")
        return found

    world = SimpleNamespace(rank=0, agree=agree, turn_s=0.02)
    hangs = threading.Event()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="closed by peer"):
        unhurried(cast(Distributed, world), lambda: hangs.wait(60))
    assert time.monotonic() - began < 30
    hangs.set()


def test_machines_that_leave_cost_one_checkpoint_each_time(
    records: Path, tmp_path: Path, straight: Path
):
    """The answer stays the same for some steps, changes, is withdrawn, and comes again."""
    asked = iter(["", "a", "a", "a", "a, b", "", "", "a, b"])
    ports = Ports(leaving=lambda: next(asked, "a, b"), leaving_every_s=0.0)
    run(records, tmp_path / "left", "train.keep_checkpoints=99", ports=ports)
    told = [(e["step"], e["machines"]) for e in events(tmp_path / "left", "leaving")]
    assert told == [(1, "a"), (4, "a, b"), (7, "a, b")]
    kept = {step_of(folder) for folder in checkpoints(tmp_path / "left")}
    assert kept <= {1, 4, 7, 10, 20, 30, 40}
    assert kept & {1, 4, 7}
    left, whole = without_clock(final(tmp_path / "left")), without_clock(final(straight))
    assert all(same(left[part], whole[part]) for part in left)
    names = ("steps", "health", "decision")
    assert lines(tmp_path / "left", *names) == lines(straight, *names)


def test_a_run_goes_on_from_what_it_saved_when_machines_left(
    records: Path, tmp_path: Path, straight: Path
):
    """At 12, between two flushes of its measurements, and lost two steps later."""
    asked = iter([""] * 12)
    leaving = Ports(leaving=lambda: next(asked, "a machine"), leaving_every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path / "left", ports=replace(leaving, poll=dies_after(15)))
    run(records, tmp_path / "left")
    assert steps(tmp_path / "left", "start") == [0, 12]
    names = ("steps", "health", "decision")
    assert lines(tmp_path / "left", *names) == lines(straight, *names)


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
        train(made.config, made.path, Distributed.single(), Ports(poll=dies_after(3)))
    assert [step_of(folder) for folder in checkpoints(made.path)] == [2]
    with pytest.raises(CheckpointError, match="evaluate --checkpoint last"):
        evaluate_run(str(made.path), checkpoint="best")


def test_a_new_run_does_not_take_over_the_checkpoints_of_another_of_its_name(
    records: Path, tmp_path: Path
):
    one, two = (tmp_path / folder / "same" for folder in ("one", "two"))
    place = f"run.checkpoints={tmp_path / 'kept'}"
    for folder in (one, two):
        folder.parent.mkdir()
    run(records, one, place)
    # Also when it is tried again, as the words that tell of a failed run say.
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"kept/same belongs to the run in {one}"):
            run(records, two, place)
    assert steps(two, "start") == []
    (tmp_path / "kept" / "same" / OWNER_FILE).unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="checkpoint_00000040 belongs to another run"):
            run(records, two, place)
    assert steps(two, "start") == []


def test_checkpoints_that_were_copied_elsewhere_are_gone_on_from(records: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        run(records, tmp_path / "r", ports=Ports(poll=dies_after(23)))
    there = tmp_path / "kept" / "r"
    there.mkdir(parents=True)
    for folder in checkpoints(tmp_path / "r"):
        folder.rename(there / folder.name)
    run(records, tmp_path / "r", f"run.checkpoints={tmp_path / 'kept'}")
    assert steps(tmp_path / "r", "start") == [0, 20]


def test_a_store_that_takes_nothing_is_found_before_a_new_run_makes_a_step(
    records: Path, tmp_path: Path, faults: Faults
):
    faults.refuses = faults.from_start = True
    with pytest.raises(CheckpointError, match="access denied"):
        run(records, tmp_path / "r", REMOTE)
    assert len(events(tmp_path / "r", "checkpoint_unread")) == len(saving.FIRST_PAUSES_S)
    assert steps(tmp_path / "r", "start") == []
    faults.refuses = False
    run(records, tmp_path / "r", REMOTE)
    assert steps(tmp_path / "r", "start") == [0]


def test_reading_a_checkpoint_may_take_longer_than_a_collective(records: Path, tmp_path: Path):
    """Several ranks are tried in tests/distributed; here only that the waiting ends."""
    run(records, tmp_path / "one", "train.max_steps=20", "train.epochs=1000")
    again = run(
        records, tmp_path / "one", "train.max_steps=20", "cluster.collective_timeout_s=0.01"
    )
    assert again.summary["steps"] == 20


def test_a_disk_that_is_full_under_the_journal_is_told_once_the_run_is_saved_elsewhere(
    records: Path, tmp_path: Path, faults: Faults
):
    def fill(applied: int) -> None:
        journal = trainer.telling.journal
        assert journal is not None
        if trainer.progress.step == 20 and journal._file.name != "/dev/full":
            journal.close()
            journal._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115

    config = small_config(records, [*SHORT, REMOTE, "train.checkpoint_every=1000"])
    trainer = Trainer(config, tmp_path, Distributed.single(), Ports(poll=fill))
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space"):
        trainer.run()
    trainer.close()
    assert remote(tmp_path).steps() == [trainer.progress.step]
    assert 20 <= trainer.progress.step < 40
    run(records, tmp_path, REMOTE, "train.checkpoint_every=1000")
    assert steps(tmp_path, "start") == [0, trainer.progress.step]


def test_a_full_disk_under_the_checkpoints_too_is_tried_once(
    records: Path, tmp_path: Path, faults: Faults
):
    def fill(applied: int) -> None:
        trainer.telling.error = history.unwritable(OSError("full"))
        faults.refuses = True

    config = small_config(records, [*SHORT, REMOTE])
    trainer = Trainer(config, tmp_path, Distributed.single(), Ports(poll=fill))
    with pytest.raises(CheckpointError, match="access denied"):
        trainer.run()
    trainer.close()
    assert len(steps(tmp_path, "checkpoint_failed")) == 1


def test_the_last_steps_are_told_where_the_run_ends(records: Path, tmp_path: Path):
    """Not where it is stopped: they are part of the next period once it goes on."""
    short = "train.max_steps=21"
    stop = Ports(poll=lambda applied: None if next(left, None) else Directive.to_stop(1, ""))
    left = iter([1] * 11)
    run(records, tmp_path, short, ports=stop)
    run(records, tmp_path, short)
    told = [(e["attempt"], e["step"], e["count"]) for e in events(tmp_path, "steps")]
    assert told == [(1, 8, 8), (2, 16, 8), (2, 21, 5)]
    run(records, tmp_path, short)
    assert len(events(tmp_path, "steps")) == 3


def test_a_clock_that_jumps_changes_nothing(
    records: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
):
    """The wall clock, between any two lines of the journal, by days and back."""
    clock = iter(1e9 + day * 86400.0 * (-1) ** day for day in range(10_000))

    def jumping() -> float:
        return next(clock)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(history, "Journal", functools.partial(Journal, now=jumping))
    run(records, tmp_path / "run")
    moments = [e["time"] for e in read_journal(tmp_path / "run")]
    assert moments != sorted(moments)
    first, jumped = without_clock(final(straight)), without_clock(final(tmp_path / "run"))
    assert all(same(first[part], jumped[part]) for part in first)
    names = ("steps", "health", "decision")
    assert lines(tmp_path / "run", *names) == lines(straight, *names)


KILLED = """
import sys
from pathlib import Path
import torch
from tests.faulty import SlowFolder
from tests.integration.test_saving import SLOW, run
torch.set_num_threads(1)
SlowFolder.use(Path(sys.argv[2]), holds_at=4)
run(Path(sys.argv[1]), Path(sys.argv[3]), SLOW)
"""
SLOW = "run.checkpoints=slow://bucket/at"


def test_a_process_that_is_killed_within_an_upload_leaves_what_the_next_one_goes_on_from(
    records: Path, tmp_path: Path, straight: Path
):
    """Its second checkpoint is half there: the fourth write, after whose the place is and two."""
    bucket, folder = tmp_path / "store", tmp_path / "run"
    (bucket / "bucket").mkdir(parents=True)
    command = [sys.executable, "-c", KILLED, str(records), str(bucket), str(folder)]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    until = time.monotonic() + 120
    while not (bucket / "half").exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    child.kill()
    assert child.wait() == -9
    half = bucket / "bucket" / "at" / "run" / "checkpoint_00000020"
    assert [path.name for path in half.iterdir()] == ["state.pt"]
    SlowFolder.use(bucket)
    run(records, folder, SLOW)
    assert steps(folder, "start") == [0, 10]
    kept = open_checkpoints(SLOW.partition("=")[2], folder)
    assert kept.steps()[-2:] == [30, 40]
    assert len(list(half.parent.rglob("*.*"))) == 2 * len(kept.steps()) + len(["owner.json"])
    first, again = without_clock(final(straight)), without_clock(load(kept, 40))
    assert all(same(first[part], again[part]) for part in first)
