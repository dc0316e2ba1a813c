"""How faults are planted: small changes in the real code of a run, undone after it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from service.data.loader import Loader
from service.data.sampler import PKPlan, PlanBatch
from service.losses import objective as objective_module
from service.losses.objective import SdmWeight
from service.modality import Modality
from service.model import reid as reid_module
from service.model.neck import Neck
from service.training import loop as loop_module
from service.training import parts as parts_module


@dataclass(slots=True)
class Clock:
    """The step that runs now (1-based), and whether SDM has ever been on."""

    step: int = 1
    sdm_seen_at: int = 0


Plant = Callable[[pytest.MonkeyPatch, Clock], None]


def nothing(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """What settings or data plant needs no change in the code."""


# -- the optimiser and the gradients ---------------------------------------------------------


def optimizer(change: Callable[[Any, Clock], None]) -> Plant:
    """The real optimiser, then changed."""

    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        build = parts_module.build_optimizer

        def changed(groups: dict[str, Any], config: Any) -> Any:
            optimizer = build(groups, config)
            change(optimizer, clock)
            return optimizer

        patch.setattr(parts_module, "build_optimizer", changed)

    return plant


def forget_head(optimizer: Any, clock: Clock) -> None:
    optimizer.param_groups = [g for g in optimizer.param_groups if g["name"] != "head"]


def skip_from(step: int) -> Callable[[Any, Clock], None]:
    def change(optimizer: Any, clock: Clock) -> None:
        real = optimizer.step
        optimizer.step = lambda: None if clock.step >= step else real()

    return change


def grow_head(optimizer: Any, clock: Clock) -> None:
    """The head's weights are not decayed but blown up, in proportion to its rate."""
    for group in optimizer.param_groups:
        if group["name"] == "head":
            group["weight_decay"] = -1.5


def model(change: Callable[[Any], None]) -> Plant:
    """The real model, then changed."""

    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        build = parts_module.CrossReID

        def changed(*args: Any) -> Any:
            model = build(*args)
            change(model)
            return model

        patch.setattr(parts_module, "CrossReID", changed)

    return plant


def head_gradient_is_zero(model: Any) -> None:
    model.classifier.weight.register_hook(lambda grad: grad * 0)


def freeze_a_block(model: Any) -> None:
    model.backbone.image_transformer.requires_grad_(False)


def _features(change: Callable[[Tensor, Clock], Tensor]) -> Plant:
    """The unit rows between backbone and neck, changed."""

    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        unit = reid_module.unit
        patch.setattr(reid_module, "unit", lambda rows: change(unit(rows), clock))

    return plant


def detach_from(step: int) -> Plant:
    return _features(lambda rows, clock: rows.detach() if clock.step >= step else rows)


def _noise(rows: Tensor) -> Tensor:
    """Rows that say next to nothing, with a gradient path as before."""
    return F.normalize(F.normalize(torch.randn_like(rows), dim=-1) + 0.02 * rows, dim=-1)


def noisy_from(step: int, strength: float) -> Plant:
    """The rows with so much noise, as a multiple of their own length."""

    def change(rows: Tensor, clock: Clock) -> Tensor:
        if clock.step < step:
            return rows
        noise = F.normalize(torch.randn_like(rows), dim=-1)
        return F.normalize(rows + strength * noise, dim=-1)

    return _features(change)


def noise_from(step: int) -> Plant:
    return _features(lambda rows, clock: _noise(rows) if clock.step >= step else rows)


def _watch_sdm(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    real = loop_module.objective

    def watched(**given: Any) -> Any:
        if given["weight"].active and not clock.sdm_seen_at:
            clock.sdm_seen_at = clock.step
        return real(**given)

    patch.setattr(loop_module, "objective", watched)


def noise_with_sdm(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    _watch_sdm(patch, clock)
    _features(lambda rows, clock: _noise(rows) if clock.sdm_seen_at else rows)(patch, clock)


# -- the neck --------------------------------------------------------------------------------


def neck_scaled(factor: float) -> Plant:
    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        forward = Neck.forward
        patch.setattr(Neck, "forward", lambda *given: factor * forward(*given))

    return plant


def neck_not_normalised(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    def forward(neck: Neck, rows: Tensor, batch: Tensor) -> Tensor:
        mean, var = neck._track(batch)
        return (rows - mean) * torch.rsqrt(var + neck.config.eps) * neck.weight

    patch.setattr(Neck, "forward", forward)


# -- the sampler -----------------------------------------------------------------------------


def without_photo(share: float) -> Plant:
    """That share of every batch's people loses its VIS rows."""

    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        real = PKPlan.batch

        def broken(plan: PKPlan, epoch: int, step: int) -> PlanBatch:
            batch = real(plan, epoch, step)
            return _cut(plan, batch, round(share * len(batch.class_index)))

        patch.setattr(PKPlan, "batch", broken)

    return plant


def _cut(plan: PKPlan, batch: PlanBatch, people: int) -> PlanBatch:
    """The batch without the VIS rows of its first people; VIS rows come first in each person."""
    counts = np.diff(batch.starts)
    keep = np.ones(len(batch.rows), bool)
    for i in range(people):
        first, end = batch.starts[i], batch.starts[i + 1]
        vis = set(plan._index.rows(int(batch.class_index[i]), Modality.VIS).tolist())
        lost = np.array([int(row) in vis for row in batch.rows[first:end]])
        keep[first:end] = ~lost
        counts[i] -= lost.sum()
    starts = np.concatenate([[0], np.cumsum(counts)])
    return PlanBatch(batch.rows[keep], starts, batch.class_index)


# -- SDM -------------------------------------------------------------------------------------


def weight_lost(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """The loss never hears of the weight that the policy set."""
    real = loop_module.objective
    patch.setattr(loop_module, "objective", lambda **given: real(**given | {"weight": SdmWeight()}))


def sdm_rows(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plant:
    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        real = objective_module.sdm_rows
        patch.setattr(
            objective_module, "sdm_rows", lambda *rows, **given: real(*rows, **change(given))
        )

    return plant


def no_positives(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"query_class": torch.full_like(given["query_class"], -1)}


def sdm_detached(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    real = objective_module._sdm

    def detached(*given: Any) -> Any:
        value, sums = real(*given)
        return value.detach(), sums

    patch.setattr(objective_module, "_sdm", detached)


# -- numbers, data, time ---------------------------------------------------------------------


def _inputs(change: Callable[[Any, Clock], None]) -> Plant:
    """A step's inputs on the device, changed in place."""

    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        real = loop_module.to_inputs

        def changed(*given: Any) -> Any:
            inputs = real(*given)
            change(inputs, clock)
            return inputs

        patch.setattr(loop_module, "to_inputs", changed)

    return plant


def nan_pixel_at(step: int) -> Plant:
    def change(inputs: Any, clock: Clock) -> None:
        if clock.step == step:
            inputs.images[0, 0, 0, 0] = torch.nan

    return _inputs(change)


def dark_every(period: int, lasting: int, start: int) -> Plant:
    """The lights go out again and again: all images black for some steps."""

    def change(inputs: Any, clock: Clock) -> None:
        if clock.step >= start and clock.step % period < lasting:
            inputs.images.zero_()

    return _inputs(change)


def slow_from(step: int, seconds: float) -> Plant:
    def change(inputs: Any, clock: Clock) -> None:
        if clock.step >= step:
            time.sleep(seconds)

    return _inputs(change)


def slow_loader(step: int, seconds: float) -> Plant:
    def plant(patch: pytest.MonkeyPatch, clock: Clock) -> None:
        real = Loader._prepare

        def slow(loader: Loader, cursor: tuple[int, int]) -> Any:
            time.sleep(seconds if clock.step >= step else 0)
            return real(loader, cursor)

        patch.setattr(Loader, "_prepare", slow)

    return plant
