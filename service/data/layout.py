"""The values that travel from the loader to the model: one step's rows, and who they are.

Row order inside a rank: single rows sorted by modality (VIS, NIR, CP, SK, TEXT), then fused
queries. Global order: rank after rank. Every rank can compute the whole layout, because the plan
is a pure function; so no collective carries labels.
"""

from dataclasses import dataclass

import numpy as np
import torch

from service.modality import QUERY_MODALITIES, Modality

FUSED = len(Modality)
"""The `kind` of a fused query; single rows have their modality as kind."""

NUM_SLOTS = len(QUERY_MODALITIES)
"""Columns of a fused query's member table, in the order of QUERY_MODALITIES."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Who is in the global batch.

    class_index: int64 [N] global, in global row order, each in [0, C).
    kind: int8 [N] global; a Modality value, or FUSED.
    counts: rows of each rank, fused queries included; sums to N.
    rank: the rank that this layout was made for.
    """

    class_index: np.ndarray
    kind: np.ndarray
    counts: tuple[int, ...]
    rank: int

    @property
    def local(self) -> slice:
        """This rank's rows in global order."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.counts[self.rank])


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one step, on the CPU.

    images: uint8 [n, H, W, 3], sorted by modality: VIS, NIR, CP, SK.
    image_counts: rows of each image modality, in that order; sums to n.
    tokens: int32 [m, L], zero-padded.
    row: int64 [n + m], record row ids in row order (images, then captions).
    fused: int64 [f, NUM_SLOTS], positions in `row` of each fused query's members, -1 for none;
        at least two members a query.
    layout: the global batch; `layout.counts[rank] == n + m + f`.
    """

    epoch: int
    step: int
    images: torch.Tensor
    image_counts: tuple[int, int, int, int]
    tokens: torch.Tensor
    row: np.ndarray
    fused: torch.Tensor
    layout: StepLayout
