"""The objective of a step: CE + w x SDM, right under DDP, with every term's provenance.

DDP averages gradients over ranks. So a term that is a mean over N global rows is, on each rank, the
sum over the rank's own rows times world / N; then the averaged gradient is that of one big process
with the whole batch (the features of other ranks enter through a gather that carries gradients).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from service.config import LossConfig, SdmConfig
from service.data.layout import FUSED, StepLayout
from service.losses.memory import CrossBatchMemory
from service.losses.pairs import Pairs
from service.losses.sdm import SdmForm, chance, sdm_rows
from service.modality import Modality

NUM_KINDS = FUSED + 1

LINES = (
    "ce",
    "correct",
    "norm",
    "sdm_queries",
    "sdm_vis",
    "sdm_queries_chance",
    "sdm_vis_chance",
    "sdm_rows",
    "sdm_positives",
    *(f"ce_{kind}" for kind in range(NUM_KINDS)),
)
"""Columns of `LossTerms.sums`."""


@dataclass(frozen=True, slots=True)
class SdmWeight:
    """The one weight of SDM: the loss applies it, and logs, metrics and panels show it."""

    weight: float = 0.0
    reason: str = "SDM waits for GO"

    @classmethod
    def at_start(cls, config: SdmConfig) -> "SdmWeight":
        """Before the first verdict."""
        return cls() if config.enabled else cls(reason="off (loss.sdm.enabled=false)")

    @property
    def active(self) -> bool:
        return self.weight > 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The classes between which cross-entropy chooses, when some are never drawn.

    A class that never comes is ruled out within a few steps: left in, it would make chance look
    like learning. columns: int64 [D], the classes that are drawn. column_of: int64 [C], a class's
    place among them.
    """

    columns: Tensor
    column_of: Tensor

    @classmethod
    def of(cls, drawn: np.ndarray, num_classes: int, device: torch.device | str) -> "Choice | None":
        """None when all `num_classes` classes are drawn."""
        if len(drawn) == num_classes:
            return None
        column_of = torch.full((num_classes,), -1, dtype=torch.int64)
        columns = torch.from_numpy(drawn.astype(np.int64))
        column_of[columns] = torch.arange(len(drawn))
        return cls(columns.to(device), column_of.to(device))


@dataclass(frozen=True, slots=True)
class StepRows:
    """The layout of a step as the loss needs it, on the device.

    labels: int64 [n_local]. kind_counts: this rank's rows of each kind, in row order. vis, queries:
    int64 positions in the global order; vis_class, query_class: their classes.
    """

    labels: Tensor
    kind_counts: tuple[int, ...]
    vis: Tensor
    vis_class: Tensor
    queries: Tensor
    query_class: Tensor

    @classmethod
    def of(cls, layout: StepLayout, device: torch.device) -> "StepRows":
        classes = torch.from_numpy(layout.class_index)
        is_vis = layout.kind == Modality.VIS
        vis, queries = (torch.from_numpy(np.flatnonzero(mask)) for mask in (is_vis, ~is_vis))
        counts = np.bincount(layout.kind[layout.local], minlength=NUM_KINDS)

        def move(values: Tensor) -> Tensor:
            return values.to(device, non_blocking=True)

        return cls(
            labels=move(classes[layout.local]),
            kind_counts=tuple(int(c) for c in counts),
            vis=move(vis),
            vis_class=move(classes[vis]),
            queries=move(queries),
            query_class=move(classes[queries]),
        )


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What a rank's loss was made of.

    total: scalar with gradient; averaged over ranks it is the global loss. sdm: SDM's part of it,
    with gradient, None when SDM was not computed. sums: float [len(LINES)] of this rank, without
    gradient; sdm_* are 0 while SDM is off. sdm_weight: as applied, so 0 when no row entered SDM
    whatever was scheduled.
    """

    total: Tensor
    sdm: Tensor | None
    sums: Tensor
    pairs: Pairs
    sdm_weight: float


def objective(
    *,
    rows: Tensor,
    gathered: Tensor,
    after_neck: Tensor,
    logits: Tensor,
    step: StepRows,
    pairs: Pairs,
    memory: CrossBatchMemory | None,
    weight: SdmWeight,
    config: LossConfig,
    world: int,
    choice: Choice | None = None,
) -> LossTerms:
    """The loss terms of one rank; pure, without collectives.

    rows: [n_local, D] unit rows; gathered: [N, D] those of all ranks, with gradient; after_neck
    [n_local, D]; logits [n_local, C]. SDM is not computed at all while its weight is 0.
    """
    targets = step.labels
    if choice is not None:
        logits, targets = logits.index_select(1, choice.columns), choice.column_of[targets]
    ce = F.cross_entropy(logits, targets, reduction="none")
    smooth = F.cross_entropy(
        logits, targets, reduction="none", label_smoothing=config.label_smoothing
    )
    single = len(rows) - step.kind_counts[FUSED]
    total = _group_mean(smooth, single, pairs) * world
    sums = [
        ce[:single].sum(),
        (logits[:single].argmax(dim=1) == targets[:single]).sum(),
        after_neck[:single].norm(dim=1).sum(),
    ]
    applied, weighted = 0.0, None
    sdm_sums = [torch.zeros((), device=rows.device)] * 6
    if weight.active and pairs.valid_queries + pairs.valid_vis > 0:
        sdm, sdm_sums = _sdm(rows, gathered, step, pairs, memory, config, world)
        applied, weighted = weight.weight, weight.weight * sdm
        total = total + weighted
    by_kind = [part.sum() for part in ce.split(step.kind_counts)]
    stacked = torch.stack([v.detach().to(torch.float64) for v in (*sums, *sdm_sums, *by_kind)])
    return LossTerms(total, weighted, stacked, pairs, applied)


def sdm_gradient_share(terms: LossTerms, rows: Tensor) -> Tensor:
    """SDM's part of the gradient at `rows`, as squared lengths [CE, SDM] of this rank's part.

    Call it before backward; it keeps the graph. Under DDP the gradient passes a collective gather,
    so every rank must call it in the same step. Zeros when SDM is off or reaches no row.
    """
    if terms.sdm is None or not rows.requires_grad:
        return torch.zeros(2, dtype=torch.float64, device=rows.device)
    parts = (terms.total - terms.sdm, terms.sdm)
    grads = [_gradient(part, rows) for part in parts]
    lengths = [rows.new_zeros(()) if g is None else g.square().sum() for g in grads]
    return torch.stack(lengths).to(torch.float64)


def _gradient(part: Tensor, rows: Tensor) -> Tensor | None:
    """The gradient of `part` at `rows`, None when `part` does not depend on them."""
    if not part.requires_grad:
        return None
    return torch.autograd.grad(part, rows, retain_graph=True, allow_unused=True)[0]


def sdm_value(queries: float, vis: float, pairs: Pairs, form: Literal["ce", "kl"]) -> float:
    """The SDM loss from its two directions' sums over all ranks: their mean for ce, sum for kl."""
    parts = (queries / max(pairs.valid_queries, 1), vis / max(pairs.valid_vis, 1))
    return sum(parts) * SdmForm.named(form).direction_weight


def _group_mean(smooth: Tensor, single: int, pairs: Pairs) -> Tensor:
    """This rank's share of the mean over the groups (single rows, fused queries) of group means."""
    loss = smooth[:single].sum() / pairs.single
    if pairs.fused == 0:
        return loss
    return 0.5 * (loss + smooth[single:].sum() / pairs.fused)


def _sdm(
    rows: Tensor,
    gathered: Tensor,
    step: StepRows,
    pairs: Pairs,
    memory: CrossBatchMemory | None,
    config: LossConfig,
    world: int,
) -> tuple[Tensor, list[Tensor]]:
    """Both directions: queries to live and memory VIS, VIS to live queries only.

    Columns from the memory carry no gradient, so a VIS row has nothing to learn from them.
    """
    form = SdmForm.named(config.sdm.form)
    num_vis = step.kind_counts[Modality.VIS]
    kept, kept_class = memory.view() if memory is not None else (None, None)
    queries, queries_ok, queries_pos = sdm_rows(
        rows[num_vis:],
        gathered.index_select(0, step.vis),
        kept,
        query_class=step.labels[num_vis:],
        gallery_class=step.vis_class,
        memory_class=kept_class,
        form=form,
    )
    vis, vis_ok, vis_pos = sdm_rows(
        rows[:num_vis],
        gathered.index_select(0, step.queries),
        None,
        query_class=step.labels[:num_vis],
        gallery_class=step.query_class,
        memory_class=None,
        form=form,
    )
    value = queries.sum() / max(pairs.valid_queries, 1) + vis.sum() / max(pairs.valid_vis, 1)
    columns = len(step.vis) + (memory.rows if memory is not None else 0)
    sums = [
        queries.sum(),
        vis.sum(),
        (chance(form, columns, queries_pos) * queries_ok).sum(),
        (chance(form, len(step.queries), vis_pos) * vis_ok).sum(),
        queries_ok.sum() + vis_ok.sum(),
        (queries_pos * queries_ok).sum() + (vis_pos * vis_ok).sum(),
    ]
    return value * form.direction_weight * world, sums
