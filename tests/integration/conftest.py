from pathlib import Path

import pytest
import torch

from tests.small import make_records


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested records of 24 synthetic people."""
    return make_records(tmp_path_factory.mktemp("small"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
