"""Hosts with Ray, and records that one of them serves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.netns import missing
from tests.hosts.nodes import HEAD, Machines, machines
from tests.small import make_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested records of 24 synthetic people."""
    return make_records(tmp_path_factory.mktemp("small"), shard_rows=200)


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Machines]:
    """A head without CPUs, and hosts `one` and `two`, on which Ray is yet to be started."""
    skip_without_hosts()
    with machines(("one", "two"), tmp_path) as found:
        yield found


@pytest.fixture
def two_clusters(tmp_path: Path) -> Iterator[tuple[Machines, Machines]]:
    """As `two_hosts`, and the same once more with hosts `three` and `four`, on one network."""
    skip_without_hosts()
    others = ("three", "four")
    # Half a minute more than Ray has: a busy machine takes long to start workers.
    waits = {"RAY_gcs_rpc_server_reconnect_timeout_s": "90"}
    with machines(("one", "two", "other", *others), tmp_path, waits) as found:
        hosts = {HEAD: found.hosts["other"], **{name: found.hosts[name] for name in others}}
        logs = tmp_path / "other"
        logs.mkdir()
        yield found, Machines(hosts, logs)


def skip_without_hosts() -> None:
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
