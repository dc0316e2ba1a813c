"""Which alerts read which metrics, from Prometheus's rule files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from service.telemetry.panels.panel import metrics_in

Alerts = Mapping[str, tuple[str, ...]]
"""Metric, without its prefix, to the alerts that read it."""

_PERVASIVE = {
    *("running", "gate_threshold", "configured_steps"),
    *("global_step", "total_steps", "steps_total"),
}
"""Metrics that rules use to say when and against what; they do not tell what an alert watches."""


def watchers(folder: Path) -> dict[str, tuple[str, ...]]:
    """The alerts of the rule files under `folder` by the metrics that they read.

    An alert that reads a recorded series reads what that was recorded from.
    """
    rules = [rule for path in sorted(folder.rglob("*.y*ml")) for rule in _rules(path)]
    recorded = {rule["record"]: str(rule["expr"]) for rule in rules if "record" in rule}
    found: dict[str, set[str]] = {}
    for rule in rules:
        if "alert" in rule:
            for metric in set(metrics_in(_unfolded(str(rule["expr"]), recorded))) - _PERVASIVE:
                found.setdefault(metric, set()).add(rule["alert"])
    return {metric: tuple(sorted(names)) for metric, names in found.items()}


def _rules(path: Path) -> Iterator[dict[str, Any]]:
    for content in yaml.safe_load_all(path.read_text()):
        for group in (content or {}).get("groups", ()):
            yield from group.get("rules", ())


def _unfolded(expr: str, recorded: Mapping[str, str], depth: int = 8) -> str:
    """`expr` with the expressions of recorded series behind it; `depth` ends a circle."""
    names = [name for name in recorded if name in expr] if depth else []
    return " ".join([expr, *(_unfolded(recorded[n], recorded, depth - 1) for n in names)])
