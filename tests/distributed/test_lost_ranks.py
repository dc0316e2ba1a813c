"""A rank that stops without a word is found by the time limit, and named by those that wait."""

import os
import re
import signal
import time

import pytest
import torch

import service.launch
from service.distributed import Distributed
from service.errors import ClusterError, LostRankError
from service.launch import launch

pytestmark = pytest.mark.distributed

LIMIT_S = 3.0


@pytest.fixture(autouse=True)
def _a_stopped_process_is_not_asked_for_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service.launch, "GRACE_S", 0.5)


def stop_one(world: Distributed, stopped: int) -> None:
    """All ranks sum once; then one is stopped, and the others wait for it in a backward.

    They are named by this limit: the one of the launch holds for their start, too.
    """
    world = world.limited(LIMIT_S)
    world.all_reduce_sum(torch.ones(2))
    rows = torch.ones(1, 2, requires_grad=True)
    gathered = world.gather_rows(rows, [1] * world.world)
    if world.rank == stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    with world.names_the_lost():
        gathered.sum().backward()


@pytest.mark.parametrize("stopped", [1, 0])
def test_a_stopped_rank_is_named_by_the_others(stopped: int):
    with pytest.raises(LostRankError) as told:
        launch(stop_one, 3, stopped, timeout_s=60)
    assert told.value.ranks == (stopped,)
    words = rf"rank {stopped} \(pid \d+ on \S+\) did not come within 3 s and does not answer: .*"
    assert re.fullmatch(words, str(told.value))


def end_one(world: Distributed) -> None:
    """Rank 1 ends without a word while the others wait for it."""
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    with (
        pytest.raises(LostRankError, match="another rank has ended") as told,
        world.names_the_lost(),
    ):
        world.agree([0.0])
    assert told.value.ranks == ()
    assert time.monotonic() - began < 30


def test_the_end_of_a_rank_is_noticed_before_the_time_limit_and_its_launcher_names_it():
    with pytest.raises(ClusterError, match="rank 1 ended with exit code -9"):
        launch(end_one, 2, timeout_s=60.0)
