"""Fusion of several non-VIS rows of one person into one query."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fuse_mean(members: Tensor, present: Tensor) -> Tensor:
    """Unit mean [Q, D] of the present unit members.

    members: [Q, S, D], rows L2-normalised where present. present: bool [Q, S], at least one a row.
    """
    weights = present.to(members.dtype).unsqueeze(-1)
    return F.normalize((members * weights).sum(dim=1), dim=-1)


def fuse_rows(rows: Tensor, members: Tensor) -> Tensor:
    """Fused queries [f, D] from unit rows [n, D] and a member table.

    members: int64 [f, S], positions in `rows`, -1 where a slot is empty.
    """
    picked = rows.index_select(0, members.clamp(min=0).flatten())
    return fuse_mean(picked.view(*members.shape, rows.shape[1]), members >= 0)


def fuse_all(members: Tensor) -> Tensor:
    """Unit mean [Q, D] of unit members [Q, S, D], all present."""
    return fuse_mean(
        members, torch.ones(members.shape[:2], dtype=torch.bool, device=members.device)
    )
