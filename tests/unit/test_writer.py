"""Checkpoints are written beside training: never waited for, never lost in silence."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.training import writer as writer_module
from service.training.checkpoint import load, snapshot
from service.training.journal import Event
from service.training.store import FolderStore, Store, open_checkpoints
from service.training.writer import CheckpointWriter
from tests.faulty import Faults, FaultyFileSystem, register

MADE_WITH = {"config": "f" * 16}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    register()
    monkeypatch.setattr(writer_module, "PAUSES_S", (0.01, 0.02))
    before = threading.active_count()
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()
    assert threading.active_count() <= before


Made = tuple[CheckpointWriter, Store, list[Event]]


@pytest.fixture
def make(tmp_path: Path, faults: Faults) -> Iterator[Callable[..., Made]]:
    """A writer into the faulty store, that store, and what the writer told."""

    writers: list[CheckpointWriter] = []

    def made(**settings: Any) -> Made:
        told: list[Event] = []
        store = open_checkpoints("faulty://bucket/at", tmp_path)
        settings = {"keep": 2, **settings}
        writers.append(CheckpointWriter(store, made_with=MADE_WITH, tell=told.append, **settings))
        return writers[-1], store, told

    yield made
    for writer in writers:
        writer.close()


def state(step: int) -> dict[str, Any]:
    return {"w": torch.full((1000,), float(step))}


def of(told: list[Event], name: str) -> list[int]:
    return [event["step"] for event in told if event["event"] == name]


def write_all(writer: CheckpointWriter, scores: dict[int, float | None]) -> None:
    for step, score in scores.items():
        writer.write(state(step), step, score)
        assert writer.wait(10)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({1: None, 2: None, 3: None}, [2, 3]),
        ({1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6}, [3, 4]),
        ({1: 0.9, 2: 0.5, 3: 0.7, 4: 0.6, 5: 0.8}, [2, 4, 5]),
        ({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}, [1, 3, 4]),
        ({1: 0.5, 2: 0.9, 3: 0.9, 4: 0.4, 5: 0.9, 6: 0.9}, [4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_stay(
    make: Callable[..., Made], scores: dict[int, float | None], kept: list[int]
):
    writer, store, told = make()
    write_all(writer, scores)
    assert store.steps() == kept
    assert of(told, "checkpoint") == list(scores)
    assert len(FaultyFileSystem.files()) == 2 * len(kept)


def test_the_state_is_copied_before_write_returns(tmp_path: Path):
    writer = CheckpointWriter(FolderStore(tmp_path), made_with=MADE_WITH, keep=2)
    weights = torch.zeros(1000)
    for step in (1, 2, 3):
        weights.fill_(step)
        writer.write({"w": weights}, step)
        weights.fill_(-1)
        assert writer.wait(10)
    writer.close()
    store = FolderStore(tmp_path)
    assert [float(load(store, step)["w"][0]) for step in store.steps()] == [2.0, 3.0]


def test_a_slow_store_costs_checkpoints_and_never_time(make: Callable[..., Made], faults: Faults):
    faults.holds = threading.Event()
    writer, store, told = make()
    began = time.monotonic()
    for step in range(1, 6):
        writer.write(state(step), step)
        until = time.monotonic() + 5
        while not faults.writes and time.monotonic() < until:
            time.sleep(0.001)  # So that the first is being written, not waiting.
    assert time.monotonic() - began < 2
    assert of(told, "checkpoint_skipped") == [2, 3, 4]
    assert not writer.wait(0.01)
    faults.holds.set()
    assert writer.wait(10)
    assert of(told, "checkpoint") == store.steps() == [1, 5]
    assert (writer.failure, writer.fatal) == (None, None)


def test_a_write_that_fails_now_and_then_is_tried_again(make: Callable[..., Made], faults: Faults):
    """Every third write fails, of state or manifest; three tries hide that."""
    faults.fails_at = frozenset(range(3, 100, 3))
    writer, store, told = make()
    write_all(writer, dict.fromkeys(range(1, 9)))
    assert store.steps() == [7, 8]
    assert of(told, "checkpoint") == list(range(1, 9))
    assert of(told, "checkpoint_failed") == []
    assert float(load(store, 8)["w"][0]) == 8.0


def test_more_failures_in_a_row_than_may_be_are_fatal(make: Callable[..., Made], faults: Faults):
    writer, store, told = make(failures=2)
    write_all(writer, {1: None})
    faults.refuses = True
    write_all(writer, {2: None, 3: None})
    assert writer.fatal is None
    assert writer.failure is not None
    faults.refuses = False
    write_all(writer, {4: None})
    assert writer.failure is None
    faults.refuses = True
    write_all(writer, {5: None, 6: None})
    assert writer.fatal is None
    write_all(writer, {7: None})
    assert "access denied" in str(writer.fatal)
    assert of(told, "checkpoint_failed") == [2, 3, 5, 6, 7]
    assert "check the address, the credentials" in told[-1]["message"]
    assert store.steps() == [1, 4]


def test_each_failed_checkpoint_was_tried_three_times(make: Callable[..., Made], faults: Faults):
    faults.refuses = True
    writer, _, _ = make()
    write_all(writer, {1: None})
    assert len(faults.writes) == 3
    assert writer.fatal is not None


def test_a_store_that_loses_data_is_never_believed(make: Callable[..., Made], faults: Faults):
    writer, store, told = make(failures=9)
    write_all(writer, {1: None})
    faults.truncates = "state.pt"
    write_all(writer, {2: None, 3: None})
    assert store.steps() == [1]
    assert of(told, "checkpoint_failed") == [2, 3]
    assert "the store loses data" in told[-1]["message"]


def test_a_full_store_is_told_and_used_again_once_it_has_room(
    make: Callable[..., Made], faults: Faults
):
    writer, store, told = make(failures=9)
    write_all(writer, {1: None})
    faults.room = 6000
    write_all(writer, {2: None})
    assert (store.steps(), of(told, "checkpoint_failed")) == ([1], [2])
    assert len(FaultyFileSystem.files()) == 2
    faults.room = None
    write_all(writer, {3: None})
    assert store.steps() == [1, 3]


def test_what_a_lost_writer_left_is_taken_away(make: Callable[..., Made], faults: Faults):
    writer, store, _ = make()
    faults.dies_at = 1
    with pytest.raises(KeyboardInterrupt):
        store.put(5, b"half of it", b"{}")
    assert len(FaultyFileSystem.files()) == 1
    write_all(writer, {7: None})
    assert len(FaultyFileSystem.files()) == 2


def test_what_cannot_be_deleted_is_told_of_and_deleted_later(
    make: Callable[..., Made], faults: Faults
):
    faults.refuses_deletes = True
    writer, store, told = make(keep=1)
    write_all(writer, {1: None, 2: None})
    assert store.steps() == [1, 2]
    assert of(told, "checkpoint_stays") == [2]
    assert of(told, "checkpoint_failed") == []
    faults.refuses_deletes = False
    write_all(writer, {3: None})
    assert store.steps() == [3]


def test_a_damaged_checkpoint_is_none_of_the_newest_and_goes(make: Callable[..., Made]):
    writer, store, _ = make()
    for step in (5, 10, 20):
        store.put(step, b"x", b"{")
    writer.mark_damaged(20)
    write_all(writer, {11: None})
    assert store.steps() == [10, 11]
    writer.mark_damaged(10)
    write_all(writer, {10: None, 12: None})
    assert store.steps() == [11, 12]


def test_a_checkpoint_written_in_place_of_a_damaged_one_counts(make: Callable[..., Made]):
    writer, store, _ = make()
    store.put(20, b"x", b"{")
    writer.mark_damaged(20)
    write_all(writer, {19: None, 20: None, 21: None})
    assert store.steps() == [20, 21]


def test_a_fault_of_the_program_is_told_and_the_next_one_written(make: Callable[..., Made]):
    writer, store, told = make()
    writer.write({"f": lambda: None}, 1)
    assert writer.wait(10)
    assert "checkpoint of step 1 failed:" in str(writer.fatal)
    write_all(writer, {2: None})
    assert (of(told, "checkpoint_failed"), store.steps()) == ([1], [2])
    assert writer.failure is None


def test_what_waits_is_written_before_the_writer_closes(make: Callable[..., Made], faults: Faults):
    faults.slow_s = 0.05
    writer, store, _ = make()
    for step in (1, 2):
        writer.write(state(step), step)
    writer.close()
    assert store.steps()[-1] == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoints"]


def test_a_store_that_hangs_is_waited_for_in_words_and_then_left(
    make: Callable[..., Made], faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer_module, "TELL_S", 0.1)
    writer, store, told = make(keep=1)
    store.put(1, b"x", b"{")
    faults.holds = threading.Event()
    writer.write(state(2), 2)
    writer.close(1.0)
    assert set(of(told, "checkpoint_slow")) == {2}
    (failed,) = [event for event in told if event["event"] == "checkpoint_failed"]
    assert failed["step"] == 2
    assert "the store has held it up for" in failed["message"]
    faults.holds.set()
    assert writer.wait(10)
    assert told[-1] is failed
    assert store.steps() == [1, 2]


def test_a_store_that_fails_after_it_was_left_is_not_tried_again(
    make: Callable[..., Made], faults: Faults
):
    writer, _, told = make()
    faults.holds, faults.refuses = threading.Event(), True
    writer.write(state(1), 1)
    writer.close(0.05)
    faults.holds.set()
    assert writer.wait(10)
    assert (len(faults.writes), of(told, "checkpoint_failed")) == (1, [1])


def test_whoever_cannot_be_told_holds_nothing_up(tmp_path: Path):
    def deaf(event: Event) -> None:
        raise ConnectionError("nobody there")

    writer = CheckpointWriter(FolderStore(tmp_path), made_with=MADE_WITH, keep=2, tell=deaf)
    write_all(writer, {1: None, 2: None})
    assert "nobody there" in str(writer.fatal)
    assert FolderStore(tmp_path).steps() == [1, 2]
    writer.close()


@pytest.mark.parametrize(("waits", "most"), [(True, 1), (False, 3)])
def test_the_memory_of_a_copy_is_used_again_and_no_more_than_is_needed_at_once(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, waits: bool, most: int
):
    writer, store, told = make(keep=100)
    places: set[int] = set()
    written: dict[int, float] = {}

    def noting(value: Any, spare: Any = None) -> Any:
        taken = snapshot(value, spare)
        places.add(taken["w"].data_ptr())
        return taken

    monkeypatch.setattr(writer_module, "snapshot", noting)
    for step in range(1, 60):
        writer.write(state(step), step)
        assert not waits or writer.wait(10)
    assert writer.wait(10)
    for step in store.steps():
        written[step] = float(load(store, step)["w"].unique())
    assert written == {step: float(step) for step in written}
    assert set(written) | set(of(told, "checkpoint_skipped")) == set(range(1, 60))
    assert len(places) <= most


def test_a_state_is_not_overwritten_before_it_is_written(
    make: Callable[..., Made], faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    """Neither while its write is tried again, nor while it waits."""
    tried = threading.Event()
    faults.fails_at = frozenset({1})
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: tried.wait(10))
    monkeypatch.setattr(writer_module, "time", clock)
    writer, store, told = make(keep=100)
    writer.write(state(1), 1)
    until = time.monotonic() + 5
    while not faults.writes and time.monotonic() < until:
        time.sleep(0.001)
    for step in (2, 3, 4):
        writer.write(state(step), step)
    tried.set()
    assert writer.wait(10)
    assert of(told, "checkpoint_skipped") == [2, 3]
    assert [float(load(store, step)["w"].unique()) for step in store.steps()] == [1.0, 4.0]


def test_training_gets_the_interpreter_sooner_only_while_a_checkpoint_is_written(tmp_path: Path):
    turns: list[float] = []

    class Store(FolderStore):
        def put(self, step: int, state: bytes, manifest: bytes) -> None:
            turns.append(sys.getswitchinterval())
            super().put(step, state, manifest)

    before = sys.getswitchinterval()
    writer = CheckpointWriter(Store(tmp_path), made_with=MADE_WITH, keep=2)
    writer.write(state(1), 1)
    assert writer.wait(10)
    writer.close()
    assert turns[0] == pytest.approx(writer_module.TURN_S)
    assert sys.getswitchinterval() == before > turns[0]
