"""BNNeck over the global batch (Luo et al., Bag of Tricks, CVPRW 2019), equal on gloo and NCCL.

Statistics come from the gathered rows of all ranks, so the neck sees the same batch at any world
size; torch's SyncBatchNorm runs on CUDA only.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.config import NeckConfig


class Neck(nn.Module):
    """BatchNorm without bias, then optional scaling of each row to a fixed length."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, config: NeckConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, rows: Tensor, batch: Tensor | None = None) -> Tensor:
        """Rows [n, D] after the neck.

        batch: [N, D], the global rows that give the statistics, in training; in evaluation it is
        ignored and the running statistics are used. Its gradient flows through the statistics.

        Raises:
            ValueError: in training, for fewer than two rows in `batch`.
        """
        if self.training:
            if batch is None or len(batch) < 2:
                raise ValueError("the neck needs at least two rows of the global batch to train")
            mean, var = self._track(batch)
        else:
            mean, var = self.running_mean, self.running_var
        out = (rows - mean) * torch.rsqrt(var + self.config.eps) * self.weight
        if self.config.norm_scale is not None:
            out = F.normalize(out, dim=-1) * self.config.norm_scale
        return out

    @property
    def expected_norm(self) -> float:
        """Length of a healthy row after the neck: the scale, or sqrt(sum of gamma squared)."""
        if self.config.norm_scale is not None:
            return self.config.norm_scale
        return math.sqrt(float(self.weight.detach().square().sum()))

    def _track(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        mean = batch.mean(dim=0)
        var = (batch - mean).square().mean(dim=0)
        with torch.no_grad():
            n, momentum = len(batch), self.config.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var.dtype), momentum)
        return mean, var
