"""What an evaluation found, as values, as part of summary.json and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.evaluation.metrics import Retrieval
from service.evaluation.protocol import GROUPS, MEAN, QueryKind, averages

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

    @property
    def fusion_gain(self) -> dict[str, float]:
        """mAP of each combination minus that of its best single modality."""
        single = {k.kind.modalities[0]: k.retrieval.mean_ap for k in self.kinds[:4]}
        return {
            k.kind.key: k.retrieval.mean_ap - max(single[m] for m in k.kind.modalities)
            for k in self.kinds[4:]
        }

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


def table(result: EvalResult) -> str:
    """The result as lines of text: every kind in per cent, then the averages, then one line."""
    rule = "-" * 59
    lines = [f"{'per cent':<16}{''.join(f'{name:>7}' for name in METRICS)}{'queries':>8}"]
    for group in GROUPS:
        lines.append(rule)
        for k in result.kinds:
            if k.kind.group == group:
                values = [getattr(k.retrieval, field) for field in METRICS.values()]
                lines.append(f"{k.kind.key:<16}{_cells(values)}{k.num_queries:>8}")
    lines.append(rule)
    for name in (*GROUPS, MEAN):
        lines.append(f"{name:<16}{_cells([result.before_neck[m][name] for m in METRICS])}")
    after = _cells([result.after_neck[m][MEAN] for m in METRICS])
    lines.append(f"{'mean after neck':<16}{after}")
    gains = list(result.fusion_gain.values())
    lines.append(
        f"gallery {result.num_gallery}; chance mAP {100 * result.chance_map:.2f}; "
        f"{sum(gain > 0 for gain in gains)} of {len(gains)} combinations beat their best member"
    )
    return "\n".join(lines)


def _cells(values: Sequence[float]) -> str:
    return "".join(f"{100 * value:>7.2f}" for value in values)


def metric_averages(kinds: Sequence[tuple[QueryKind, Retrieval]]) -> dict[str, dict[str, float]]:
    """Metric name to the averages of that metric over all kinds."""
    return {
        name: averages({kind.key: getattr(found, field) for kind, found in kinds})
        for name, field in METRICS.items()
    }
