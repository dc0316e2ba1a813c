"""Who holds what in a step: from the plan's global batch to each rank's rows and fused queries.

All of it is a pure function of the plan, so every rank computes the same whole and no collective
carries labels.
"""

from dataclasses import dataclass

import numpy as np

from service.data.hashing import hash_keys, uniforms
from service.data.layout import FUSED, NUM_SLOTS, StepLayout
from service.modality import QUERY_MODALITIES, Modality

_FUSED_DRAWS = 3
_SLOT = np.array([QUERY_MODALITIES.index(m) if m in QUERY_MODALITIES else -1 for m in Modality])
"""Slot of each modality in a fused query; VIS has none."""


def _subset_table() -> tuple[np.ndarray, np.ndarray]:
    """For each set of slots, as bits, its subsets of two or more: int64 [16, 11] and their number.

    Subsets are in rising order; unused cells are 0.
    """
    table, num = np.zeros((1 << NUM_SLOTS, 11), np.int64), np.zeros(1 << NUM_SLOTS, np.int64)
    for whole in range(1 << NUM_SLOTS):
        subsets = [s for s in range(whole + 1) if s & whole == s and s.bit_count() >= 2]
        table[whole, : len(subsets)] = subsets
        num[whole] = len(subsets)
    return table, num


_SUBSETS, _NUM_SUBSETS = _subset_table()


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's rows of one step.

    row: int64 [n + m], record rows sorted by modality.
    kind: int8 [n + m], their modalities.
    class_index: int64 [n + m + f]; fused queries come last.
    fused: int64 [f, NUM_SLOTS], positions in `row`, -1 for none.
    """

    row: np.ndarray
    kind: np.ndarray
    class_index: np.ndarray
    fused: np.ndarray


def fused_members(
    modality: np.ndarray, person: np.ndarray, class_index: np.ndarray, key: tuple[int, ...]
) -> np.ndarray:
    """The fused query of each person of a batch, as positions of its member rows.

    modality: [n], of each row; person: [n], which of the P persons it shows, rising.
    class_index: [P]. key: (seed, epoch, step).
    Returns int64 [P, NUM_SLOTS]: one row a member modality, -1 elsewhere. A person with fewer
    than two modalities other than VIS has -1 only; else the members' modalities are any subset of
    two or more of them, all equally likely, and the row of each is any of the person's.
    """
    num_persons = len(class_index)
    slot = _SLOT[modality]
    queried = np.flatnonzero(slot >= 0)
    cell = person[queried] * NUM_SLOTS + slot[queried]
    by_cell = queried[np.argsort(cell, kind="stable")]
    count = np.bincount(cell, minlength=num_persons * NUM_SLOTS)
    first = (np.cumsum(count) - count).reshape(num_persons, NUM_SLOTS)
    count = count.reshape(num_persons, NUM_SLOTS)
    u = uniforms(hash_keys((_FUSED_DRAWS, *key), class_index), 1 + NUM_SLOTS)
    bits = 1 << np.arange(NUM_SLOTS)
    present = (count > 0) @ bits
    subset = _SUBSETS[present, (u[:, 0] * _NUM_SUBSETS[present]).astype(np.int64)]
    chosen = (subset[:, None] & bits) > 0
    pick = first + (u[:, 1:] * count).astype(np.int64)
    members = np.full((num_persons, NUM_SLOTS), -1, np.int64)
    members[chosen] = by_cell[pick[chosen]]
    return members


def take_share(
    rows: np.ndarray,
    modality: np.ndarray,
    starts: np.ndarray,
    class_index: np.ndarray,
    members: np.ndarray,
    ids: slice,
) -> Share:
    """The share of the rank that has the persons `ids` of the global batch.

    rows, modality: [n] of the global batch; starts: [P + 1]; class_index: [P];
    members: [P, NUM_SLOTS] from `fused_members`.
    """
    begin, end = starts[ids.start], starts[ids.stop]
    order = np.argsort(modality[begin:end], kind="stable")
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    of_row = np.repeat(class_index[ids], np.diff(starts[ids.start : ids.stop + 1]))[order]
    mine = members[ids]
    fuses = (mine >= 0).any(axis=1)
    local = mine[fuses] - begin
    return Share(
        row=rows[begin:end][order].astype(np.int64),
        kind=modality[begin:end][order].astype(np.int8),
        class_index=np.concatenate([of_row, class_index[ids][fuses]]).astype(np.int64),
        fused=np.where(mine[fuses] < 0, -1, position[np.maximum(local, 0)]),
    )


def lay_out(shares: list[Share], rank: int) -> StepLayout:
    """The global batch, rank after rank, as `rank` sees it."""
    fused = [np.full(len(share.fused), FUSED, np.int8) for share in shares]
    kinds = [part for share, tail in zip(shares, fused, strict=True) for part in (share.kind, tail)]
    return StepLayout(
        class_index=np.concatenate([share.class_index for share in shares]),
        kind=np.concatenate(kinds),
        counts=tuple(len(share.class_index) for share in shares),
        rank=rank,
    )
