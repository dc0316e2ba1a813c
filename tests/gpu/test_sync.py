"""CUDA's own word on whether a step waits. Without a GPU it is skipped; tests/integration/
test_sync.py sees the calls that would wait.

    pytest tests/gpu        on a machine with a CUDA device
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.decisions import Action, Directive
from service.distributed import Distributed
from service.training.loop import Trainer
from service.training.ports import Ports
from tests.small import make_records, small_config

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run pytest tests/gpu on one"
)

WARM_UP = 8
"""Steps in which constants are copied to the device once and the memory fills."""


def test_steps_without_a_flush_never_synchronise(tmp_path: Path):
    config = small_config(make_records(tmp_path), ["train.max_steps=45", "optim.clip_norm=1.0"])
    on = Directive(1, actions=(Action("sdm_weight", 0.3),), reason="from the start")
    ports = Ports(poll=lambda known: on if known < 1 else None, decides=False)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    trainer = Trainer(config, run_dir, Distributed.single("cuda"), ports)
    step, watched = trainer._step, 0

    def strict(*given: Any) -> None:
        nonlocal watched
        number = trainer.progress.step + 1
        if number <= WARM_UP or trainer.schedule.is_flush(number):
            step(*given)
            return
        watched += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer._step = strict
    try:
        trainer.run()
    finally:
        trainer.close()
    assert watched > 25
