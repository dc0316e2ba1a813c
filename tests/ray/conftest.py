"""One Ray cluster for all tests of this folder, on this machine and without a dashboard."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from service.config import ClusterConfig
from service.orchestration.cluster import NAMESPACE, environment
from tests.small import make_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested records of 24 synthetic people."""
    return make_records(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Two logical CPUs, whatever the machine has: a run of two workers fills it."""
    values = environment(ClusterConfig(poll_s=0.1)) | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    before = dict(os.environ)
    os.environ.update(values)
    ray.init(
        address="local",
        num_cpus=2,
        namespace=NAMESPACE,
        include_dashboard=False,
        object_store_memory=150_000_000,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
