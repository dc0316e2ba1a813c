"""Learning rates, groups, and a guard that lets nothing non-finite through."""

import math

import pytest
import torch

from service.config import HeadLr, OptimConfig
from service.errors import ModelError
from service.training.optim import (
    HeadSchedule,
    LaggedFlag,
    build_optimizer,
    guard,
    learning_rates,
    set_rates,
)

ENTRIES = (HeadLr(epoch=1, lr=1e-2), HeadLr(epoch=2, lr=3e-3), HeadLr(epoch=3, lr=1e-3))


def test_the_head_drops_at_the_first_boundary_after_the_gap():
    schedule, seen = HeadSchedule(), []
    for epoch in range(1, 8):
        step = 232 * epoch
        schedule = schedule.at_epoch_end(ENTRIES, epoch=epoch, step=step, min_gap=500)
        seen.append(schedule.lr(ENTRIES))
    assert seen == [1e-2, 1e-2, 3e-3, 3e-3, 3e-3, 1e-3, 1e-3]


def test_a_rate_from_outside_wins():
    assert HeadSchedule(1, 10, override=0.5).lr(ENTRIES) == 0.5


def test_the_body_follows_a_cosine_and_the_head_does_not():
    config = OptimConfig(head_lr=ENTRIES, backbone_lr=1e-3)
    first = learning_rates(1, 100, HeadSchedule(), config)
    middle = learning_rates(51, 100, HeadSchedule(), config)
    assert first["backbone"] == pytest.approx(1e-3)
    assert middle["backbone"] == pytest.approx(0.5e-3)
    assert first["head"] == middle["head"] == 1e-2
    warm = OptimConfig(body_warmup_steps=10, schedule="constant")
    rates = [learning_rates(s, 100, HeadSchedule(), warm)["neck"] for s in (1, 5, 10, 50)]
    assert rates == pytest.approx([1e-5, 5e-5, 1e-4, 1e-4])


def groups() -> dict[str, list[torch.nn.Parameter]]:
    torch.manual_seed(0)
    return {
        "head": [torch.nn.Parameter(torch.randn(3, 4))],
        "neck": [torch.nn.Parameter(torch.randn(4))],
    }


def test_a_non_finite_gradient_changes_nothing_from_then_on():
    params = groups()
    optimizer = build_optimizer(params, OptimConfig())
    set_rates(optimizer, {"head": 0.1, "neck": 0.1})
    flag = LaggedFlag(torch.device("cpu"))
    every = [p for group in params.values() for p in group]
    for p in every:
        p.grad = torch.ones_like(p)
    guard(optimizer, None)
    optimizer.step()
    kept = [p.detach().clone() for p in every]
    state = {k: v.clone() for k, v in optimizer.state[every[0]].items()}
    for value in (math.nan, 1.0):
        every[1].grad = torch.full_like(every[1], value)
        guard(optimizer, 1.0)
        flag.push(optimizer.found_inf)
        optimizer.step()
        assert flag.raised()
        assert all(torch.equal(a, b) for a, b in zip(every, kept, strict=True))
        assert all(torch.equal(optimizer.state[every[0]][k], v) for k, v in state.items())


def test_clipping_bounds_the_global_norm():
    params = groups()
    optimizer = build_optimizer(params, OptimConfig())
    for group in params.values():
        for p in group:
            p.grad = torch.full_like(p, 3.0)
    assert float(guard(optimizer, 1.0)) == pytest.approx(12.0)
    total = math.sqrt(sum(float(p.grad.square().sum()) for g in params.values() for p in g))
    assert total == pytest.approx(1.0, rel=1e-4)


def test_a_model_without_a_head_to_train_is_refused():
    with pytest.raises(ModelError, match="classifier"):
        build_optimizer({"head": [], "neck": groups()["neck"]}, OptimConfig())
