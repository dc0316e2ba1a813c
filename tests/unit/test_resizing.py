"""A resize waits until the workers have heeded it, as their journal says."""

import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.orchestration import resizing
from service.orchestration.resizing import (
    START_TRIES,
    LimitStarts,
    SaveFirst,
    TellWaiting,
    has_saved,
)
from service.orchestration.worker import Job
from service.training.journal import Event, Journal

LEFT: Event = {"event": "leaving", "step": 7, "machines": "x"}


@pytest.mark.parametrize(
    ("events", "saved"),
    [
        ([], False),
        ([{"event": "checkpoint", "step": 5}], False),
        ([LEFT], False),
        ([LEFT, {"event": "checkpoint", "step": 5}], False),
        ([LEFT, {"event": "checkpoint", "step": 7}], True),
        ([LEFT, {"event": "checkpoint", "step": 5}, {"event": "checkpoint", "step": 8}], True),
    ],
)
def test_saved_is_a_checkpoint_of_the_step_of_the_announcement_or_later(
    events: list[Event], saved: bool
):
    assert has_saved(events) is saved


class ResizingState:
    """As Ray Train names it."""

    scaling_decision = SimpleNamespace(num_workers=2)


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    announce = SimpleNamespace(remote=lambda key, words: heard.append(words))
    control = SimpleNamespace(announce=announce)
    monkeypatch.setattr(resizing, "find_control", lambda name: control)
    monkeypatch.setattr(resizing, "_LOOK_S", 0.02)
    monkeypatch.setattr(resizing, "_PATIENCE_S", 0.5)
    return heard


class Group:
    """A worker group that trains, until one of its workers fails."""

    def __init__(self, fails_at: int = 1000) -> None:
        self.polls = 0
        self.fails_at = fails_at

    def poll_status(self, timeout: float) -> Any:
        self.polls += 1
        errors = {0: RuntimeError("x")} if self.polls >= self.fails_at else {}
        return SimpleNamespace(errors=errors, finished=False)


def waited_s(folder: Path, state: Any, group: Group | None = None) -> float:
    began = time.monotonic()
    callback = SaveFirst(Job("", str(folder), "run", "main"))
    callback.after_worker_group_start(group or Group())
    callback.after_controller_state_update(None, state)
    return time.monotonic() - began


def test_a_resize_is_held_until_the_workers_have_saved(tmp_path: Path, announced: list[str]):
    journal = Journal(tmp_path, 1)
    journal.append(LEFT)
    journal.append({"event": "checkpoint", "step": 9})

    def save() -> None:
        for event in ({**LEFT, "step": 12}, {"event": "checkpoint", "step": 12}):
            journal.append(event)

    threading.Timer(0.2, save).start()
    assert 0.2 <= waited_s(tmp_path, ResizingState()) < 0.45
    assert announced == ["the number of workers changes to 2"]
    journal.close()


@pytest.mark.usefixtures("announced")
def test_a_resize_goes_on_without_workers_that_do_not_save(tmp_path: Path):
    """They are looked at meanwhile, so that none waits in a report."""
    group = Group()
    assert 0.5 <= waited_s(tmp_path, ResizingState(), group) < 1.0
    assert group.polls > 5


@pytest.mark.usefixtures("announced")
def test_a_resize_does_not_wait_for_workers_that_have_failed(tmp_path: Path):
    assert waited_s(tmp_path, ResizingState(), Group(fails_at=2)) < 0.3


class RestartingState:
    """As Ray Train names it: there is no room yet."""


class RunningState:
    """As Ray Train names it."""


def test_the_driver_hears_every_half_minute_that_there_is_no_room(monkeypatch: pytest.MonkeyPatch):
    heard: list[tuple[int, float]] = []
    report = SimpleNamespace(remote=lambda key, e: heard.append((e["workers"], e["seconds"])))
    monkeypatch.setattr(resizing, "find_control", lambda name: SimpleNamespace(report=report))
    clock = [0.0]
    tell = TellWaiting(Job("", "", "run", "main"), 2, clock=lambda: clock[0])
    waits, runs = RestartingState(), RunningState()
    for clock[0], state in (
        *((20.0, runs), (21.0, waits), (49.0, waits), (50.0, waits), (51.0, waits)),
        *((80.0, waits), (81.0, runs), (120.0, runs), (149.0, waits), (151.0, waits)),
    ):
        tell.after_controller_state_update(None, state)
    assert heard == [(2, 30.0), (2, 60.0), (2, 31.0)]


def test_another_state_is_no_resize(tmp_path: Path, announced: list[str]):
    assert waited_s(tmp_path, SimpleNamespace()) < 0.1
    assert announced == []


class ReschedulingState:
    """As Ray Train names it."""

    def __init__(self, failure: Exception) -> None:
        self.training_failed_error = SimpleNamespace(controller_failure=failure)


class WorkerGroupStartupTimeoutError(Exception):
    """As Ray Train names it."""


class PreemptingState:
    """As Ray Train names it."""


def broken() -> ReschedulingState:
    return ReschedulingState(ImportError("no module named boom"))


NO_ROOM = ReschedulingState(WorkerGroupStartupTimeoutError("no room"))


def test_workers_that_fail_to_start_again_and_again_end_the_run_with_the_reason():
    limit = LimitStarts(math.inf)
    for _ in range(START_TRIES - 1):
        limit.after_controller_state_update(None, broken())
    with pytest.raises(RuntimeError, match=r"10 tries in a row.*no module named boom"):
        limit.after_controller_state_update(None, broken())


def test_tries_count_in_a_row_only_however_long_a_run_lives():
    limit = LimitStarts(math.inf)
    for _ in range(5):
        for _ in range(START_TRIES - 1):
            limit.after_controller_state_update(None, broken())
        limit.after_controller_state_update(None, RunningState())


def test_a_wait_for_room_is_no_failure_until_it_is_too_long():
    now = [0.0]
    limit = LimitStarts(600.0, lambda: now[0])
    for _ in range(59):
        now[0] += 10
        limit.after_controller_state_update(None, NO_ROOM)
    now[0] += 10
    with pytest.raises(RuntimeError, match="no room for them within 600 s"):
        limit.after_controller_state_update(None, NO_ROOM)


def test_a_wait_for_room_begins_when_the_workers_are_lost():
    now = [0.0]
    limit = LimitStarts(600.0, lambda: now[0])
    limit.after_controller_state_update(None, RunningState())
    now[0] += 1e6
    limit.after_controller_state_update(RunningState(), SimpleNamespace())
    now[0] += 599
    limit.after_controller_state_update(SimpleNamespace(), NO_ROOM)


def test_a_state_that_ray_sets_again_is_one_failure():
    limit, state = LimitStarts(math.inf), broken()
    limit.after_controller_state_update(None, state)
    for _ in range(100):
        limit.after_controller_state_update(state, state)


def test_a_machines_notice_is_no_wait_for_room():
    now = [0.0]
    limit = LimitStarts(600.0, lambda: now[0])
    limit.after_controller_state_update(RunningState(), PreemptingState())
    now[0] += 720
    limit.after_controller_state_update(PreemptingState(), PreemptingState())
    now[0] += 60
    limit.after_controller_state_update(SimpleNamespace(), NO_ROOM)
