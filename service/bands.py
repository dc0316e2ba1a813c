"""What the lines of a healthy run look like, phase by phase: to compare with, not to judge by.

The bands are those of a pretrained ViT-B on 400 identities (C = 400, ln C = 5.99): cross-entropy
from 1.8 to 1.5 in its first epoch with SDM and lower after it, an SDM loss of 1.6 to 2.2 that falls
(uniform similarities give 2.08), top-1 of 1 to 3 % at the first verdict, unpaired rows below 15 %.
They are told as fractions of chance, so that they can be held against any number of classes. A
small model from random weights learns more slowly and lies outside them without being ill.
"""

from dataclasses import dataclass

from service.health import HealthReport


@dataclass(frozen=True, slots=True)
class Band:
    """Where a line is expected. when: the phase that it belongs to, in words."""

    line: str
    observed: float
    low: float
    high: float
    when: str

    @property
    def is_inside(self) -> bool:
        return self.low <= self.observed <= self.high


def expected(r: HealthReport) -> tuple[Band, ...]:
    """The bands of the phase that the report is in."""
    tolerance = 0.25 * r.feature_norm_expected
    low, high = r.feature_norm_expected - tolerance, r.feature_norm_expected + tolerance
    always = (
        Band("pair_coverage", r.pair_coverage, 0.85, 1.0, "always"),
        Band("feature_norm", r.feature_norm, low, high, "always"),
    )
    if r.sdm_weight == 0.0:
        when = "before SDM"
        return (
            Band("ce_fraction", r.ce_fraction, 0.0, 0.935, when),
            Band("top1", r.top1, min(4.0 / r.num_classes, 0.5), 1.0, when),
            *always,
        )
    first = r.epoch <= 2
    when = "first epoch with SDM" if first else "later epochs with SDM"
    return (
        Band("ce_fraction", r.ce_fraction, 0.0, 0.31 if first else 0.25, when),
        Band("sdm_over_chance", r.sdm_over_chance, 0.0, 1.06 if first else 0.80, when),
        *always,
    )
