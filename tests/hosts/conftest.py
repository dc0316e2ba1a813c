"""Hosts with Ray, and records that one of them serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.netns import missing
from tests.hosts.nodes import Machines, machines
from tests.small import make_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested records of 24 synthetic people."""
    return make_records(tmp_path_factory.mktemp("small"), shard_rows=200)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Machines]:
    """A head without CPUs, and hosts `one` and `two`, on which Ray is yet to be started."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with machines(("one", "two"), tmp_path) as found:
        yield found
