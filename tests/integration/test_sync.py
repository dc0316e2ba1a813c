"""Between two flushes the host never waits for the device: what would is called at no other step.

This is seen on the CPU (tests/waits.py). tests/gpu/test_sync.py asks CUDA itself.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.decisions import Action, Directive
from service.distributed import Distributed
from service.training.loop import Trainer
from service.training.ports import Ports
from tests.small import small_config
from tests.waits import Waits

SDM_ON = Directive(1, actions=(Action("sdm_weight", 0.3),), reason="from the start")


@pytest.fixture
def trainer(records: Path, tmp_path: Path) -> Trainer:
    """A run of 45 steps with every part of a step in use: SDM from the first on, memory, fused
    queries, clipping; reports every 20 steps and at epochs' ends, flushes every 10."""
    config = small_config(
        records, ["train.max_steps=45", "optim.clip_norm=1.0", "augment.erase=0.5"]
    )
    ports = Ports(poll=lambda known: SDM_ON if known < 1 else None, decides=False)
    return Trainer(config, tmp_path, Distributed.single(), ports)


def watched(trainer: Trainer) -> Waits:
    """Runs to the end; a step lasts until the next one begins, so that what lies between them is
    seen too. The loop's own copies of the non-finite flag are left out: on a GPU they are pinned
    host memory, filled without waiting and read one step late."""
    waits, step = Waits(host=trainer.flag._host), trainer._step

    def counted(*given: Any) -> None:
        waits.step = trainer.progress.step + 1
        step(*given)

    trainer._step = counted
    try:
        with waits:
            trainer.run()
    finally:
        trainer.close()
    return waits


def test_only_steps_that_flush_wait_for_the_device(trainer: Trainer):
    """The first step is left out: it copies the backbone's constants to the device, once."""
    quiet = [step for step in range(2, 46) if not trainer.schedule.is_flush(step)]
    flushes = {step for step in range(2, 46) if trainer.schedule.is_flush(step)}
    waits = watched(trainer)
    assert trainer.newest is not None
    assert trainer.newest.sdm_applied_share == 1.0
    assert trainer.newest.memory_rows > 0
    assert len(quiet) > 30
    assert waits.at(quiet) == []
    assert flushes <= {step for step, *_ in waits.seen}


def test_a_wait_in_the_step_is_seen_where_it_is(trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
    add = trainer.meter.add

    def impatient(step: int, terms: Any, *rest: Any, **named: Any) -> None:
        if step == 7:
            terms.total.item()
        add(step, terms, *rest, **named)

    monkeypatch.setattr(trainer.meter, "add", impatient)
    (wait,) = watched(trainer).at([7])
    assert wait[1] == "_local_scalar_dense"
    assert wait[2].startswith("service/training/loop.py:")


def branch(x: torch.Tensor) -> None:
    if x.sum() > 0:
        pass


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: int(x[0]),
        branch,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.equal(x),
        lambda x: torch.allclose(x, x),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 1])),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.as_tensor([1.0], device=x.device),
        lambda x: x.__setitem__(x > 0, torch.ones(3)),
        lambda x: x.to("cpu"),
        lambda x: x.to(x.device),
        lambda x: torch.from_numpy(np.ones(3)).to(x.device),
        lambda x: x.copy_(torch.from_numpy(np.ones(3))),
    ],
)
def test_each_way_to_wait_is_seen(read: Callable[[torch.Tensor], object]):
    x = torch.ones(3)
    with Waits() as waits:
        read(x)
    assert waits.seen


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * 2 + x.sum(),
        lambda x: x.argmax(dim=0),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: torch.from_numpy(np.ones(3)).to(x.device, non_blocking=True),
        lambda x: torch.from_numpy(np.ones(3)).to("cpu", copy=True),
        lambda x: torch.from_numpy(np.ones(3)).tolist(),
        lambda x: x.copy_(torch.from_numpy(np.ones(3)), non_blocking=True),
        lambda x: x.copy_(x + 1),
        lambda x: x.to(torch.float64),
        lambda x: torch.nn.utils.get_total_norm([x]),
    ],
)
def test_work_that_the_device_does_alone_is_no_wait(work: Callable[[torch.Tensor], object]):
    x = torch.ones(3)
    with Waits() as waits:
        work(x)
    assert waits.seen == []
