"""Which health lines are on the wrong side of their bounds, and since when.

Each bound has a key, so that one line can have several. A bound that was crossed stays so until its
line is back by a margin: noise around a bound must not make a verdict flap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from service.config import Config, HeadProbe, PolicyConfig, SdmConfig
from service.decisions import Finding, PolicyState, Verdict
from service.health import HealthReport

MIN_SDM_STEPS = 20
"""Scheduled steps from which it counts that the loss applied no weight."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that a verdict depends on."""

    policy: PolicyConfig
    sdm: SdmConfig
    probe: HeadProbe | None = None

    @classmethod
    def of(cls, config: Config) -> "Rules":
        return cls(config.policy, config.loss.sdm, config.optim.head_probe)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A line held against a bound.

    is_upper: above is the wrong side; else below. margin: how far back the line must come, in its
    own unit. includes: being on the bound is wrong too.
    """

    key: str
    line: str
    observed: float
    bound: float
    is_upper: bool
    margin: float = 0.0
    includes: bool = False

    def is_crossed(self, already: bool) -> bool:
        back = self.margin if already else 0.0
        bound = self.bound - back if self.is_upper else self.bound + back
        if self.observed == bound:
            return self.includes
        return self.observed > bound if self.is_upper else self.observed < bound


def not_finite(report: HealthReport) -> dict[str, Finding]:
    """The lines that are NaN or infinite: no bound would notice them, as they compare false."""
    step = report.step
    return {
        name: Finding(name, value, 0.0, step, step)
        for name, value in report.to_dict().items()
        if isinstance(value, float) and not math.isfinite(value)
    }


def crossed(state: PolicyState, report: HealthReport, rules: Rules) -> dict[str, Finding]:
    """The crossed bounds by key; each finding says since which step."""
    bounds = _first_bounds if state.verdict is Verdict.WAIT else _later_bounds
    found: dict[str, Finding] = {}
    for b in (*_common_bounds(report, rules.policy), *bounds(state, report, rules.policy)):
        if b.is_crossed(b.key in state.since):
            since = state.since.get(b.key, report.step)
            found[b.key] = Finding(b.line, b.observed, b.bound, report.step, since)
    return _without_echoes(found, report, rules.policy)


def _common_bounds(r: HealthReport, p: PolicyConfig) -> Iterator[_Bound]:
    """What must hold before and after GO."""
    if r.ce_fraction > p.settled:
        yield _Bound("head_grad", "head_grad_norm", r.head_grad_norm, p.min_grad, False)
    yield _Bound("head_moved", "head_moved", r.head_moved, 0.0, False, includes=True)
    if r.body_grad_norm is not None:
        body = r.body_grad_norm
        yield _Bound("body_grad", "body_grad_norm", body, 0.0, False, includes=True)
    yield _Bound("coverage", "pair_coverage", r.pair_coverage, p.coverage, False, p.margin)
    yield _Bound(
        "unpaired",
        "rows_without_positive",
        r.rows_without_positive,
        p.max_unpaired,
        True,
        p.margin,
    )
    yield from _norm_bound(r, p)


def _norm_bound(r: HealthReport, p: PolicyConfig) -> Iterator[_Bound]:
    """The feature length on the side where it is."""
    expected = r.feature_norm_expected
    is_upper = r.feature_norm > expected
    off = p.norm_tolerance if is_upper else -p.norm_tolerance
    yield _Bound(
        "feature_norm",
        "feature_norm",
        r.feature_norm,
        expected * (1.0 + off),
        is_upper,
        p.margin * expected,
    )


def _swing_bound(r: HealthReport, p: PolicyConfig) -> _Bound:
    return _Bound("ce_swing", "ce_swing", r.ce_swing, p.max_swing, True, p.margin)


def _first_bounds(state: PolicyState, r: HealthReport, p: PolicyConfig) -> Iterator[_Bound]:
    """What GO asks for.

    Between the Go and the learning line CE must be falling; below that only a rise counts, because
    a flat stretch is noise; below `settled` nothing of CE does.
    """
    yield _Bound("ce_go", "ce_fraction", r.ce_fraction, p.go, True)
    if r.ce_fraction > p.go:
        yield _Bound("ce_fall", "ce_fall", r.ce_fall, p.min_fall, False)
    if r.ce_fraction > p.settled:
        per_step = p.min_fall * math.log(r.num_classes) / r.window
        rise = per_step if r.ce_fraction <= p.learning else 0.0
        yield _Bound("ce_slope", "ce_slope", r.ce_slope, rise, True, includes=True)
    yield _Bound("head_growth", "head_growth", r.head_growth, p.min_head_growth, False)
    yield _swing_bound(r, p)


def _later_bounds(state: PolicyState, r: HealthReport, p: PolicyConfig) -> Iterator[_Bound]:
    """What must hold once a run has learned.

    SDM may own the gradient of a run whose CE has fallen with it: only while CE has not moved since
    the last notch does the share count against it.
    """
    best = r.ce_fraction if state.best is None else state.best
    yield _Bound("ce_hold", "ce_fraction", r.ce_fraction, p.hold, True, p.margin)
    yield _Bound("ce_collapse", "ce_fraction", r.ce_fraction, p.collapse, True, p.margin, True)
    yield _Bound("ce_rise", "ce_fraction", r.ce_fraction, best + p.rise, True, p.margin)
    yield _swing_bound(r, p)
    if r.sdm_scheduled_steps >= min(MIN_SDM_STEPS, r.window):
        yield _Bound("sdm_applied", "sdm_applied_share", r.sdm_applied_share, 0.5, False)
    if r.sdm_weight > 0:
        share = r.sdm_gradient_share
        if r.ce_fraction > p.settled and _has_stood(state, r, p):
            yield _Bound("sdm_share", "sdm_gradient_share", share, p.max_sdm_share, True, p.margin)
        if r.sdm_rows > 0 and r.ce_fraction > p.settled:
            yield _Bound("sdm_applied", "sdm_gradient_share", share, 0.0, False, includes=True)
    if state.head_limit is not None:
        yield _Bound("head_norm", "head_norm", r.head_norm, state.head_limit, True)
    yield _Bound("data_wait", "data_wait_share", r.data_wait_share, p.max_data_wait, True, 0.05)
    yield _Bound(
        "throughput", "throughput_ratio", r.throughput_ratio, p.min_throughput, False, 0.05
    )
    if r.step <= r.total_steps / 2:
        yield _Bound("memorised", "top1", r.top1, p.memorised, True)


def _has_stood(state: PolicyState, r: HealthReport, p: PolicyConfig) -> bool:
    """Whether CE has not clearly fallen since the first whole window after the last notch, and an
    epoch, or the patience with a rise, has passed."""
    if state.low is None or state.has_fallen:
        return False
    lasts = r.step - state.notch_step >= max(p.rise_patience + r.window, r.steps_per_epoch)
    return lasts and r.ce_fraction > state.low - p.margin


def _without_echoes(
    found: dict[str, Finding], r: HealthReport, p: PolicyConfig
) -> dict[str, Finding]:
    """A head that is still small is only said together with something else that is wrong."""
    against = found.keys() & {"ce_go", "ce_slope", "head_grad", "head_moved", "body_grad"}
    if not against:
        found.pop("head_growth", None)
    return found
