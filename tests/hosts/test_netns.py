"""Hosts come, are cut off and joined again, and leave nothing."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import netns
from tests.hosts.netns import Host, hosts

ASK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=2)
except ConnectionRefusedError:
    print("reached")
except OSError:
    pass
"""


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    if lacking := netns.missing():
        pytest.skip(lacking)
    before = left()
    yield
    assert left() == before


def left() -> list[list[str]]:
    """This process's namespaces and folders, and the interfaces of this machine."""
    asked = (("ip", "netns", "list"), ("ip", "-o", "-br", "link"))
    namespaces, links = (
        subprocess.run(a, capture_output=True, text=True, check=True).stdout for a in asked
    )
    own = f"cr{os.getpid()}-"
    folders = Path(tempfile.gettempdir()).glob(f"{own}*")
    return [
        [line for line in namespaces.splitlines() if line.startswith(own)],
        [line.split()[0] for line in links.splitlines()],
        [path.name for path in folders],
    ]


def reaches(asker: Host, asked: Host) -> bool:
    """Whether `asked` answers a knock at a port where nobody listens."""
    return asker.run((sys.executable, "-c", ASK, asked.address)).strip() == "reached"


def test_hosts_reach_each_other_unless_one_is_cut_off_and_this_machine_has_no_part_in_it():
    before = left()[1]
    with hosts(("one", "two", "three")) as found:
        one, two, three = found.values()
        assert reaches(one, two)
        assert reaches(two, three)
        two.cut()
        assert not reaches(one, two)
        assert not reaches(two, three)
        assert reaches(one, three)
        two.join()
        until = time.monotonic() + 10
        while not reaches(one, two):
            assert time.monotonic() < until
        for host in (one, two):
            host.isolate()
        assert not reaches(one, two)
        assert reaches(one, three)
        assert reaches(three, two)
        for host in (one, two):
            host.isolate(False)
        assert reaches(one, two)
        assert left()[1] == before


def test_a_hosts_programs_have_its_own_name_and_home_and_end_with_it(tmp_path: Path):
    words = ("sh", "-c", "echo $(uname -n) $HOME $A; cat /etc/hosts | tail -1")
    with hosts(("one", "two"), {"A": "b"}) as found:
        one, two = found.values()
        for host in (one, two):
            told = host.run(words).split()
            assert told == [host.name, str(host.folder / "home"), "b", "127.0.1.1", host.name]
        shell = ("sh", "-c", "sleep 1000 & echo up; wait")
        programs = [host.start(shell, tmp_path / host.name) for host in (one, two)]
        while [(tmp_path / host.name).read_text() for host in (one, two)] != ["up\n", "up\n"]:
            time.sleep(0.01)
        assert len(one.pids("sleep")) == len(two.pids()) == 2
        one.kill()
        assert (one.pids(), len(two.pids())) == ([], 2)
        hasty = two.start(shell, tmp_path / "hasty")
    # A shell whose `sleep` was killed first may end by itself.
    assert None not in [program.returncode for program in (*programs, hasty)]


def test_a_start_that_fails_midway_leaves_nothing():
    with pytest.raises(subprocess.CalledProcessError), hosts(("one", "one")):
        pass
