"""Lines and areas over time, as SVG: axes, limits, decisions, and marks for what no line shows."""

from collections.abc import Iterator

from service.telemetry.panels.panel import Panel
from service.watching import limits
from service.watching.canvas import FINE, WIDTH, across, canvas
from service.watching.curves import Curve, Values, is_drawn, runs
from service.watching.frame import Frame, time_axis
from service.watching.legends import legend
from service.watching.marks import caption_texts, captions, upright
from service.watching.markup import Element, element
from service.watching.plots import HEIGHT, Plot, across_of, area_paths, dots_path, line_path
from service.watching.units import odd_number

_TOP = 18
"""Pixels above the canvas, for the words of decisions."""
_BELOW = 22
_TICKS = 5
_ODD_APART = 0.15
"""Of the width, between two words for values that are no number."""


def chart(panel: Panel, plot: Plot, frame: Frame) -> Element:
    """The figure of a panel of kind lines or areas: the chart and its legend."""
    drawing = element(
        "svg",
        *_grid(plot),
        *time_axis(frame, _TOP + HEIGHT),
        canvas(HEIGHT, _TOP, *_shapes(panel, plot, frame)),
        *caption_texts(captions(frame.marks, frame.span), _TOP - 6),
        *_odd_words(plot),
        limits.names(plot, _TOP),
        class_="plot",
        role="img",
        aria_label=_said(panel, plot),
        height=_TOP + HEIGHT + _BELOW,
    )
    room = f"chart room{limits.room(plot)}"
    return element("figure", drawing, legend(plot.curves, plot.units), class_=room)


def _grid(plot: Plot) -> list[Element]:
    whole = plot.units.decimals == 0
    ticks = plot.scale.ticks(_TICKS, plot.units.factor, whole=whole)
    drawn = []
    for value in ticks.values:
        y, zero = _TOP + (1 - plot.scale.place(value)) * HEIGHT, " zero" if value == 0 else ""
        drawn.append(element("line", class_=f"grid{zero}", x2="100%", y1=y, y2=y))
        words = plot.units.tick(value, ticks.gap)
        drawn.append(element("text", words, class_="value", x=-7, y=y + 4))
    return drawn


def _shapes(panel: Panel, plot: Plot, frame: Frame) -> Iterator[Element]:
    """From the back to the front."""
    yield from upright(frame.marks, frame.span, WIDTH, HEIGHT * FINE)
    if panel.kind == "areas" and plot.one_trial:
        for curve, path in zip(plot.curves, area_paths(plot.edges, plot.scale), strict=True):
            yield element("path", class_=f"area {curve.paint}", d=path)
    for bound in plot.bounds:
        yield from _lines(bound.paint, bound.values, plot)
    for curve, edge in zip(plot.curves, plot.edges, strict=True):
        yield from _lines(curve.paint, edge, plot)
    for curve in plot.curves:
        if path := _odd_path(curve):
            yield element("path", class_=f"odd {curve.paint}", d=path)


def _lines(paint: str, values: Values, plot: Plot) -> Iterator[Element]:
    if line := line_path(values, plot.scale):
        yield element("path", class_=f"line {paint}", d=line)
    if dots := dots_path(values, plot.scale):
        yield element("path", class_=f"dots {paint}", d=dots)


def _odd_path(curve: Curve) -> str:
    """NaN and -Inf along the bottom, +Inf along the top, for as long as they last."""
    path = ""
    for first, end, word in _odd(curve):
        y = 0 if word == "+Inf" else HEIGHT * FINE
        path += f"M{across_of(first, curve.values)} {y}H{across_of(end - 1, curve.values)}"
    return path


def _odd_words(plot: Plot) -> Iterator[Element]:
    """The words where each such time begins, without those that would lie on another."""
    taken: dict[str, list[float]] = {}
    for curve in plot.curves:
        for first, _, word in _odd(curve):
            place, others = first / (len(curve.values) - 1), taken.setdefault(word, [])
            if any(abs(place - other) < _ODD_APART for other in others):
                continue
            others.append(place)
            y = _TOP + 15 if word == "+Inf" else _TOP + HEIGHT - 6
            anchor = "end" if place > 0.9 else "start"
            yield element("text", word, class_="odd", x=across(place), y=y, text_anchor=anchor)


def _odd(curve: Curve) -> list[tuple[int, int, str]]:
    """Where values are no number that can be drawn: first moment, the one behind the last, word."""
    said = ["" if value is None or is_drawn(value) else odd_number(value) for value in curve.values]
    return [(first, end, said[first]) for first, end in runs(said) if said[first]]


def _said(panel: Panel, plot: Plot) -> str:
    """What a person who does not see the chart must know."""
    newest, bounds = (
        ", ".join(f"{c.name} {plot.units.text(c.last)}" for c in found if c.last is not None)
        for found in (plot.curves, plot.bounds)
    )
    return f"{panel.title}. Last values: {newest}." + (f" Limits: {bounds}." if bounds else "")
