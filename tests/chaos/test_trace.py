"""The comparison itself: a journal is found wrong whenever anything in it is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.training.journal import Event, Journal, read_journal
from tests.chaos.chased import measured
from tests.chaos.trace import differences, summary_differences
from tests.journals import CHECKPOINT_EVERY, Trainer, steps_event

TOTAL = 15


def left_alone(folder: Path) -> list[Event]:
    """Every step has a line: what the trainer logs, and the steps in between."""
    return _written(folder, lambda trainer: _attempt(trainer, 0, TOTAL, ended=True))


def _written(folder: Path, write: Callable[[Trainer], None]) -> list[Event]:
    folder.mkdir()
    write(Trainer(folder))
    return read_journal(folder)


def _attempt(trainer: Trainer, after: int, last: int, *, ended: bool = False) -> None:
    trainer.begin(after)
    for step in range(after + 1, last + 1):
        trainer.train(step, step)
        if step % 2:
            trainer.write(steps_event(step))
    if ended:
        trainer.end(last)


def chased(folder: Path) -> list[Event]:
    """Killed at step 10, and again at step 8 of the second attempt."""

    def write(trainer: Trainer) -> None:
        _attempt(trainer, 0, 10)
        _attempt(trainer, CHECKPOINT_EVERY, 8)
        _attempt(trainer, CHECKPOINT_EVERY, TOTAL, ended=True)

    return _written(folder, write)


def test_a_run_that_was_killed_and_continued_tells_what_one_left_alone_tells(tmp_path: Path):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    assert list(differences(trace, journal, TOTAL)) == []


def changed(journal: list[Event], at: int, **values: Any) -> list[Event]:
    return [event | values if i == at else event for i, event in enumerate(journal)]


def place(journal: list[Event], name: str, attempt: int, step: int) -> int:
    wanted = (name, attempt, step)
    return next(i for i, e in enumerate(journal) if (e["event"], e["attempt"], e["step"]) == wanted)


@pytest.mark.parametrize("attempt", [1, 2, 3])
@pytest.mark.parametrize("name", ["ce", "top1", "sdm", "images"])
def test_any_other_number_of_a_step_is_found_also_where_it_was_superseded(
    tmp_path: Path, attempt: int, name: str
):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    at = place(journal, "steps", attempt, 8)
    value = math.nextafter(journal[at][name], math.inf)
    (found,) = differences(trace, changed(journal, at, **{name: value}), TOTAL)
    assert f"attempt {attempt}, which began after step" in found
    assert f"steps of step 8: {name} is {value!r} instead of" in found


def test_another_health_line_or_decision_is_found_and_another_clock_is_not(tmp_path: Path):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    at = place(journal, "health", 1, 9)
    slower = journal[at]["health"] | {"images_per_second": 1.0}
    assert list(differences(trace, changed(journal, at, health=slower), TOTAL)) == []
    worse = journal[at]["health"] | {"ce_by_kind": {"nir": 9.0}}
    (found,) = differences(trace, changed(journal, at, health=worse), TOTAL)
    assert "health of step 9" in found
    at = place(journal, "decision", 1, 9)
    (found,) = differences(trace, changed(journal, at, verdict="PAUSE"), TOTAL)
    assert "decision of step 9: verdict is 'PAUSE'" in found


@pytest.mark.parametrize("attempt", [1, 3])
def test_a_step_that_is_missing_or_there_twice_is_found(tmp_path: Path, attempt: int):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    at = place(journal, "steps", attempt, 6 + attempt)
    for wrong in (journal[:at] + journal[at + 1 :], journal[: at + 1] + journal[at:]):
        assert any("was due" in found for found in differences(trace, wrong, TOTAL))


@pytest.mark.parametrize("name", ["health", "decision"])
def test_a_last_line_that_is_missing_is_found(tmp_path: Path, name: str):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    at = place(journal, name, 3, TOTAL)
    found = list(differences(trace, journal[:at] + journal[at + 1 :], TOTAL))
    assert any(f"lacks {name} [{TOTAL}]" in one for one in found)


def test_a_run_that_skips_steps_ends_early_or_forgets_a_checkpoint_is_found(tmp_path: Path):
    trace = left_alone(tmp_path / "a")

    def skips(trainer: Trainer) -> None:
        _attempt(trainer, 0, 7)
        _attempt(trainer, 9, TOTAL, ended=True)

    def forgets(trainer: Trainer) -> None:
        _attempt(trainer, 0, 8)
        _attempt(trainer, 0, TOTAL, ended=True)

    found = list(differences(trace, _written(tmp_path / "b", skips), TOTAL))
    assert "began after step 9; the run had come to step 7" in found[0]
    assert "lacks steps [8, 9]" in found[1]
    (one,) = differences(trace, _written(tmp_path / "c", forgets), TOTAL)
    assert "had told of a checkpoint at step 6" in one
    early = _written(tmp_path / "d", lambda trainer: _attempt(trainer, 0, 9, ended=True))
    assert any("ends at [9] instead of [15]" in one for one in differences(trace, early, TOTAL))


def test_an_end_may_be_missing_only_where_another_command_made_the_evaluation(tmp_path: Path):
    trace = left_alone(tmp_path / "a")
    lost = [event for event in chased(tmp_path / "b") if event["event"] != "end"]
    assert list(differences(trace, lost, TOTAL, evaluated=True)) == []
    (found,) = differences(trace, lost, TOTAL)
    assert "ends at [] instead of [15]" in found
    twice = [*trace, trace[-1]]
    assert "ends at [15, 15]" in " ".join(differences(trace, twice, TOTAL, evaluated=True))


def test_two_processes_that_write_one_journal_are_found(tmp_path: Path):
    trace, journal = left_alone(tmp_path / "a"), chased(tmp_path / "b")
    late = place(journal, "steps", 2, 7)
    mixed = [*journal, journal[late]]
    found = list(differences(trace, mixed, TOTAL))
    assert any("two processes wrote at the same time" in one for one in found)


def test_an_attempt_that_ended_in_an_error_is_found(tmp_path: Path):
    trace = left_alone(tmp_path / "a")

    def write(trainer: Trainer) -> None:
        _attempt(trainer, 0, 8)
        trainer.write({"event": "error", "kind": "DataError", "message": "it rains", "step": 8})
        _attempt(trainer, CHECKPOINT_EVERY, TOTAL, ended=True)

    (found,) = differences(trace, _written(tmp_path / "b", write), TOTAL)
    assert found == "attempt 1 ended in DataError: it rains"


def test_a_journal_cut_off_in_a_line_is_read_on(tmp_path: Path):
    """As a kill leaves it, and as the next attempt goes on."""
    trace = left_alone(tmp_path / "a")

    def write(trainer: Trainer) -> None:
        _attempt(trainer, 0, 8)
        path = trainer.folder / "journal.jsonl"
        path.write_bytes(path.read_bytes() + json.dumps(steps_event(9)).encode()[:20])
        Journal(trainer.folder, 2).close()
        _attempt(trainer, CHECKPOINT_EVERY, TOTAL, ended=True)

    assert list(differences(trace, _written(tmp_path / "b", write), TOTAL)) == []


def test_summaries_share_all_but_names_and_clocks():
    one = {"run_id": "a", "wall_seconds": 1.0, "ce": 2.0, "mAP": {"mean": 0.5}}
    assert list(summary_differences(one, one | {"run_id": "b", "wall_seconds": 2.0})) == []
    (found,) = summary_differences(one, one | {"mAP": {"mean": 0.25}})
    assert found == "summary.json: mAP.mean is 0.25 instead of 0.5"


def test_a_run_that_ends_before_its_first_kill_has_none_to_measure():
    assert measured([], []) == []
