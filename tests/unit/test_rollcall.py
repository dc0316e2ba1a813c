"""The roll call after a failed collective, over stores that answer, hang and end."""

import pickle
import threading
import time
from collections.abc import Callable

import pytest

from service import rollcall
from service.errors import LostRankError
from service.rollcall import backstop_s, is_late, is_lost_peer, lost_ranks, patience_s

NAMES = ("pid 1 on a", "pid 2 on a", "pid 3 on b")


class Marks:
    """A store for all ranks."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self.kept[key] = value

    def get(self, key: str) -> bytes:
        return self.kept[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)


class Silent(Marks):
    """Its server is stopped: what is asked is never answered."""

    def check(self, keys: list[str]) -> bool:
        threading.Event().wait()
        return False


class Ended(Marks):
    """Its server has ended."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Failed to recv, got 0 bytes")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "patience_s", lambda limit_s: 0.5)
    monkeypatch.setattr(rollcall, "_SILENCE_S", 0.2)
    monkeypatch.setattr(rollcall, "_CUT_OFF_S", 0.3)


def answers(store: Marks, came: dict[int, bool]) -> dict[int, LostRankError]:
    """What each rank of `came` says; the value: whether its own limit ran out."""
    found: dict[int, LostRankError] = {}

    def call(rank: int, late: bool) -> None:
        found[rank] = lost_ranks(store, rank, NAMES, limit_s=30.0, late=late)

    threads = [threading.Thread(target=call, args=item) for item in came.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("late", [True, False])
def test_every_rank_that_came_names_the_one_that_did_not(late: bool):
    """Also a rank whose connection was cut by one whose limit ran out."""
    found = answers(Marks(), {0: True, 2: late})
    assert {rank: error.ranks for rank, error in found.items()} == {0: (1,), 2: (1,)}
    words = "rank 1 (pid 2 on a) did not come within 30 s and does not answer: it hangs"
    assert {str(error) for error in found.values()} == {words}


@pytest.mark.usefixtures("quick")
def test_two_that_did_not_come_are_both_named():
    found = answers(Marks(), {1: True})
    assert found[1].ranks == (0, 2)
    assert str(found[1]).startswith("rank 0 (pid 1 on a), rank 2 (pid 3 on b) did not come")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("store", [Silent, Ended])
def test_a_store_without_an_answer_names_rank_0_which_serves_it(store: Callable[[], Marks]):
    assert answers(store(), {1: True, 2: True})[2].ranks == (0,)


@pytest.mark.usefixtures("quick")
def test_when_all_came_nobody_is_accused():
    found = answers(Marks(), {0: True, 1: True, 2: False})
    assert {error.ranks for error in found.values()} == {()}
    assert "raise cluster.collective_timeout_s" in str(found[0])


@pytest.fixture
def patient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for others that do not come, or for an answer, waits for a minute."""
    monkeypatch.setattr(rollcall, "patience_s", lambda limit_s: 60.0)
    monkeypatch.setattr(rollcall, "_SILENCE_S", 60.0)


@pytest.mark.usefixtures("patient")
def test_after_a_cut_connection_alone_nobody_is_accused_and_nobody_waits():
    """A rank that computes comes later, and is no less well."""
    began = time.monotonic()
    assert answers(Marks(), {0: False})[0].ranks == ()
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("patient")
def test_the_end_of_the_store_after_a_hang_is_known_without_waiting():
    began = time.monotonic()
    assert answers(Ended(), {1: True})[1].ranks == (0,)
    assert time.monotonic() - began < 30


def test_the_error_crosses_processes_with_its_ranks():
    error = pickle.loads(pickle.dumps(LostRankError("rank 1 hangs", (1,))))
    assert (str(error), error.ranks) == ("rank 1 hangs", (1,))


@pytest.mark.parametrize("limit_s", [1.0, 30.0, 600.0, 7200.0])
def test_whatever_ends_a_hanging_process_without_asking_comes_after_the_roll_call(limit_s: float):
    assert 3.0 <= patience_s(limit_s) <= 30.0
    assert backstop_s(limit_s) >= limit_s + patience_s(limit_s) + 10.0


@pytest.mark.parametrize(
    ("error", "lost", "late"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True, False),
        (RuntimeError("[gloo/x.cc:78] Timed out waiting 3000ms for recv operation"), True, True),
        (RuntimeError("NCCL error: unhandled system error"), True, False),
        (type("DistBackendError", (RuntimeError,), {})("timeout"), True, True),
        (type("CollectiveTimeoutError", (Exception,), {})("it timed out after 5 s"), True, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("gloo"), False, False),
    ],
)
def test_a_lost_peer_is_told_from_a_fault_of_the_program(error: Exception, lost: bool, late: bool):
    assert (is_lost_peer(error), is_late(error)) == (lost, late)
