"""Does the sampler really pair? A look at planned batches, by what the records say of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.data.sampler import PKPlan
from service.modality import Modality


@dataclass(frozen=True, slots=True)
class PairingAudit:
    """What `batches` planned batches hold: ids in all of them, ids without VIS or without anything
    else, ids and rows that come twice in one batch."""

    batches: int
    ids: int
    unpaired_ids: int
    repeated_ids: int
    repeated_rows: int


def audit(
    plan: PKPlan,
    modality: NDArray[np.integer],
    epoch: int,
    first_step: int = 0,
    batches: int = 20,
) -> PairingAudit:
    """At most `batches` batches of a 1-based epoch, from `first_step` (0-based) to its end.

    modality: of every record row.
    """
    ids = unpaired = repeated_ids = repeated_rows = 0
    steps = range(first_step, min(first_step + batches, plan.steps_per_epoch))
    for step in steps:
        batch = plan.batch(epoch, step)
        is_vis = modality[batch.rows] == Modality.VIS
        num_vis = np.add.reduceat(is_vis.astype(np.int64), batch.starts[:-1])
        rows = np.diff(batch.starts)
        ids += len(rows)
        unpaired += int(((num_vis == 0) | (num_vis == rows)).sum())
        repeated_ids += len(rows) - len(np.unique(batch.class_index))
        repeated_rows += len(batch.rows) - len(np.unique(batch.rows))
    return PairingAudit(len(steps), ids, unpaired, repeated_ids, repeated_rows)
