"""What lost processes leave on a cluster, and what clears it away."""

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from service.orchestration.failures import unanswering
from service.orchestration.orphans import end_actor, free_orphans, remove_own
from tests.ray.processes import pids_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

LONG_S = 120.0


@ray.remote(num_cpus=0)
class Process:
    """A controller or a worker, as far as it is looked at from outside."""

    def get_metadata(self) -> int:
        return os.getpid()

    def actor_id(self) -> str | None:
        return ray.get_runtime_context().get_actor_id()

    def takes_all(self) -> str:
        """All that the cluster has; the group's id."""
        group = placement_group([{"CPU": 1}] * 2)
        assert group.wait(LONG_S)
        return group.id.hex()

    def gives_back(self) -> int:
        return len(remove_own())


def made(number: int = 1) -> list[Any]:
    return [Process.remote() for _ in range(number)]


def told(call: Any) -> Any:
    return ray.get(call, timeout=LONG_S)


def state(group: str) -> str:
    return placement_group_table()[group]["state"]


def test_what_a_dead_controller_held_is_free_again_and_what_a_live_one_holds_is_left():
    (lost,) = made()
    group = told(lost.takes_all.remote())
    assert free_orphans() == 0
    assert state(group) == "CREATED"
    ray.kill(lost)
    assert free_orphans() == 1
    assert state(group) == "REMOVED"
    (next_one,) = made()
    group = told(next_one.takes_all.remote())
    assert told(next_one.gives_back.remote()) == 1
    assert state(group) == "REMOVED"
    assert told(next_one.gives_back.remote()) == 0


def test_a_controller_that_ray_took_for_lost_is_ended():
    (process,) = made()
    pid = told(process.get_metadata.remote())
    assert pid in pids_of("ray::Process")
    end_actor(None)
    end_actor(told(process.actor_id.remote()))
    until = time.monotonic() + LONG_S
    while pid in pids_of("ray::Process"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_workers_that_cannot_be_reached_are_named():
    actors = made(3)
    pids = told([actor.get_metadata.remote() for actor in actors])
    named = [SimpleNamespace(pid=pid, hostname="a") for pid in pids]
    workers = [SimpleNamespace(actor=a, metadata=m) for a, m in zip(actors, named, strict=True)]
    assert unanswering(workers) is None
    os.kill(pids[1], signal.SIGSTOP)
    os.kill(pids[2], signal.SIGKILL)
    loss = unanswering(workers)
    os.kill(pids[1], signal.SIGKILL)
    assert loss is not None
    assert (loss.ranks, loss.hangs) == ((1, 2), True)
    assert f"rank 1 (pid {pids[1]} on a), rank 2 (pid {pids[2]} on a) cannot be" in loss.words
