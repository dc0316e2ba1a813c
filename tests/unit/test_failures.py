"""Who was lost, by what the ranks failed with; what is retried and what ends the training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import PreemptionError, PreemptionInfo
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller.state import PreemptingState, RestartingState

from service.errors import LostRankError
from service.orchestration import failures
from service.orchestration.failures import Loss, OnFailure, loss_in
from service.orchestration.worker import Job, WorkerFault
from service.training.journal import Journal, read_journal

INFO = "A worker health check failed."
HANGS = LostRankError("rank 1 (pid 7 on a) did not come within 30 s: it hangs", (1,))
CUT = LostRankError("another rank ended, and cut its connections", ())
WORKERS: list[Any] = [
    SimpleNamespace(metadata=SimpleNamespace(pid=rank + 6, hostname="a")) for rank in range(3)
]
FAULT = WorkerFault("TypeError: x", "trace")


class Group:
    """A worker group, as far as it is asked."""

    freed = 0

    def get_workers(self) -> list[Any]:
        return WORKERS

    def get_worker_group_state(self) -> Any:
        return SimpleNamespace(placement_group_handle=self)

    def shutdown(self) -> None:
        self.freed += 1


def ended(text: str = "The actor died.") -> Exception:
    return WorkerHealthCheckFailedError(INFO, failure=RuntimeError(text))


@pytest.mark.parametrize(
    ("errors", "ranks", "words"),
    [
        ({0: HANGS}, (1,), str(HANGS)),
        ({0: CUT, 2: HANGS}, (1,), str(HANGS)),
        ({0: CUT, 1: ended()}, (1,), "rank 1 (pid 7 on a) ended without a word: killed, often "),
        ({0: HANGS, 2: ended()}, (2,), "rank 2 (pid 8 on a) ended"),
        ({1: ended("The node is running low on memory")}, (1,), "its machine ran out of memory"),
        ({0: ActorDiedError()}, (0,), "rank 0 (pid 6 on a) ended without a word"),
        (
            {0: WorkerHealthCheckTimeoutError("hanging")},
            (0,),
            "rank 0 (pid 6 on a) does not answer Ray ",
        ),
        ({0: CUT}, (), "another rank ended"),
        ({0: RuntimeError("gloo: closed\nmore")}, (), "rank 0: RuntimeError: gloo: closed"),
    ],
)
def test_who_was_lost_and_how(errors: dict[int, Exception], ranks: tuple[int, ...], words: str):
    found = loss_in(errors, WORKERS)
    assert found.ranks == ranks
    assert words in found.words


def test_the_end_of_a_machine_that_was_taken_away_is_called_that():
    died = ActorDiedError()
    died._preempted = True
    found = loss_in({1: WorkerHealthCheckFailedError(INFO, failure=died)}, WORKERS)
    assert found == Loss((1,), "rank 1 (pid 7 on a) was taken away with its machine")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the control plane "run" was told; there is no other."""
    heard: list[tuple[str, dict[str, Any]]] = []
    report = SimpleNamespace(remote=lambda key, event: heard.append((key, event)))

    def find(name: str) -> Any:
        if name != "run":
            raise ValueError("Failed to look up actor")
        return SimpleNamespace(report=report)

    monkeypatch.setattr(failures, "find_control", find)
    monkeypatch.setattr(failures, "unanswering", lambda workers: None)
    return heard


def judge(folder: Path, errors: dict[int, Exception], control: str = "run") -> int:
    """How often the workers' machines were given back."""
    callback = OnFailure(Job("", str(folder), control, "main"))
    group = Group()
    callback.after_worker_group_start(group)
    for _ in range(2):
        callback.after_worker_group_poll_status(SimpleNamespace(errors=errors))
    return group.freed


def test_a_fault_ends_the_training_unless_a_process_was_lost_with_it(tmp_path: Path):
    with pytest.raises(WorkerFault, match="TypeError: x"):
        judge(tmp_path, {0: RuntimeError("gloo"), 1: FAULT})
    judge(tmp_path, {0: FAULT, 1: ended()})
    judge(tmp_path, {0: FAULT, 1: ActorDiedError()})
    judge(tmp_path, {0: RuntimeError("gloo")})


def test_who_was_lost_is_told_and_stands_in_the_journal_of_that_attempt(
    tmp_path: Path, told: list[tuple[str, dict[str, Any]]]
):
    before = Journal(tmp_path, 2)
    before.append({"event": "start", "step": 0})
    before.close()
    judge(tmp_path, {0: HANGS})
    line: dict[str, Any] = read_journal(tmp_path)[-1]
    assert (line["attempt"], line["event"], line["ranks"]) == (2, "lost", [1])
    assert line["words"] == str(HANGS)
    assert told == [("main", {"event": "lost", "ranks": [1], "words": str(HANGS)})]


def test_a_loss_that_cannot_be_told_is_retried_all_the_same(tmp_path: Path):
    judge(tmp_path / "gone", {0: HANGS}, control="none of that name")


@pytest.mark.parametrize(
    ("errors", "freed"),
    [
        ({0: HANGS}, 1),
        ({1: WorkerHealthCheckTimeoutError("hanging")}, 1),
        ({0: CUT}, 0),
        ({0: CUT, 1: ended()}, 0),
    ],
)
def test_what_hangs_is_cleared_away_at_once(
    tmp_path: Path, errors: dict[int, Exception], freed: int
):
    assert judge(tmp_path, errors) == freed


def test_the_end_of_a_machines_notice_is_told_though_no_worker_failed(
    tmp_path: Path, told: list[tuple[str, dict[str, Any]]]
):
    callback = OnFailure(Job("", str(tmp_path), "run", "main"))
    callback.after_worker_group_start(Group())
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]})
    notice = PreemptingState(info, detected_at_s=0.0)
    again = RestartingState(PreemptionError(info, drain_timed_out=True))
    for before, after in ((again, again), (notice, notice), (notice, again)):
        callback.after_controller_state_update(before, after)
    words = "the machine of rank 1 (pid 7 on a) is taken away"
    assert told == [("main", {"event": "lost", "ranks": [1], "words": words})]
