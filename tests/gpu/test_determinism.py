"""Bit for bit on a GPU, where kernels may add in any order unless they are told not to.

pytest tests/gpu        on a machine with a CUDA device
"""

import shutil
from pathlib import Path

import pytest
import torch

from service.distributed import Distributed
from service.training.loop import train
from service.training.ports import Ports
from tests.small import make_records, small_config
from tests.states import checkpoints, read_checkpoint, same, step_of, without_clock

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run pytest tests/gpu on one"
)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_resumes_bit_for_bit(tmp_path: Path, precision: str):
    overrides = ["train.max_steps=40", "train.checkpoint_every=15", "train.keep_checkpoints=9"]
    fixed = ["train.deterministic=true", f"train.precision={precision}", "loss.sdm.min_steps=5"]
    config = small_config(make_records(tmp_path), [*overrides, *fixed])
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    train(config, straight, Distributed.single("cuda"), Ports())
    shutil.copytree(straight, resumed)
    for folder in checkpoints(resumed):
        if step_of(folder) != 15:
            shutil.rmtree(folder)
    train(config, resumed, Distributed.single("cuda"), Ports())
    a, b = (without_clock(read_checkpoint(checkpoints(f)[-1])) for f in (straight, resumed))
    assert all(same(a[part], b[part]) for part in a)
