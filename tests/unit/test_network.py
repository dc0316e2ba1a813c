"""The interface that workers meet on is the one that has the node's address."""

import os

import pytest

from service.orchestration.network import choose_interface, interface_of


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
