"""A resize waits until the workers have heeded it, as their journal says."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError, PreemptionInfo, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    PreemptingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
    SchedulingState,
)
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from service.orchestration import resizing
from service.orchestration.resizing import (
    START_TRIES,
    ClearStuckStart,
    LimitStarts,
    SaveFirst,
    TellWaiting,
    has_saved,
)
from service.orchestration.worker import Job
from service.telemetry import logs
from service.training.journal import Event, Journal

LONG_S = 60.0
"""More than any of these waits takes on any machine."""
DECISION = ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1.0})
LOST = RestartingState(WorkerGroupError("lost", {0: RuntimeError("x")}))
NOTICE = PreemptingState(PreemptionInfo(None, {"n": [1]}), detected_at_s=0.0)
NO_ROOM = ReschedulingState(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)))


def broken() -> ReschedulingState:
    return ReschedulingState(ControllerError(WorkerGroupStartupFailedError("no module boom")))


def line(event: str, step: int, attempt: int = 2) -> Event:
    return {"event": event, "step": step, "attempt": attempt}


START, LEFT = line("start", 5), line("leaving", 7)


@pytest.mark.parametrize(
    ("before", "since", "saved"),
    [
        ([START], [], False),
        ([START, line("leaving", 6), line("checkpoint", 6)], [], False),
        ([START], [LEFT], False),
        ([START, line("checkpoint", 6)], [LEFT], False),
        ([START], [LEFT, line("checkpoint", 6)], False),
        ([START], [LEFT, line("checkpoint", 7)], True),
        ([START], [LEFT, line("checkpoint", 6), line("checkpoint", 8)], True),
        # Saved before, begun with, or nothing to save yet.
        ([START, line("checkpoint", 7)], [LEFT], True),
        ([START], [line("leaving", 5)], True),
        ([line("start", 0)], [line("leaving", 0)], True),
        # What another attempt saved beyond that counts no more.
        ([line("checkpoint", 9, attempt=1), START], [LEFT], False),
    ],
)
def test_saved_is_a_checkpoint_of_the_step_of_the_announcement_or_later(
    before: list[Event], since: list[Event], saved: bool
):
    assert has_saved(before + since, len(before)) is saved


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    announce = SimpleNamespace(remote=lambda key, words: heard.append(words))
    control = SimpleNamespace(announce=announce)
    monkeypatch.setattr(resizing, "find_control", lambda name: control)
    monkeypatch.setattr(resizing, "_LOOK_S", 0.02)
    monkeypatch.setattr(resizing, "_PATIENCE_S", 2 * LONG_S)
    return heard


class Group:
    """A worker group that trains; at its third look something happens to it."""

    def __init__(self, then: Callable[[], dict[int, Exception]] = dict) -> None:
        self.polls = 0
        self._then = then

    def poll_status(self, timeout: float) -> Any:
        self.polls += 1
        errors = self._then() if self.polls == 3 else {}
        return SimpleNamespace(errors=errors, finished=False)


def waited_s(folder: Path, state: Any, group: Group | None = None) -> float:
    began = time.monotonic()
    callback = SaveFirst(Job("", str(folder), "run", "main"))
    callback.after_worker_group_start(group or Group())
    callback.after_controller_state_update(None, state)
    return time.monotonic() - began


def test_a_resize_is_held_until_the_workers_have_saved(tmp_path: Path, announced: list[str]):
    journal = Journal(tmp_path, 1)
    for event in (START, line("checkpoint", 9)):
        journal.append(event)

    def save() -> dict[int, Exception]:
        for event in (line("leaving", 12), line("checkpoint", 12)):
            journal.append(event)
        return {}

    group = Group(save)
    assert waited_s(tmp_path, ResizingState(DECISION), group) < LONG_S
    assert group.polls == 3
    assert announced == ["the number of workers changes to 2"]
    journal.close()


@pytest.mark.usefixtures("announced")
def test_a_resize_goes_on_without_workers_that_do_not_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are looked at meanwhile, so that none waits in a report."""
    monkeypatch.setattr(resizing, "_PATIENCE_S", 0.5)
    group = Group()
    assert 0.5 <= waited_s(tmp_path, ResizingState(DECISION), group) < LONG_S
    assert group.polls > 1


@pytest.mark.usefixtures("announced")
def test_a_resize_does_not_wait_for_workers_that_have_failed(tmp_path: Path):
    group = Group(lambda: {0: RuntimeError("x")})
    assert waited_s(tmp_path, ResizingState(DECISION), group) < LONG_S
    assert group.polls == 3


def test_another_state_is_no_resize(tmp_path: Path, announced: list[str]):
    group = Group()
    waited_s(tmp_path, SchedulingState(DECISION), group)
    assert (group.polls, announced) == (0, [])


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What the driver hears."""
    heard: list[Event] = []
    report = SimpleNamespace(remote=lambda key, event: heard.append(event))
    monkeypatch.setattr(resizing, "find_control", lambda name: SimpleNamespace(report=report))
    return heard


def test_the_driver_hears_every_half_minute_that_there_is_no_room(told: list[Event]):
    clock = [0.0]
    tell = TellWaiting(Job("", "", "run", "main"), 2, clock=lambda: clock[0])
    waits, runs = LOST, RunningState()
    for clock[0], state in (
        *((20.0, runs), (21.0, waits), (49.0, waits), (50.0, waits), (51.0, waits)),
        *((80.0, waits), (81.0, runs), (120.0, runs), (149.0, waits), (151.0, waits)),
    ):
        tell.after_controller_state_update(runs, state)
    assert [(e["workers"], e["seconds"]) for e in told] == [(2, 30.0), (2, 60.0), (2, 31.0)]


class Controller:
    """Ray's, as far as it tells of its states; `now` is its clock."""

    def __init__(self, room_s: float = 600.0) -> None:
        self.now = 0.0
        self._limit = LimitStarts(Job("", "", "run", "main"), room_s, lambda: self.now)
        self._state: Any = InitializingState()

    def come_to(self, *states: Any) -> None:
        for state in states:
            before, self._state = self._state, state
            self._limit.after_controller_state_update(before, state)

    def stay(self, seconds: float) -> None:
        """It finds too few machines, and sets its state again, as long as that."""
        for _ in range(100):
            self.now += seconds / 100
            self.come_to(self._state)


def test_workers_that_fail_to_start_again_and_again_end_the_run_with_the_reason(told: list[Event]):
    controller = Controller()
    for _ in range(START_TRIES - 1):
        controller.come_to(SchedulingState(DECISION), broken())
    with pytest.raises(RuntimeError, match=r"10 tries in a row.*no module boom"):
        controller.come_to(SchedulingState(DECISION), broken())
    assert [event["tries"] for event in told] == list(range(1, START_TRIES))
    assert logs.trouble_line(told[0]).endswith("WorkerGroupStartupFailedError: no module boom")


def test_tries_count_in_a_row_only_however_long_a_run_lives():
    controller = Controller()
    for _ in range(5):
        for _ in range(START_TRIES - 1):
            controller.come_to(SchedulingState(DECISION), broken())
        controller.come_to(SchedulingState(DECISION), RunningState(), LOST)


def test_a_wait_for_room_is_no_failure_until_it_is_too_long(told: list[Event]):
    controller = Controller()
    for _ in range(59):
        controller.now += 10
        controller.come_to(SchedulingState(DECISION), NO_ROOM)
    controller.now += 10
    with pytest.raises(RuntimeError, match="no room for them within 600 s"):
        controller.come_to(SchedulingState(DECISION), NO_ROOM)
    assert told == []


@pytest.mark.parametrize("state", [InitializingState(), LOST, NO_ROOM, broken()])
def test_a_wait_for_enough_machines_ends_too(state: Any):
    """With a changing number of workers Ray does not even try to start too few."""
    controller = Controller()
    controller.come_to(RunningState(), LOST, state)
    controller.stay(599)
    with pytest.raises(RuntimeError, match="no room for them within 60"):
        controller.stay(10)


def test_a_wait_for_room_begins_when_the_workers_are_lost():
    controller = Controller()
    controller.come_to(RunningState())
    controller.now += 1e6
    controller.come_to(LOST)
    controller.now += 599
    controller.come_to(SchedulingState(DECISION), NO_ROOM)


def test_a_state_that_ray_sets_again_is_one_failure():
    controller = Controller()
    controller.come_to(broken())
    controller.stay(100)


def test_a_machines_notice_is_no_wait_for_room():
    controller = Controller()
    controller.come_to(RunningState(), NOTICE)
    controller.stay(720)
    controller.now += 60
    controller.come_to(LOST, SchedulingState(DECISION), NO_ROOM)


class Room:
    """What a controller's workers hold, if they have got it; `clear` takes it from them."""

    def __init__(self, *got: set[bytes]) -> None:
        self.got = list(got)
        self.cleared = threading.Event()

    def clear(self) -> set[bytes]:
        found = self.got.pop(0)
        if found:
            self.cleared.set()
        return found


def stuck(folder: Path, room: Room, limit_s: float) -> ClearStuckStart:
    return ClearStuckStart(Job("", str(folder), "none of that name", "main"), limit_s, room.clear)


@pytest.mark.parametrize("got", [[{b"group"}], [set(), set(), {b"group"}]])
def test_workers_that_do_not_all_begin_to_train_are_cleared_away_once_they_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, got: list[set[bytes]]
):
    told: list[str] = []
    monkeypatch.setattr(resizing, "tell_loss", lambda job, loss: told.append(loss.words))
    room = Room(*got)
    with stuck(tmp_path, room, limit_s=0.1).on_worker_group_start():
        assert room.cleared.wait(LONG_S)
    assert room.got == []
    until = time.monotonic() + LONG_S
    while not told:
        assert time.monotonic() < until
    assert told == ["a worker did not begin to train within 0.1 s: it hangs"]


def test_workers_that_train_or_have_failed_are_left_alone(tmp_path: Path):
    room = Room({b"group"}, {b"group"})
    trains, fails = (stuck(tmp_path, room, limit_s=1.0) for _ in range(2))
    with trains.on_worker_group_start():
        pass
    trains.after_worker_group_training_start(None)
    with pytest.raises(ValueError, match="no room"), fails.on_worker_group_start():
        raise ValueError("no room")
    time.sleep(1.5)
    assert not room.cleared.is_set()
