"""What an evaluation found, as values and as part of summary.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.evaluation.metrics import Retrieval
from service.evaluation.protocol import MEAN, QueryKind, averages

METRICS = {"R1": "r1", "R5": "r5", "R10": "r10", "mAP": "mean_ap", "mINP": "mean_inp"}
"""Shown name to field of `Retrieval`, in the official order."""


@dataclass(frozen=True, slots=True)
class KindResult:
    """One query kind before the neck."""

    kind: QueryKind
    num_queries: int
    retrieval: Retrieval
    chance_map: float


@dataclass(frozen=True, slots=True)
class EvalResult:
    """kinds: all 32, in the official order. after_neck: metric name to averages."""

    num_gallery: int
    kinds: tuple[KindResult, ...]
    after_neck: dict[str, dict[str, float]]

    @property
    def before_neck(self) -> dict[str, dict[str, float]]:
        """Metric name to MM-1..MM-4 and mean."""
        return metric_averages([(k.kind, k.retrieval) for k in self.kinds])

    @property
    def chance_map(self) -> float:
        """mAP of a random ranking, averaged as the official mean is."""
        return averages({k.kind.key: k.chance_map for k in self.kinds})[MEAN]

    def to_summary(self) -> dict[str, Any]:
        """What summary.json says of it: a mapping a metric, with averages and then every kind."""
        summary: dict[str, Any] = {}
        for name, field in METRICS.items():
            kinds = {k.kind.key: getattr(k.retrieval, field) for k in self.kinds}
            summary[name] = self.before_neck[name] | kinds
        return summary | {
            "chance_mAP": self.chance_map,
            "after_neck": self.after_neck,
            "num_gallery": self.num_gallery,
            "num_queries": {k.kind.key: k.num_queries for k in self.kinds},
        }


def metric_averages(kinds: Sequence[tuple[QueryKind, Retrieval]]) -> dict[str, dict[str, float]]:
    """Metric name to the averages of that metric over all kinds."""
    return {
        name: averages({kind.key: getattr(found, field) for kind, found in kinds})
        for name, field in METRICS.items()
    }
