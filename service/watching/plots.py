"""A panel of curves before it is drawn: its axis, its unit, and the paths of its lines."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from service.telemetry.panels.panel import Panel
from service.watching.canvas import FINE, WIDTH
from service.watching.curves import Curve, Values, is_drawn, stacked, stretches
from service.watching.scales import Scale, scale_of
from service.watching.units import Measure, measure

HEIGHT = 150
"""Pixels from the low end of the axis to the high."""


@dataclass(frozen=True, slots=True)
class Plot:
    """curves: what is held against `bounds`. edges: where each curve is drawn, higher than its
    values in a stack."""

    curves: tuple[Curve, ...]
    bounds: tuple[Curve, ...]
    edges: tuple[Values, ...]
    scale: Scale
    units: Measure

    @property
    def one_trial(self) -> bool:
        return len({curve.trial for curve in self.curves}) <= 1


def plot(panel: Panel, shown: Sequence[Curve]) -> Plot:
    """The plot of a panel of kind lines or areas."""
    own = tuple(curve for curve in shown if not curve.is_bound)
    bounds = tuple(curve for curve in shown if curve.is_bound)
    edges = stacked(own) if panel.kind == "areas" else [curve.values for curve in own]
    on_axis = list(_drawn([*edges, *(bound.values for bound in bounds)]))
    scale = scale_of(on_axis, lowest=panel.lowest, highest=panel.highest, is_symlog=panel.is_symlog)
    units = measure(panel.unit, panel.decimals, max(map(abs, on_axis), default=0.0))
    return Plot(own, bounds, tuple(edges), scale, units)


def line_path(values: Values, scale: Scale) -> str:
    """The path of a line that breaks where there is nothing to draw; lone values are not in it."""
    return "".join(
        _stretch(values, first, end, scale) for first, end in stretches(values) if end - first > 1
    )


def dots_path(values: Values, scale: Scale) -> str:
    """Points, for values that have no neighbours."""
    return "".join(
        f"M{across_of(first, values)} {_down(values[first], scale)}h0"
        for first, end in stretches(values)
        if end - first == 1
    )


def area_paths(edges: Sequence[Values], scale: Scale) -> list[str]:
    """What lies below each edge and above the one before; the first one goes down to 0."""
    paths: list[str] = []
    below: list[float] = [0.0] * max(map(len, edges), default=0)
    for edge in edges:
        paths.append("".join(_patch(edge, below, *ends, scale) for ends in stretches(edge)))
        below = [old if new is None else new for new, old in zip(edge, below, strict=True)]
    return paths


def across_of(place: int, values: Values) -> int:
    """How far to the right a moment lies, in units of the canvas."""
    return round(place * WIDTH / (len(values) - 1))


def _stretch(values: Values, first: int, end: int, scale: Scale) -> str:
    """One line without a break, without the points inside of level parts."""
    downs = [_down(value, scale) for value in values[first:end]]
    kept = [
        place
        for place, down in enumerate(downs)
        if place in (0, len(downs) - 1) or not downs[place - 1] == down == downs[place + 1]
    ]
    points = [(across_of(first + place, values), downs[place]) for place in kept]
    steps = (f"{x - was_x} {y - was_y}" for (was_x, was_y), (x, y) in pairwise(points))
    return f"M{points[0][0]} {points[0][1]}l{' '.join(steps)}".replace(" -", "-")


def _patch(edge: Values, below: Sequence[float], first: int, end: int, scale: Scale) -> str:
    roof = [f"{across_of(n, edge)} {_down(edge[n], scale)}" for n in range(first, end)]
    floor = [f"{across_of(n, edge)} {_down(below[n], scale)}" for n in range(first, end)]
    return f"M{' '.join([*roof, *reversed(floor)])}z"


def _down(value: float | None, scale: Scale) -> int:
    """How far below the high end a value lies, in units of the canvas."""
    return round((1 - scale.place(value or 0.0)) * HEIGHT * FINE)


def _drawn(edges: Iterable[Values]) -> Iterator[float]:
    return (value for edge in edges for value in edge if value is not None and is_drawn(value))
