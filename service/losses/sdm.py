"""Similarity distribution matching (SDM): each query's similarities against who it really is.

Shapes: B queries, G live gallery rows, M memory rows, N = G + M minus masked columns, D dimension.
With s_ij = logit_scale * <query_i, gallery_j>, p_i = softmax over j of s_ij, y_ij = 1 where the
classes agree, n_i = sum_j y_ij and t_ij = y_ij / n_i, one row costs

    ce:  - sum_j t_ij log p_ij                   = lse_i - mean of s_ij over positives
    kl:  sum_j p_ij (log p_ij - log(t_ij + eps)) = E_p[s] - lse_i
                                                   - log(eps) (1 - P_i) - log(1/n_i + eps) P_i

where lse_i = logsumexp_j s_ij and P_i = sum of p_ij over positives. `kl` is the reverse divergence
of IRRA (Jiang and Ye, CVPR 2023, equation 6); it differs from the released code in that t is
normalised per row, so that the gallery may be rectangular, and that rows without a positive are
left out instead of becoming 0/0. The gradients are

    ce:  d row_i / d s_ij = p_ij - t_ij
    kl:  d row_i / d s_ij = p_ij (s_ij - E_p[s] - c_i (y_ij - P_i))
         with c_i = log(1/n_i + eps) - log(eps)

Both need only a few numbers per row, so the gallery is streamed in blocks of columns, nothing of
size B x N is kept, and the backward pass computes the similarities again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK = 2**20
DEVICE_BLOCK = 2**24
"""Similarities held at once (rows times columns): 4 MiB in float32 for the CPU's caches, 64 MiB on
an accelerator, where many small kernels would cost more than the memory."""

_MASKED = -1e30
"""Logit of a masked column: its exponential is exactly 0, and 0 times it is still 0, not NaN."""


@dataclass(frozen=True, slots=True)
class SdmForm:
    """Which SDM. A weight tuned for one form means nothing in the other.

    logit_scale: factor on the cosine, > 0; the temperature is its reciprocal.
    direction_weight: factor of each direction in the loss: 0.5 averages both, 1.0 adds them.
    eps: only `kl`; what a negative's target is lifted to, so it costs at most -log(eps) = 18.42.
    """

    name: Literal["ce", "kl"]
    logit_scale: float
    direction_weight: float
    eps: float = 1e-8

    @property
    def temperature(self) -> float:
        """1 / logit_scale."""
        return 1.0 / self.logit_scale

    @staticmethod
    def named(name: Literal["ce", "kl"]) -> "SdmForm":
        """The form as the configuration names it, with the documented scale."""
        return {"ce": CE_FORM, "kl": KL_FORM}[name]


CE_FORM = SdmForm("ce", logit_scale=5.0, direction_weight=0.5)
"""Cross-entropy against the target, temperature 0.2, mean of both directions."""

KL_FORM = SdmForm("kl", logit_scale=50.0, direction_weight=1.0)
"""IRRA's reverse KL, temperature 0.02, sum of both directions."""


class SdmRows(NamedTuple):
    """One direction of SDM, row by row.

    loss: [B] float32 (float64 for float64 input); 0, with gradient exactly 0, where not valid.
    valid: [B] bool; the row has at least one positive.
    positives: [B] int64; its positives, live and memory together.
    """

    loss: Tensor
    valid: Tensor
    positives: Tensor


def sdm_rows(
    query: Tensor,
    gallery: Tensor,
    memory: Tensor | None,
    query_class: Tensor,
    gallery_class: Tensor,
    memory_class: Tensor | None,
    form: SdmForm,
) -> SdmRows:
    """Each query row's SDM loss over the live gallery and the memory.

    query: [B, D], rows L2-normalised by the caller.
    gallery: [G, D] live, rows L2-normalised; receives a gradient.
    memory: [M, D] or None, rows L2-normalised; a constant. It must stay unchanged until backward
        has run, so push to the memory after backward; an earlier push makes backward raise.
    query_class, gallery_class, memory_class: int64 [B], [G], [M]. A column with a negative class
        (padding, unfilled slot) is neither positive nor negative, but its features must be finite.
        A query with a negative class is a row without a positive.

    Computed in float32 outside autocast, whatever the input; float64 input stays float64.

    Corner cases:
        no query row: empty results, which still pass a zero gradient to the gallery.
        no column, or none that is a positive: loss 0 and valid False.
        non-finite features: a non-finite loss; nothing is hidden.

    Under DDP each rank calls it with its own query rows and the gathered gallery, and takes
    `world * loss.sum() / global number of valid rows`. Keep that expression on every rank, also
    when its value is 0: a fresh constant would skip the gather's backward collective on that rank
    and the others would wait for it.

    Raises:
        ValueError: shapes that do not fit.
    """
    if memory is None or memory_class is None:
        memory, memory_class = gallery.new_empty((0, gallery.shape[1])), gallery_class[:0]
    _check_shapes(query, gallery, memory, query_class, gallery_class, memory_class)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        loss, positives = _SdmRows.apply(
            query.to(dtype),
            gallery.to(dtype),
            memory.detach(),
            torch.where(query_class < 0, -2, query_class),
            gallery_class,
            memory_class,
            form,
        )
    return SdmRows(loss, positives > 0, positives)


def chance(form: SdmForm, columns: int | Tensor, positives: Tensor) -> Tensor:
    """The row loss of a model that cannot tell anybody apart (uniform p), for each row.

    columns: N, the unmasked columns a row sees (live and filled memory rows), one number or [B].
    positives: [B], as `SdmRows.positives`.

    Returns [B] float32, 0 where a row has no positive; average it exactly as the loss is averaged,
    then loss / chance is 1 for an untrained model in both forms.
    """
    n = positives.to(torch.float32)
    # Filled on the device: a copy from the host would make the host wait for it.
    size = torch.zeros_like(n).add(columns).clamp_min(1.0)
    if form.name == "ce":
        level = size.log()
    else:
        share = n / size
        log_target = (1.0 / n.clamp_min(1.0) + form.eps).log()
        level = -size.log() - share * log_target - (1.0 - share) * math.log(form.eps)
    return level * (positives > 0)


def _check_shapes(
    query: Tensor,
    gallery: Tensor,
    memory: Tensor,
    query_class: Tensor,
    gallery_class: Tensor,
    memory_class: Tensor,
) -> None:
    pairs = {
        "query": (query, query_class),
        "gallery": (gallery, gallery_class),
        "memory": (memory, memory_class),
    }
    for name, (rows, classes) in pairs.items():
        if rows.ndim != 2 or rows.shape[1] != query.shape[1] or classes.shape != rows.shape[:1]:
            raise ValueError(
                f"{name} is {tuple(rows.shape)} with classes {tuple(classes.shape)}; expected "
                f"[rows, {query.shape[1]}] with classes [rows]"
            )


@dataclass(slots=True)
class _RowStats:
    """What a row must remember of its columns, relative to the largest logit seen so far.

    top: largest logit. pos, neg: sum of exp(s - top) over positives and the rest.
    weighted: sum of exp(s - top) (s - top). pos_logits: sum of (s - top) over positives.
    count: number of positives. All [B], `count` int64.
    """

    top: Tensor
    pos: Tensor
    neg: Tensor
    weighted: Tensor
    pos_logits: Tensor
    count: Tensor

    @classmethod
    def empty(cls, query: Tensor) -> "_RowStats":
        zero = query.new_zeros(query.shape[0])
        count = torch.zeros_like(zero, dtype=torch.int64)
        return cls(torch.full_like(zero, _MASKED), zero, zero, zero, zero, count)

    def raise_top(self, top: Tensor) -> None:
        """Express the sums relative to a new, not smaller, largest logit."""
        shift = self.top - top
        factor = shift.exp()
        self.weighted = factor * (self.weighted + shift * (self.pos + self.neg))
        self.pos_logits = self.pos_logits + shift * self.count
        self.pos, self.neg, self.top = self.pos * factor, self.neg * factor, top

    def add(self, logits: Tensor, same: Tensor, form: SdmForm) -> None:
        """Take in a block of columns; overwrites `logits` ([B, columns], as is `same`, bool)."""
        self.raise_top(torch.maximum(self.top, logits.amax(dim=1)))
        shifted = logits.sub_(self.top[:, None])
        mass = shifted.exp()
        target = same.to(mass.dtype)
        self.count = self.count + same.sum(dim=1)
        self.pos = self.pos + _row_dot(mass, target)
        if form.name == "ce":
            self.pos_logits = self.pos_logits + _row_dot(shifted, target)
        else:
            self.weighted = self.weighted + _row_dot(mass, shifted)
        self.neg = self.neg + mass.masked_fill_(same, 0.0).sum(dim=1)

    @property
    def total(self) -> Tensor:
        """Sum of exp(s - top); the clamp only matters for rows without any column."""
        return (self.pos + self.neg).clamp_min(torch.finfo(self.pos.dtype).tiny)

    def loss(self, form: SdmForm) -> Tensor:
        """The row losses, [B]."""
        total, count = self.total, self.count.clamp_min(1)
        if form.name == "ce":
            row = total.log() - self.pos_logits / count
        else:
            costs = self.neg * _log_eps(form, total) + self.pos * _log_target(form, count, total)
            row = (self.weighted - costs) / total - total.log()
        return row * (self.count > 0)


class _SdmRows(torch.autograd.Function):
    """Closed form with a backward pass that computes the similarities again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        gallery: Tensor,
        memory: Tensor,
        query_class: Tensor,
        gallery_class: Tensor,
        memory_class: Tensor,
        form: SdmForm,
    ) -> tuple[Tensor, Tensor]:
        stats = _RowStats.empty(query)
        for part, classes in ((gallery, gallery_class), (memory, memory_class)):
            for block in _blocks(query, part):
                logits, same = _similarities(
                    query, part[block], query_class, classes[block], form.logit_scale
                )
                stats.add(logits, same, form)
        ctx.form = form
        ctx.save_for_backward(
            query, gallery, memory, query_class, gallery_class, memory_class,
            stats.top, stats.total, stats.weighted / stats.total, stats.pos / stats.total,
            stats.count,
        )  # fmt: skip
        ctx.mark_non_differentiable(stats.count)
        return stats.loss(form), stats.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, gallery, memory, query_class, gallery_class, memory_class, *stats = ctx.saved_tensors
        top, total, mean, share, count = stats
        upstream = grads[0] * (count > 0)
        grad_query = torch.zeros_like(query)
        grad_gallery = torch.zeros_like(gallery)
        with torch.autocast(query.device.type, enabled=False):
            for part, classes in ((gallery, gallery_class), (memory, memory_class)):
                for block in _blocks(query, part):
                    rows = part[block].to(query.dtype)
                    logits, same = _similarities(
                        query, rows, query_class, classes[block], ctx.form.logit_scale
                    )
                    grad = _logit_gradient(
                        logits.sub_(top[:, None]), same, upstream, total, mean, share, count,
                        ctx.form,
                    )  # fmt: skip
                    grad_query.addmm_(grad, rows, alpha=ctx.form.logit_scale)
                    if part is gallery:
                        torch.mm(grad.T, query, out=grad_gallery[block])
        grad_gallery.mul_(ctx.form.logit_scale)
        return grad_query, grad_gallery, None, None, None, None, None


def _logit_gradient(
    shifted: Tensor,
    same: Tensor,
    upstream: Tensor,
    total: Tensor,
    mean: Tensor,
    share: Tensor,
    count: Tensor,
    form: SdmForm,
) -> Tensor:
    """upstream_i times d row_i / d s_ij for one block of columns; overwrites `shifted`.

    shifted: s - top, [B, columns]. mean: E_p[s - top], share: P, both [B].
    """
    mass = shifted.exp()
    target = same.to(mass.dtype)
    positives = count.clamp_min(1)
    if form.name == "ce":
        mass.mul_((upstream / total)[:, None])
        return mass.addcmul_(target, (upstream / positives)[:, None], value=-1.0)
    gap = _log_target(form, positives, total) - _log_eps(form, total)
    shifted.add_((gap * share - mean)[:, None])
    shifted.addcmul_(target, gap[:, None], value=-1.0)
    return mass.mul_(shifted).mul_((upstream / total)[:, None])


def _blocks(query: Tensor, part: Tensor) -> Iterator[slice]:
    """Ranges of `part`'s rows whose similarities with all of `query` fit into one block."""
    elements = CPU_BLOCK if query.device.type == "cpu" else DEVICE_BLOCK
    width = max(1, elements // max(1, query.shape[0]))
    for start in range(0, part.shape[0], width):
        yield slice(start, start + width)


def _similarities(
    query: Tensor, rows: Tensor, query_class: Tensor, row_class: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """Logits [B, columns], masked columns at _MASKED, and which pairs share a class (bool)."""
    mask = torch.where(row_class < 0, _MASKED, 0.0).to(query.dtype)
    logits = torch.addmm(mask, query, rows.to(query.dtype).T, alpha=logit_scale)
    return logits, query_class[:, None] == row_class[None, :]


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """sum_j a_ij b_ij without a temporary of that size."""
    return torch.bmm(a[:, None, :], b[:, :, None]).view(-1)


def _log_eps(form: SdmForm, like: Tensor) -> Tensor:
    return torch.full_like(like[:1], form.eps).log()


def _log_target(form: SdmForm, count: Tensor, like: Tensor) -> Tensor:
    return (count.to(like.dtype).reciprocal() + form.eps).log()
