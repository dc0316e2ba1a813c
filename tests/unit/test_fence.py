"""A worker ends itself once its cluster is silent, and only then."""

import subprocess
import sys
import threading

import pytest

from service.orchestration.fence import cut_off_s, fenced

LIMIT_S, LOOK_S = 0.4, 0.05


def is_ended(ask, within_s: float) -> bool:
    """Whether a worker ends itself within some seconds, whose cluster answers like this."""
    ended = threading.Event()
    with fenced(ask, ended.set, limit_s=LIMIT_S, look_s=LOOK_S):
        return ended.wait(within_s)


def test_a_cluster_that_answers_keeps_its_worker():
    assert not is_ended(lambda: None, 4 * LIMIT_S)


def test_a_cluster_that_never_answers_ends_it():
    waiting = threading.Event()
    try:
        assert is_ended(waiting.wait, 10)
    finally:
        waiting.set()


def test_an_error_is_no_answer():
    def refuse() -> None:
        raise ConnectionError("no route")

    assert is_ended(refuse, 10)


def test_an_answer_now_and_then_is_enough():
    calls = iter(range(1000))

    def moody() -> None:
        if next(calls) % 2:
            raise ConnectionError("no route")

    assert not is_ended(moody, 4 * LIMIT_S)


def test_a_silent_cluster_after_the_end_ends_nothing():
    ended, waiting = threading.Event(), threading.Event()
    with fenced(waiting.wait, ended.set, limit_s=LIMIT_S, look_s=LOOK_S):
        pass
    assert not ended.wait(2 * LIMIT_S)
    waiting.set()


def test_it_waits_a_little_longer_than_ray_does_for_a_head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    assert cut_off_s() == 75
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    assert cut_off_s() == 615


@pytest.mark.parametrize("errors", ["pipe", "/dev/full"])
def test_it_ends_a_process_whose_main_thread_waits_for_ever(errors: str):
    program = (
        "import threading\n"
        "from service.orchestration.fence import fenced\n"
        "wait = threading.Event().wait\n"
        "with fenced(wait, limit_s=0.2, look_s=0.05):\n"
        "    wait()\n"
    )
    command = [sys.executable, "-c", program]
    if errors == "pipe":
        done = subprocess.run(command, timeout=30, stderr=subprocess.PIPE)
        assert b"Ray cannot be reached" in done.stderr
    else:
        with open(errors, "wb") as full:
            done = subprocess.run(command, timeout=30, stderr=full)
    assert done.returncode == 70
