"""Step measurements that stay on the device until a report step asks for them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from service.data.layout import FUSED
from service.distributed import Distributed
from service.health import StepSample
from service.losses.objective import LINES, LossTerms, sdm_value
from service.losses.pairs import Pairs

_COLUMN = {name: i for i, name in enumerate(LINES)}


@dataclass(frozen=True, slots=True)
class _Step:
    step: int
    sums: Tensor
    pairs: Pairs
    kind_counts: tuple[int, ...]
    scheduled: float
    applied: float
    seconds: float
    data_wait_s: float


class StepMeter:
    """Collects steps without waiting for the device; `flush` sums them over the ranks at once."""

    def __init__(self, form: Literal["ce", "kl"]) -> None:
        self._form: Literal["ce", "kl"] = form
        self._steps: list[_Step] = []

    def add(
        self,
        step: int,
        terms: LossTerms,
        kind_counts: tuple[int, ...],
        *,
        scheduled: float,
        seconds: float,
        data_wait_s: float,
    ) -> None:
        """kind_counts: global rows of each kind. scheduled: SDM weight that was asked for."""
        self._steps.append(
            _Step(
                step,
                terms.sums,
                terms.pairs,
                kind_counts,
                scheduled,
                terms.sdm_weight,
                seconds,
                data_wait_s,
            )
        )

    def flush(self, world: Distributed) -> list[StepSample]:
        """The steps since the last flush, of all ranks together. Every rank must call it."""
        if not self._steps:
            return []
        sums = torch.stack([s.sums for s in self._steps])
        times = torch.tensor(
            [[s.seconds, s.data_wait_s] for s in self._steps], dtype=sums.dtype, device=sums.device
        )
        table = _added(torch.cat([sums, times / world.world], dim=1), world)
        samples = [
            _sample(s, row, self._form) for s, row in zip(self._steps, table.tolist(), strict=True)
        ]
        self._steps.clear()
        return samples


def _added(table: Tensor, world: Distributed) -> Tensor:
    """The sum over the ranks, in their order: a reduction adds in an order that depends on how many
    steps are asked for at once, and so on when checkpoints are taken."""
    first, *others = world.gather_rows(table, [len(table)] * world.world).chunk(world.world)
    return sum(others, start=first)


def _sample(s: _Step, row: list[float], form: Literal["ce", "kl"]) -> StepSample:
    def column(name: str) -> float:
        return row[_COLUMN[name]]

    single = s.pairs.single
    by_kind = (
        column(f"ce_{kind}") / count if count else None for kind, count in enumerate(s.kind_counts)
    )
    return StepSample(
        step=s.step,
        ce=column("ce") / single,
        top1=column("correct") / single,
        unpaired=s.pairs.unpaired / single,
        unpaired_with_memory=s.pairs.unpaired_with_memory / single,
        sdm=sdm_value(column("sdm_queries"), column("sdm_vis"), s.pairs, form),
        sdm_chance=sdm_value(column("sdm_queries_chance"), column("sdm_vis_chance"), s.pairs, form),
        sdm_rows=column("sdm_rows"),
        sdm_positives=column("sdm_positives") / max(column("sdm_rows"), 1.0),
        sdm_scheduled=s.scheduled,
        sdm_weight=s.applied,
        feature_norm=column("norm") / single,
        images=float(sum(s.kind_counts[:FUSED])),
        seconds=row[-2],
        data_wait_s=row[-1],
        ce_by_kind=tuple(by_kind),
    )
