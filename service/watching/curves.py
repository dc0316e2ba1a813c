"""What a panel draws: answers as curves over the moments of the span."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from service.telemetry.panels.panel import Panel, Target
from service.watching.asking import Answers, natural, question
from service.watching.scales import LARGEST
from service.watching.span import Span

_COLORS = 10
"""In the style sheet; then they begin again."""

Values = tuple[float | None, ...]
"""One for each moment of the span; None where there was no data."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One series.

    name: of the legend. trial: of its labels, may be empty. variant: the name without the trial.
    paint: classes of the style sheet. is_bound: others are held against it.
    """

    name: str
    trial: str
    variant: str
    values: Values
    paint: str = ""
    is_bound: bool = False

    @property
    def last(self) -> float | None:
        """The newest value that there is."""
        return next((value for value in reversed(self.values) if value is not None), None)


def curves(panel: Panel, answers: Answers, span: Span, trials: Sequence[str]) -> tuple[Curve, ...]:
    """The panel's curves, target by target, each target's by name; those without data left out.

    trials: all of the page, since a trial has the same colour in all panels.
    """
    found: list[Curve] = []
    for target in panel.targets:
        of_target = (
            _curve(target, series.labels, _on_moments(series.points, span))
            for series in answers[question(panel, target)]
        )
        shown = (c for c in of_target if any(value is not None for value in c.values))
        found += sorted(shown, key=lambda curve: (natural(curve.trial), natural(curve.name)))
    return _painted(found, trials)


def stacked(shown: Sequence[Curve]) -> list[Values]:
    """The upper edge of each curve when the curves of each trial are put on one another.

    NaN and infinite values add nothing.
    """
    tops: dict[str, list[float]] = {}
    edges: list[Values] = []
    for curve in shown:
        top = tops.setdefault(curve.trial, [0.0] * len(curve.values))
        for place, value in enumerate(curve.values):
            top[place] += value if value is not None and is_drawn(value) else 0.0
        edges.append(
            tuple(None if v is None else t for v, t in zip(curve.values, top, strict=True))
        )
    return edges


def is_drawn(value: float) -> bool:
    """Whether a value has a place on an axis."""
    return abs(value) <= LARGEST


def stretches(values: Values) -> list[tuple[int, int]]:
    """Where a line goes without a break: first moment and the one behind the last."""
    found: list[tuple[int, int]] = []
    for place, value in enumerate(values):
        if value is None or not is_drawn(value):
            continue
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """Where equal things follow each other: first place and the one behind the last."""
    found: list[tuple[int, int]] = []
    for place, value in enumerate(values):
        if found and values[place - 1] == value:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def _painted(found: Sequence[Curve], trials: Sequence[str]) -> tuple[Curve, ...]:
    """The curves with a colour each: of the trial, or of the variant where that says more. A limit
    has its own, but that of its trial where each of several has a limit.

    Of two variants the first is broad and pale, so that both are seen where they are one line.
    """
    own = [curve for curve in found if not curve.is_bound]
    variants = list(dict.fromkeys(curve.variant for curve in own))
    are_trials = len({curve.trial for curve in own}) > 1 and len(variants) <= 2

    def paint(curve: Curve) -> str:
        names, name = (trials, curve.trial) if are_trials else (variants, curve.variant)
        number = names.index(name) if name in names else 0
        is_broad = len(variants) == 2 and curve.variant == variants[0]
        return f"c{number % _COLORS}{' broad' if is_broad else ''}"

    def bound_paint(curve: Curve) -> str:
        is_of_many = len(trials) > 1 and curve.trial in trials
        return f"bound c{trials.index(curve.trial) % _COLORS}" if is_of_many else curve.paint

    def name(curve: Curve) -> str:
        # The only trial of a page goes without saying where there is something else to say.
        return curve.variant if len(trials) == 1 and curve.variant else curve.name

    paints = [bound_paint(curve) if curve.is_bound else paint(curve) for curve in found]
    return tuple(
        replace(c, paint=of_c, name=name(c)) for c, of_c in zip(found, paints, strict=True)
    )


def _curve(target: Target, labels: Mapping[str, str], values: Values) -> Curve:
    trial = labels.get("trial", "")
    return Curve(
        name=named(target.name, labels) or trial,
        trial=trial,
        variant=named(target.name, {**labels, "trial": ""}),
        values=values,
        paint=f"bound k-{target.color}" if target.is_bound else "",
        is_bound=target.is_bound,
    )


def named(template: str, labels: Mapping[str, str]) -> str:
    """A legend with the labels' values in place of `{{label}}`."""
    filled = re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), template)
    return filled.strip(" :")


def _on_moments(points: Sequence[tuple[float, float]], span: Span) -> Values:
    values: list[float | None] = [None] * span.count
    for time, value in points:
        place = span.nearest(time)
        if 0 <= place < span.count:
            values[place] = value
    return tuple(values)
