"""Sinks follow journals in threads of their own: nothing is lost, and nobody waits for them."""

import importlib.util
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.orchestration.runs import create_run
from service.orchestration.sinks import check_sinks, open_sinks, source_of
from service.settings import load_text, override
from service.telemetry.sinks.channel import Channel
from service.telemetry.sinks.event_files import FOLDER
from service.telemetry.sinks.feed import Sinks
from service.telemetry.sinks.mlflow_runs import metric_name, note
from service.telemetry.sinks.reading import Source
from service.telemetry.sinks.sink import Entry, Numbers, Status, Subject, Text
from tests.journals import (
    Trainer,
    scalars,
)
from tests.reports import CONFIG


def run_folder(parent: Path, name: str = "night") -> Path:
    config = load_text(f"run: {{storage: {parent}}}\ndata: {{records: {parent}}}")
    return create_run(config, name, parent).path


# -- the thread ------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """A place in memory that can be made to fail or to wait; `entries` is what it was sent."""

    entries: list[Entry] = field(default_factory=list)
    opened: list[Subject] = field(default_factory=list)
    closed: list[Status] = field(default_factory=list)
    fails: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def open(self, subject: Subject) -> "Shelf":
        self._try()
        self.opened.append(subject)
        self.entries.clear()
        self._unsent: list[Entry] = []
        return self

    @property
    def where(self) -> str:
        return "the shelf"

    @property
    def changed(self) -> Mapping[str, int]:
        return {"odd numbers": 2}

    def put(self, entry: Entry) -> None:
        self._unsent.append(entry)

    def flush(self) -> None:
        self._try()
        self.entries += self._unsent
        self._unsent.clear()

    def close(self, status: Status) -> None:
        self.closed.append(status)

    def _try(self) -> None:
        assert self.gate.wait(30)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route\nto host")

    @property
    def steps(self) -> list[int]:
        return [e.step for e in self.entries if isinstance(e, Numbers) and "steps/ce" in e.values]


@pytest.fixture
def shelf() -> Shelf:
    place = Shelf()
    place.gate.set()
    return place


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(run_folder(tmp_path))


def sinks_of(shelf: Shelf, trainer: Trainer) -> Sinks:
    folder = trainer.folder
    return Sinks({"shelf": shelf}, lambda trial: source_of(folder, folder.name, trial))


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_what_is_heard_comes_over_once_and_the_end_closes_it(shelf: Shelf, trainer: Trainer):
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    sinks.hear("main", {"event": "start"})
    trainer.train(1, 6)
    sinks.hear("main", {"event": "health"})
    wait_until(lambda: shelf.steps == [2, 4, 6])
    assert not shelf.closed
    trainer.end(6)
    sinks.close()
    sinks.close()
    assert shelf.closed == [Status.FINISHED]
    assert [s.name for s in shelf.opened] == ["night"]
    assert sinks.messages() == ["shelf: the shelf", "shelf holds 2 odd numbers"]
    assert sinks.messages() == []
    assert sinks.failures == {"shelf": 0}


def test_a_sink_that_fails_loses_nothing_and_is_said_once(shelf: Shelf, trainer: Trainer):
    shelf.fails = 1
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    sinks.hear("main", {"event": "start"})
    wait_until(lambda: sinks.failures["shelf"] == 1)
    trainer.train(1, 4)
    wait_until(lambda: shelf.steps == [2, 4])
    shelf.fails = 1
    trainer.train(5, 6)
    sinks.hear("main", {"event": "steps"})
    wait_until(lambda: shelf.steps == [2, 4, 6])
    sinks.close()
    said = sinks.messages()
    assert said[0] == (
        "shelf takes nothing now: ConnectionError: no route; training goes on, and the rest is "
        "sent as soon as it can be"
    )
    assert [line for line in said[1:] if "no route" in line] == []
    assert "shelf: 2 calls failed, and in the end everything was sent" in said
    assert len(shelf.opened) == 1


def test_a_sink_that_fails_to_the_end_is_said_with_what_to_do(shelf: Shelf, trainer: Trainer):
    shelf.fails = 1000
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    sinks.hear("main", {"event": "start"})
    wait_until(lambda: sinks.failures["shelf"] == 1)
    sinks.close()
    assert sinks.messages()[-1] == (
        "shelf lacks the end of 1 trial: 2 calls failed, ConnectionError: no route; crossreid "
        "export RUN --to shelf sends all of it again"
    )


def test_a_sink_that_hangs_holds_up_neither_training_nor_the_end(shelf: Shelf, trainer: Trainer):
    shelf.gate.clear()
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    trainer.train(1, 40)
    begin = time.monotonic()
    for _ in range(20_000):
        sinks.hear("main", {"event": "steps"})
    assert time.monotonic() - begin < 2.0
    begin = time.monotonic()
    sinks.close(timeout_s=0.3)
    assert time.monotonic() - begin < 2.0
    assert sinks.messages() == [
        "shelf had not taken everything when time was up; crossreid export RUN --to shelf sends "
        "all of it again"
    ]
    shelf.gate.set()
    wait_until(lambda: bool(shelf.closed))
    assert shelf.steps == list(range(2, 41, 2))


def test_a_storage_that_stumbles_ends_no_sink(shelf: Shelf, trainer: Trainer):
    stumbles = iter([True])

    def source(trial: str) -> Source:
        if next(stumbles, False):
            raise OSError(5, "Input/output error")
        return source_of(trainer.folder, trainer.folder.name, trial)

    sinks = Sinks({"shelf": shelf}, source)
    trainer.begin(0)
    trainer.train(1, 4)
    sinks.hear("main", {"event": "steps"})
    wait_until(lambda: shelf.steps == [2, 4])
    sinks.close()
    assert sinks.failures == {"shelf": 1}


def test_a_reading_that_fails_half_way_loses_no_lines(shelf: Shelf, trainer: Trainer):
    judged = trainer.folder / "judged.jsonl"
    channel = Channel(Source("sweep", "t", trainer.folder, judged), shelf)
    trainer.begin(0)
    trainer.train(1, 4)
    channel.catch_up()
    assert shelf.steps == [2, 4]
    trainer.train(5, 6)
    judged.mkdir()
    with pytest.raises(OSError, match="directory"):
        channel.catch_up()
    judged.rmdir()
    trainer.train(7, 8)
    channel.catch_up()
    assert shelf.steps == [2, 4, 6, 8]


def test_lines_that_are_not_told_wake_nobody(shelf: Shelf, trainer: Trainer):
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    for event in ("unpaired", "workers"):
        sinks.hear("main", {"event": event})
    time.sleep(0.05)
    assert not shelf.opened
    sinks.close()


def test_steps_trained_again_begin_a_new_sink_and_end_the_old(shelf: Shelf, trainer: Trainer):
    sinks = sinks_of(shelf, trainer)
    trainer.begin(0)
    trainer.train(1, 8)
    sinks.hear("main", {"event": "steps"})
    wait_until(lambda: shelf.steps == [2, 4, 6, 8])
    trainer.begin(6)
    sinks.hear("main", {"event": "start"})
    wait_until(lambda: shelf.steps == [2, 4, 6])
    trainer.train(7, 10)
    sinks.close()
    assert shelf.steps == [2, 4, 6, 8, 10]
    assert shelf.closed == [Status.SUPERSEDED, Status.STOPPED]
    assert [s.name for s in shelf.opened] == ["night", "night attempt 2"]


def test_what_befell_machines_and_stores_is_told(shelf: Shelf, trainer: Trainer):
    trainer.begin(0)
    trainer.write({"event": "lost", "ranks": [1], "words": "rank 1 was lost"})
    trainer.write({"event": "checkpoint_failed", "step": 6, "message": "access denied"})
    once = Channel(source_of(trainer.folder, "night", "main"), shelf)
    once.catch_up()
    told = [entry.words for entry in shelf.entries if isinstance(entry, Text)]
    assert told[1:] == [
        "[workers] rank 1 was lost; all start again from the last checkpoint",
        "[checkpoint] the checkpoint of step 6 was not written: access denied",
    ]


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("GO", "FINISHED"), ("WAIT", "FINISHED"), ("NO_GO", "FAILED"), ("PAUSE", "STOPPED")],
)
def test_a_sink_ends_as_the_run_did(verdict: str, status: str, shelf: Shelf, trainer: Trainer):
    trainer.begin(0)
    trainer.end(0, verdict)
    once = Channel(source_of(trainer.folder, "night", "main"), shelf)
    once.catch_up()
    assert shelf.closed == [status]


# -- what is asked for -----------------------------------------------------------------------------


def test_without_sinks_there_is_no_thread_and_nothing_is_written(tmp_path: Path):
    folder = run_folder(tmp_path)
    Trainer(folder).begin(0)
    before, threads = sorted(folder.rglob("*")), threading.active_count()
    with open_sinks(CONFIG, "night", folder) as sinks:
        sinks.hear("main", {"event": "start"})
        assert threading.active_count() == threads
    assert (sorted(folder.rglob("*")), sinks.messages()) == (before, [])


def test_leaving_the_sinks_sends_the_rest(tmp_path: Path):
    folder = run_folder(tmp_path)
    trainer = Trainer(folder)
    config = override(CONFIG, ["telemetry.sinks=[tensorboard]"])
    assert config.fingerprint() == CONFIG.fingerprint()
    with open_sinks(config, "night", folder) as sinks:
        trainer.begin(0)
        trainer.train(1, 4)
        sinks.hear("main", {"event": "steps"})
    assert [step for step, _ in scalars(folder / FOLDER)["steps/ce"]] == [2, 4]


def test_a_missing_package_or_login_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
):
    asked = override(CONFIG, ["telemetry.sinks=[mlflow]"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ConfigError, match=r"telemetry\.sinks: mlflow needs the package mlflow"):
        check_sinks(asked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: True)
    check_sinks(asked)
    monkeypatch.setenv("HOME", "/nowhere")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"telemetry\.sinks: wandb has no login"):
        check_sinks(override(CONFIG, ["telemetry.sinks=[wandb]"]))


def test_names_and_descriptions_are_what_mlflow_takes():
    assert metric_name("mAP/NIR+CP") == "mAP/NIR_CP"
    assert metric_name("health/ce") == "health/ce"
    lines = [Text(step, 0.0, "decision", f"word {step} " + "x" * 90) for step in range(100)]
    told = note(lines)
    assert len(told) <= 5000
    assert "word 99" in told
    assert "word 0 " not in told
    left_out = sum(f"word {step} " not in told for step in range(100))
    assert f"({left_out} earlier texts are in journal.jsonl)" in told
    assert note([Text(1, 0.0, "error", "<b>")]) == "- step 1: &lt;b&gt;"
