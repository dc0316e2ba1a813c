"""The numbers of a health report that others than the policy read: base schedulers, searches, logs.

Ray Tune's own parts take flat numbers only, and some of them pass over a missing one in silence.
"""

from collections.abc import Mapping
from typing import Any, Literal

MODES: dict[str, Literal["min", "max"]] = {
    "ce": "min",
    "ce_fraction": "min",
    "top1": "max",
    "pair_coverage": "max",
}
"""What trials can be compared by, and which end is better."""

TIME = "step"
"""What counts as time; Tune's own count of reports starts again with every restart."""


def scalars(health: Mapping[str, Any]) -> dict[str, float | int]:
    """Every plain number of `HealthReport.to_dict()`, and the step as Tune's loggers want it."""
    found = {
        name: value
        for name, value in health.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {**found, "timesteps_total": health[TIME]}


def compared(health: Mapping[str, Any]) -> dict[str, float | int]:
    """The step and what trials can be compared by.

    Raises:
        KeyError: naming the first that is missing.
    """
    return {name: health[name] for name in (TIME, *MODES)}
