"""How an identity's rows of an epoch are dealt into chunks of K, one chunk for each batch."""

from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64
from numpy.typing import NDArray

from service.config import SamplerConfig
from service.data.packing import Ints, permutation
from service.modality import Modality


@dataclass(frozen=True, eq=False, slots=True)
class Chunks:
    """How each drawn identity deals its rows, in groups, into chunks. U identities, G groups.

    Chunk j takes from group g the positions first(j) .. first(j + 1) - 1 of the group's shuffled
    rows repeated for ever, with first(j) = (rate * j + lead) // turns. So each chunk has
    rate // turns rows of the group, and one more in `extra` of `turns` chunks; a chunk never asks
    for more rows than the group has, so its rows are distinct.

    size, base: int64 [U, G], rows of the group and its first position in the index's order.
    rate, turns: int64 [U, G].
    rotating: bool [U, G], groups that take turns at the extra rows; `lead` orders them.
    """

    size: Ints
    base: Ints
    rate: Ints
    turns: Ints
    rotating: NDArray[np.bool_]

    @property
    def needed(self) -> Ints:
        """Chunks that show every row at least once, whatever `lead` is: int64 [U]."""
        return (-(-self.size * self.turns // np.maximum(self.rate, 1))).max(axis=1)

    def lead(self, stream: PCG64) -> Ints:
        """Each rotating group's head start in this epoch: int64 [U, G]."""
        if not self.rotating.any():
            return np.zeros_like(self.turns)
        keys = permutation(stream, *self.turns.shape)
        rank = np.argsort(np.argsort(np.where(self.rotating, keys, keys.shape[1]), axis=1), axis=1)
        return np.where(self.rotating, self.turns - 1 - rank, 0)


def deal(counts: Ints, first: Ints, config: SamplerConfig) -> Chunks:
    """The chunks of identities with `counts` [U, 5] rows, which start at `first` [U, 5]."""
    num_vis = counts[:, Modality.VIS]
    num_other = counts[:, 1:].sum(axis=1)
    vis = np.minimum(config.vis_per_id, num_vis)
    other = np.minimum(config.rows_per_id - vis, num_other)
    vis = np.minimum(config.rows_per_id - other, num_vis)
    if config.mix == "natural":
        size = np.stack((num_vis, num_other), axis=1)
        quota = np.stack((vis, other), axis=1)
        still = np.zeros_like(quota, np.bool_)
        return Chunks(size, first[:, :2], quota, np.ones_like(quota), still)
    level = np.zeros_like(other)
    for t in range(1, config.rows_per_id + 1):
        level[np.minimum(counts[:, 1:], t).sum(axis=1) <= other] = t
    quota = np.minimum(counts[:, 1:], level[:, None])
    extra = (other - quota.sum(axis=1))[:, None]
    rotating = (counts[:, 1:] > level[:, None]) & (extra > 0)
    turns = np.where(rotating, rotating.sum(axis=1, keepdims=True), 1)
    rate = quota * turns + np.where(rotating, extra, 0)
    return Chunks(
        counts,
        first,
        np.concatenate((vis[:, None], rate), axis=1),
        np.concatenate((np.ones_like(vis[:, None]), turns), axis=1),
        np.concatenate((np.zeros_like(vis[:, None], np.bool_), rotating), axis=1),
    )
