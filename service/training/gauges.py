"""What is read from the model once at a report step: norms, movement, and who owns the gradient."""

import math
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from service.config import Config
from service.distributed import Distributed
from service.errors import RunError
from service.health import Gauges
from service.losses.objective import LossTerms, sdm_gradient_share
from service.model.reid import CrossReID
from service.training.parts import Parts
from service.training.state import Progress

_SAMPLED = ("neck", "patch", "backbone")
"""Groups of which one parameter each stands for the movement of the body."""


@dataclass(frozen=True, slots=True)
class Before:
    """Read between backward and the optimiser's step.

    head, body: copies of the head and of one small parameter of every other group. head_grad:
    norm of the head's gradient; body_grad: of the backbone's and the patch embeddings', None when
    nothing there learns. sdm_share: SDM's part of the gradient at the features, in [0, 1].
    """

    head: Tensor
    body: tuple[tuple[nn.Parameter, Tensor], ...]
    head_grad: float
    body_grad: float | None
    sdm_share: float


def read_share(terms: LossTerms, rows: Tensor, world: Distributed) -> float:
    """SDM's part of the gradient at `rows`, over all ranks. Every rank must call it, before
    backward."""
    ce, sdm = world.all_reduce_sum(sdm_gradient_share(terms, rows)).sqrt().tolist()
    return sdm / (ce + sdm) if sdm else 0.0


def read_before(model: CrossReID, sdm_share: float) -> Before:
    """Norms of the gradients, and copies to measure the coming step's movement by."""
    groups = model.parameter_groups()
    learns = list(chain(groups["backbone"], groups["patch"]))
    smallest = (min(groups[name], key=nn.Parameter.numel) for name in _SAMPLED if groups[name])
    return Before(
        head=model.classifier.weight.detach().clone(),
        body=tuple((p, p.detach().clone()) for p in smallest),
        head_grad=_norm(groups["head"]),
        body_grad=_norm(learns) if learns else None,
        sdm_share=sdm_share,
    )


def read_gauges(
    parts: Parts, progress: Progress, config: Config, world: Distributed, before: Before
) -> Gauges:
    """The gauges after the optimiser's step. Every rank must call it.

    Raises:
        RunError: on all ranks, when they hold different memories.
    """
    memory, step = parts.memory, progress.step
    if memory is not None and not world.same(memory.fingerprint()):
        raise RunError(
            f"the ranks hold different memories at step {step}, so they no longer train one "
            "model; --resume goes on from the newest checkpoint. Check the hosts' memory and that "
            "all run the same version"
        )
    head = parts.model.classifier.weight.detach()
    norm = float(head.norm())
    return Gauges(
        head_norm=norm,
        head_grad_norm=before.head_grad,
        head_moved=float((head - before.head).norm()) / max(norm, 1e-12),
        body_grad_norm=before.body_grad,
        body_moved=_body_moved(before),
        head_lr=progress.head.lr(config.optim.head_lr),
        sdm_reason=progress.sdm.reason,
        sdm_gradient_share=before.sdm_share,
        memory_rows=memory.rows if memory else 0,
        memory_age=max(memory.ages(step), default=0) if memory else 0,
        memory_equal=True,
        feature_norm_expected=parts.model.neck.expected_norm,
        ids_per_batch=parts.plan.ids_per_batch,
    )


def _body_moved(before: Before) -> float:
    """The largest change among the sampled parameters, over their length."""
    moves = [
        float((now.detach() - then).norm()) / max(float(then.norm()), 1e-12)
        for now, then in before.body
    ]
    return max(moves, default=0.0)


def _norm(params: list[nn.Parameter]) -> float:
    """L2 norm of the gradients that are there, in float32."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return 0.0
    norm = float(torch.nn.utils.get_total_norm(grads, foreach=True))
    return norm if math.isfinite(norm) else math.inf
