"""The doctor's look at a cluster: what fits, what does not, and nobody there."""

import socket
from pathlib import Path

import pytest

from service.config import Config
from service.doctor.check import Diagnosis, Status
from service.doctor.cluster import diagnose_cluster, versions
from service.settings import override
from tests.small import small_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def statuses(found: Diagnosis) -> dict[str, Status]:
    return {check.name: check.status for check in found.checks}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    fixed = [f"run.storage={tmp_path}/new/runs", "telemetry.enabled=true", "telemetry.port=0"]
    return small_config(tmp_path, fixed)


@pytest.mark.usefixtures("cluster")
def test_a_cluster_is_asked_for_what_the_run_needs(config: Config, tmp_path: Path):
    found = diagnose_cluster(config)
    assert set(statuses(found).values()) == {Status.OK}, found.checks
    assert list(statuses(found)) == ["Ray", "token", "resources", "versions", "storage", "exporter"]
    (table,) = found.tables
    assert {row[0]: row[1] for row in table.rows} == versions()
    assert all(here == there for _, here, there in table.rows)
    assert not list(tmp_path.iterdir())

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        changes = [f"telemetry.port={port}", "cluster.num_workers=3", "run.storage=/proc/none"]
        found = diagnose_cluster(override(config, changes))
    wrong = {name for name, status in statuses(found).items() if status is Status.FAIL}
    assert wrong == {"resources", "storage", "exporter"}


def test_an_address_where_nobody_listens_is_told_at_once(config: Config):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        found = diagnose_cluster(override(config, [f"cluster.address=127.0.0.1:{port}"]))
    assert statuses(found) == {"Ray": Status.FAIL}
    assert "nobody answers" in found.checks[0].found
