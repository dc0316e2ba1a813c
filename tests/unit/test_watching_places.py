"""Where the programs may listen: on real sockets."""

import socket

import pytest

from service.errors import WatchError
from service.watching.places import Place, free_places

BOTH = {"--port": 0, "--alertmanager-port": 0}


def test_free_ports_differ_and_can_be_listened_on():
    first, second = free_places("127.0.0.1", BOTH)
    assert first.port != second.port
    for place in (first, second):
        socket.create_server((place.host, place.port)).close()
        assert place.url == f"http://127.0.0.1:{place.port}"
        assert place.is_loopback


def test_a_taken_port_is_named_with_the_option_that_sets_it():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(WatchError, match=rf"127\.0\.0\.1:{port} is taken.*--port 0"):
            free_places("127.0.0.1", {"--port": port})


def test_a_port_that_was_used_a_moment_ago_is_free():
    """A connection that was closed from this side lingers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert free_places("127.0.0.1", {"--port": port})[0].port == port


def test_one_port_for_both_is_refused():
    with pytest.raises(WatchError, match="--port and --alertmanager-port are both 9999"):
        free_places("127.0.0.1", {"--port": 9999, "--alertmanager-port": 9999})


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "is no address of this machine"),
        ("no such host", "is no address"),
        ("", "is no address"),
    ],
)
def test_an_address_that_is_not_this_machines_is_refused(host: str, said: str):
    with pytest.raises(WatchError, match=f"--listen {host} {said}"):
        free_places(host, BOTH)


@pytest.mark.parametrize(
    ("host", "listen", "url"),
    [
        ("0.0.0.0", "0.0.0.0:9", "http://127.0.0.1:9"),
        ("::", "[::]:9", "http://[::1]:9"),
        ("::1", "[::1]:9", "http://[::1]:9"),
        ("192.0.2.1", "192.0.2.1:9", "http://192.0.2.1:9"),
    ],
)
def test_this_machine_reaches_a_place_by_an_address_of_its_own(host: str, listen: str, url: str):
    place = Place(host, 9)
    assert (place.listen, place.url) == (listen, url)
    assert place.is_loopback == (host == "::1")
