"""SDM is worth its cost: with it, retrieval is better at equal steps and seed."""

from pathlib import Path
from typing import Any

import pytest

from service.distributed import Distributed
from service.training.loop import train
from service.training.ports import Ports
from tests.small import make_records, small_config

OVERRIDES = [
    "sampler.ids_per_batch=10",
    "train.max_steps=480",
    "policy.no_go_from=120",
    "policy.final_look=240",
    "eval.after_training=true",
]


def summary(records: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir()
    config = small_config(records, [*OVERRIDES, *overrides])
    return train(config, folder, Distributed.single(), Ports()).summary


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of 40 people to train on and 20 to find."""
    return make_records(tmp_path_factory.mktemp("people"), people=60)


@pytest.mark.prove
@pytest.mark.parametrize("seed", [0, 1])
def test_sdm_on_retrieves_better_than_sdm_off(people: Path, tmp_path: Path, seed: int):
    on = summary(people, tmp_path / "on", f"run.seed={seed}")
    off = summary(people, tmp_path / "off", f"run.seed={seed}", "loss.sdm.enabled=false")
    assert on["steps"] == off["steps"]
    assert (on["sdm_weight"], off["sdm_weight"]) == (0.5, 0.0)
    assert on["sdm_rows_used"] > 0
    assert off["sdm_rows_used"] == 0
    assert on["mAP"]["mean"] > off["mAP"]["mean"] + 0.005
    assert on["mAP"]["MM-4"] > on["mAP"]["MM-1"] > on["chance_mAP"]
