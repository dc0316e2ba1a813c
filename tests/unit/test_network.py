"""Workers meet on the interface that has the node's address, and hold nothing if they do not."""

import os
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState

from service.orchestration.network import Meeting, choose_interface, interface_of


def test_an_interface_is_found_by_its_address_and_another_machines_is_not():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") == ""


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == "lo"


def test_a_machine_without_the_nodes_address_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "192.0.2.1")
    choose_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert "no network interface of this machine has 192.0.2.1" in caplog.text
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    choose_interface()
    assert len(caplog.records) == 1


class Group:
    """A worker group of which one worker is dead when the call `fails_at` comes."""

    def __init__(self, fails_at: int) -> None:
        self.calls = 0
        self.fails_at = fails_at
        self.freed = 0

    def __len__(self) -> int:
        return 2

    def get_resources_per_worker(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def execute(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.fails_at:
            raise ActorDiedError()
        return ("127.0.0.1", 1)

    def execute_single(self, rank: int, *given: Any, **named: Any) -> Any:
        return self.execute(*given, **named)

    def execute_single_async(self, rank: int, *given: Any, **named: Any) -> Any:
        return self.execute(*given, **named)

    def get_worker_group_state(self) -> WorkerGroupState:
        handle: Any = self
        return WorkerGroupState(0.0, placement_group_handle=handle, workers=[], sync_actor=handle)

    def shutdown(self) -> None:
        self.freed += 1


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4, 5, 6])
def test_workers_that_miss_each_other_give_their_room_back(fails_at: int):
    """At the first call, before Ray's own part, and at every call of that."""
    group: Any = Group(fails_at)
    meeting = Meeting(timeout_s=1)
    with pytest.raises(ActorDiedError):
        meeting.backend_cls().on_start(group, meeting)
    assert (group.calls, group.freed) == (fails_at, 1)


def test_workers_that_meet_keep_their_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.get", lambda calls: calls)
    group: Any = Group(fails_at=0)
    meeting = Meeting(timeout_s=1)
    meeting.backend_cls().on_start(group, meeting)
    assert (group.calls, group.freed) == (6, 0)
