"""Health lines: what a run looks like over its last steps, as plain numbers.

The loop hands over one `StepSample` a step, summed over all ranks, in batches at report steps;
`Health` keeps the windows and makes a `HealthReport`. Nothing here knows of tensors or ranks.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from statistics import median
from typing import Any

from service.modality import Modality

KINDS = (*(modality.label for modality in Modality), "fused")
"""Names of the kinds of rows: the modalities, then fused queries."""

MIN_TENTH = 5
"""Fewest steps whose mean stands for a tenth of the window, whatever the window."""

_PAST_RATES = 20
"""Reports whose throughput is remembered."""

FALLEN = 0.75
"""Share of the usual throughput below which a report does not count as usual."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """One step of the global batch.

    step: 1-based global step. ce: unsmoothed cross-entropy, nats a row. top1: share in [0, 1].
    unpaired: share of rows without a positive in the batch; unpaired_with_memory: with the memory's
    rows as well. sdm: SDM loss (0 while off); sdm_chance: its value for uniform similarities;
    sdm_rows: rows that entered it; sdm_positives: mean positives of such a row. sdm_scheduled:
    weight that was asked for; sdm_weight: weight as the loss applied it. feature_norm: mean length
    after the neck. images: rows seen. seconds: wall time of the step, mean over ranks, of which
    data_wait_s waiting for the loader. ce_by_kind: mean cross-entropy of each kind of row (KINDS),
    None where there was none.
    """

    step: int
    ce: float
    top1: float
    unpaired: float
    unpaired_with_memory: float
    sdm: float
    sdm_chance: float
    sdm_rows: float
    sdm_positives: float
    sdm_scheduled: float
    sdm_weight: float
    feature_norm: float
    images: float
    seconds: float
    data_wait_s: float
    ce_by_kind: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Gauges:
    """Values read once at a report step.

    head_norm, head_grad_norm: L2 norms of the classifier and of its gradient before the step.
    head_moved: length of the head's change in this step over its length; 0 is no update.
    body_grad_norm: the gradient's norm in the backbone with its patch embeddings, None when nothing
    there learns. body_moved: the largest such relative change among samples of every group but the
    head. head_lr: learning rate in force. sdm_reason: why the SDM weight is what it is.
    sdm_gradient_share: SDM's part of the gradient that reaches the features, in [0, 1].
    memory_rows, memory_age: filled rows, and steps since the oldest was stored. memory_equal:
    hashes equal on all ranks. feature_norm_expected: length of a healthy row after the neck.
    ids_per_batch: P.
    """

    head_norm: float
    head_grad_norm: float
    head_moved: float
    body_grad_norm: float | None
    body_moved: float
    head_lr: float
    sdm_reason: str
    sdm_gradient_share: float
    memory_rows: int
    memory_age: int
    memory_equal: bool
    feature_norm_expected: float
    ids_per_batch: int


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The health lines at one step; every mean is over the last `window` steps.

    ce_fraction is ce / ln C, so 1.0 is chance; C (num_classes) counts the classes that the sampler
    draws. ce_first is the mean of the first window; ce_fall is
    how far the last window lies below it, over ln C. While there are fewer steps than two windows,
    the first and the last half stand for them in ce_first and ce_fall. ce_slope is the
    least-squares slope in nats a step. ce_swing is the largest climb between two tenths of the
    window, over ln C: 0 for a curve that only falls. head_growth is head_norm over its value at the
    start, head_window_growth over that of about one window ago. sdm_scheduled and sdm_weight are
    those of the last step; sdm_applied_share is the share of the window's sdm_scheduled_steps in
    which the loss applied a weight to some row, 1 when there were none. throughput_ratio is
    images_per_second over the median of the run's earlier reports.
    """

    step: int
    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    total_steps: int
    num_classes: int
    window: int
    ce: float
    ce_fraction: float
    ce_first: float
    ce_fall: float
    ce_slope: float
    ce_swing: float
    ce_by_kind: dict[str, float]
    top1: float
    pair_coverage: float
    pair_coverage_with_memory: float
    rows_without_positive: float
    sdm: float
    sdm_chance: float
    sdm_rows: float
    sdm_positives: float
    sdm_scheduled: float
    sdm_weight: float
    sdm_scheduled_steps: int
    sdm_applied_share: float
    sdm_gradient_share: float
    sdm_reason: str
    head_norm: float
    head_growth: float
    head_window_growth: float
    head_grad_norm: float
    head_moved: float
    body_grad_norm: float | None
    body_moved: float
    head_lr: float
    feature_norm: float
    feature_norm_expected: float
    memory_rows: int
    memory_age: int
    memory_equal: bool
    ids_per_batch: int
    images_per_second: float
    throughput_ratio: float
    data_wait_share: float

    @property
    def sdm_over_chance(self) -> float:
        """The SDM loss over that of uniform similarities; 0 while SDM is off."""
        return self.sdm / self.sdm_chance if self.sdm_chance else 0.0

    @property
    def is_epoch_end(self) -> bool:
        return self.step_in_epoch == self.steps_per_epoch

    @property
    def is_last(self) -> bool:
        return self.step >= self.total_steps

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives an equal report."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HealthReport":
        """Raises KeyError naming the first missing line; lines of later versions are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})


class Health:
    """The windows behind the health lines; its state is part of the train state."""

    def __init__(self, num_classes: int, window: int) -> None:
        self._num_classes = num_classes
        self._window = window
        self._recent: deque[StepSample] = deque(maxlen=window)
        self._first: list[float] = []
        self._count = 0
        self._head_start: float | None = None
        self._heads: deque[tuple[int, float]] = deque()
        self._rates: deque[float] = deque(maxlen=_PAST_RATES)

    def add(self, samples: Iterable[StepSample]) -> None:
        """Takes the steps since the last call, in order."""
        for sample in samples:
            self._recent.append(sample)
            self._count += 1
            if len(self._first) < self._window:
                self._first.append(sample.ce)

    def start(self, head_norm: float) -> None:
        """Notes the head's length before the first step; later calls change nothing."""
        if self._head_start is None:
            self._head_start = head_norm

    def report(
        self,
        *,
        step: int,
        epoch: int,
        step_in_epoch: int,
        steps_per_epoch: int,
        total_steps: int,
        gauges: Gauges,
    ) -> HealthReport:
        """The health lines after `step` (1-based, as are epoch and step_in_epoch); needs at least
        one sample."""
        recent = self._recent
        scheduled = [s for s in recent if s.sdm_scheduled > 0]
        applied = [s for s in scheduled if s.sdm_weight > 0 and s.sdm_rows > 0]
        chance = math.log(self._num_classes)
        ce = _mean(s.ce for s in recent)
        half = min(max(self._count // 2, 1), self._window)
        first = _mean(self._first[:half])
        last = _mean(s.ce for s in list(recent)[-half:])
        seconds = sum(s.seconds for s in recent)
        rate = sum(s.images for s in recent) / seconds if seconds else 0.0
        unpaired = _mean(s.unpaired for s in recent)
        start = self._head_start or gauges.head_norm
        before = self._head_before(step, gauges.head_norm)
        usual = median(self._rates) if self._rates else rate
        if rate >= FALLEN * usual:
            self._rates.append(rate)
        return HealthReport(
            step=step,
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            num_classes=self._num_classes,
            window=self._window,
            ce=ce,
            ce_fraction=ce / chance,
            ce_first=first,
            ce_fall=(first - last) / chance,
            ce_slope=_slope([s.ce for s in recent]),
            ce_swing=_climb([s.ce for s in recent], self._window) / chance,
            ce_by_kind=_by_kind(recent),
            top1=_mean(s.top1 for s in recent),
            pair_coverage=1.0 - unpaired,
            pair_coverage_with_memory=1.0 - _mean(s.unpaired_with_memory for s in recent),
            rows_without_positive=unpaired,
            sdm=_mean(s.sdm for s in recent if s.sdm_rows),
            sdm_chance=_mean(s.sdm_chance for s in recent if s.sdm_rows),
            sdm_rows=recent[-1].sdm_rows,
            sdm_positives=_mean(s.sdm_positives for s in recent if s.sdm_rows),
            sdm_scheduled=recent[-1].sdm_scheduled,
            sdm_weight=recent[-1].sdm_weight,
            sdm_scheduled_steps=len(scheduled),
            sdm_applied_share=len(applied) / len(scheduled) if scheduled else 1.0,
            sdm_gradient_share=gauges.sdm_gradient_share,
            sdm_reason=gauges.sdm_reason,
            head_norm=gauges.head_norm,
            head_growth=gauges.head_norm / start if start else 1.0,
            head_window_growth=gauges.head_norm / before if before else 1.0,
            head_grad_norm=gauges.head_grad_norm,
            head_moved=gauges.head_moved,
            body_grad_norm=gauges.body_grad_norm,
            body_moved=gauges.body_moved,
            head_lr=gauges.head_lr,
            feature_norm=_mean(s.feature_norm for s in recent),
            feature_norm_expected=gauges.feature_norm_expected,
            memory_rows=gauges.memory_rows,
            memory_age=gauges.memory_age,
            memory_equal=gauges.memory_equal,
            ids_per_batch=gauges.ids_per_batch,
            images_per_second=rate,
            throughput_ratio=rate / usual if usual else 1.0,
            data_wait_share=sum(s.data_wait_s for s in recent) / seconds if seconds else 0.0,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "recent": [astuple(s) for s in self._recent],
            "first": list(self._first),
            "count": self._count,
            "head_start": self._head_start,
            "heads": [list(head) for head in self._heads],
            "rates": list(self._rates),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(StepSample(*values) for values in state["recent"])
        self._first = list(state["first"])
        self._count = state["count"]
        self._head_start = state["head_start"]
        self._heads = deque((step, norm) for step, norm in state["heads"])
        self._rates.clear()
        self._rates.extend(state["rates"])

    def _head_before(self, step: int, norm: float) -> float:
        """The head's length at the last report that is at least a window old, or at the first."""
        while len(self._heads) > 1 and self._heads[1][0] <= step - self._window:
            self._heads.popleft()
        self._heads.append((step, norm))
        return self._heads[0][1]


def _by_kind(samples: Iterable[StepSample]) -> dict[str, float]:
    """Mean cross-entropy of each kind that had rows."""
    columns = zip(*(s.ce_by_kind for s in samples), strict=True)
    present = {
        k: [v for v in column if v is not None] for k, column in zip(KINDS, columns, strict=True)
    }
    return {kind: _mean(values) for kind, values in present.items() if values}


def _mean(values: Iterable[float]) -> float:
    """The mean, or 0 of nothing."""
    items = list(values)
    return sum(items) / len(items) if items else 0.0


def _climb(values: list[float], window: int) -> float:
    """The most that the mean of one tenth of the window lies above that of an earlier tenth.

    The mean of a tenth forgets the noise of single batches; tenths are counted from the end, and
    one that is not full is left out.
    """
    size = max(window // 10, MIN_TENTH)
    ends = range(len(values), size - 1, -size)
    tenths = [_mean(values[end - size : end]) for end in ends][::-1]
    lowest, climb = math.inf, 0.0
    for value in tenths:
        lowest = min(lowest, value)
        climb = max(climb, value - lowest)
    return climb


def _slope(values: list[float]) -> float:
    """Least-squares slope of `values` over their positions; 0 for fewer than two."""
    n = len(values)
    if n < 2:
        return 0.0
    middle = (n - 1) / 2
    mean = sum(values) / n
    above = sum((i - middle) * (v - mean) for i, v in enumerate(values))
    return above / (n * (n * n - 1) / 12)
