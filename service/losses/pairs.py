"""Who has a positive in a step: computed from the class numbers that the loss itself gets."""

from dataclasses import dataclass

import numpy as np

from service.data.layout import FUSED, StepLayout
from service.modality import Modality


@dataclass(frozen=True, slots=True)
class Pairs:
    """Counts over the global batch.

    single, fused: rows of each sort. unpaired: single rows without a positive of the other side
    (VIS or non-VIS) in the batch; unpaired_with_memory: with the memory's VIS rows as well.
    valid_queries: non-VIS rows and fused queries with a positive among live and memory VIS rows;
    valid_vis: VIS rows with a positive among the live non-VIS rows and fused queries.
    """

    single: int
    fused: int
    unpaired: int
    unpaired_with_memory: int
    valid_queries: int
    valid_vis: int

    @classmethod
    def of(cls, layout: StepLayout, memory_class: np.ndarray) -> "Pairs":
        """memory_class: class numbers of the memory's filled rows, empty when there are none."""
        classes, kind = layout.class_index, layout.kind
        is_vis = kind == Modality.VIS
        vis, query = classes[is_vis], classes[~is_vis]
        query_live = np.isin(query, vis)
        query_any = query_live | np.isin(query, memory_class)
        vis_ok = np.isin(vis, query)
        is_single = kind[~is_vis] != FUSED
        lonely_vis = int((~vis_ok).sum())
        return cls(
            single=int((kind != FUSED).sum()),
            fused=int((kind == FUSED).sum()),
            unpaired=lonely_vis + int((~query_live & is_single).sum()),
            unpaired_with_memory=lonely_vis + int((~query_any & is_single).sum()),
            valid_queries=int(query_any.sum()),
            valid_vis=int(vis_ok.sum()),
        )
