"""The optimiser: named groups, and the one place that sets a learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.config import HeadLr, OptimConfig
from service.errors import ModelError


@dataclass(frozen=True, slots=True)
class HeadSchedule:
    """Which entry of `optim.head_lr` is in force, and since which step; part of the train state.

    override: a rate that stands in for the entry's: the probe's, or one asked for on the way. It
    holds until the schedule moves on to a lower one.
    """

    index: int = 0
    since_step: int = 0
    override: float | None = None

    @classmethod
    def at_start(cls, config: OptimConfig) -> "HeadSchedule":
        return cls(override=config.head_probe.lr if config.head_probe else None)

    def lr(self, entries: tuple[HeadLr, ...]) -> float:
        return entries[self.index].lr if self.override is None else self.override

    def at_epoch_end(
        self, entries: tuple[HeadLr, ...], *, epoch: int, step: int, min_gap: int
    ) -> "HeadSchedule":
        """The schedule after `epoch` (1-based) ended at `step`: at most one entry further.

        An entry is taken at the first epoch boundary from its epoch on that lies at least `min_gap`
        steps after the last change.
        """
        coming = self.index + 1
        if coming >= len(entries) or epoch + 1 < entries[coming].epoch:
            return self
        if step - self.since_step < min_gap:
            return self
        is_lower = self.override is None or entries[coming].lr <= self.override
        return HeadSchedule(coming, step, None if is_lower else self.override)


def body_scale(step: int, total_steps: int, config: OptimConfig) -> float:
    """Factor on every rate but the head's at `step` (1-based): warm-up, then the schedule."""
    warm = min(1.0, step / config.body_warmup_steps) if config.body_warmup_steps else 1.0
    if config.schedule == "constant":
        return warm
    return warm * 0.5 * (1.0 + math.cos(math.pi * (step - 1) / total_steps))


def learning_rates(
    step: int, total_steps: int, head: HeadSchedule, config: OptimConfig
) -> dict[str, float]:
    """The rate of every group at `step` (1-based)."""
    scale = body_scale(step, total_steps, config)
    return {
        "head": head.lr(config.head_lr),
        "neck": config.neck_lr * scale,
        "patch": config.patch_lr * scale,
        "backbone": config.backbone_lr * scale,
    }


def build_optimizer(
    groups: dict[str, list[nn.Parameter]], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW over named groups, fused, with a `found_inf` flag that turns a step into nothing.

    The flag is set on the device by `guard`, so that a non-finite gradient never reaches a
    parameter and no step waits for the host.

    Raises:
        ModelError: if the head has no trainable parameter.
    """
    if not groups["head"]:
        raise ModelError("the classifier has no trainable parameter; take it out of model.freeze")
    named = [{"params": params, "name": name} for name, params in groups.items() if params]
    optimizer = torch.optim.AdamW(named, lr=0.0, weight_decay=config.weight_decay, fused=True)
    device = groups["head"][0].device
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # read by the fused kernel
    optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined]
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


def guard(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> Tensor:
    """Checks the averaged gradients before the step; returns their global norm, on the device.

    A non-finite norm raises the optimiser's flag for good: this step and all later ones change
    nothing. The gradients are the same on every rank, so the ranks agree without a message.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    flag: Tensor = optimizer.found_inf  # type: ignore[attr-defined]  # set by build_optimizer
    flag.copy_(torch.maximum(flag, (~torch.isfinite(norm)).to(flag.dtype)))
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(params, clip_norm, norm, foreach=True)
    return norm


class LaggedFlag:
    """Reads a device flag without stopping the device: on CUDA one step late, on the CPU at once.

    The optimiser's guard keeps a raised flag for good, so a late reader loses nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._host = [torch.zeros((), pin_memory=self._cuda) for _ in range(2)]
        self._events: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def push(self, flag: Tensor) -> None:
        """Starts the copy of this step's flag."""
        self._turn = 1 - self._turn
        self._host[self._turn].copy_(flag, non_blocking=True)
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            self._events[self._turn] = event

    def raised(self, *, wait: bool = False) -> bool:
        """Whether the flag of the previous step is up; with `wait` or on the CPU, this one's."""
        turn = self._turn if wait or not self._cuda else 1 - self._turn
        event = self._events[turn]
        if event is not None:
            event.synchronize()
        return bool(self._host[turn])
