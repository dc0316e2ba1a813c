"""State timelines, as SVG: what was in force when, in words and colours."""

from collections.abc import Sequence

from service.telemetry.panels.panel import Panel
from service.watching.canvas import across
from service.watching.curves import Curve, runs
from service.watching.frame import Frame, time_axis
from service.watching.legends import NOTHING, tokens
from service.watching.markup import Element, element
from service.watching.units import number

_ROW = 42.0
_BAR = 20.0
_BELOW = 22.0
_NARROW = 320.0
"""Pixels of a timeline on a phone."""
_LETTER = 7.5
_LONGEST = 42
"""Letters of a name and a word that fit on a phone."""
_THINNEST = 0.006
"""Of the width: also what lasted for a moment must be seen."""


def timeline(panel: Panel, shown: Sequence[Curve], frame: Frame) -> Element:
    """The figure of a panel of kind states: a bar for each series."""
    height = _ROW * len(shown)
    drawing = element(
        "svg",
        *(part for row, curve in enumerate(shown) for part in _row(panel, curve, row * _ROW)),
        *time_axis(frame, height),
        class_="plot",
        role="img",
        aria_label=_said(panel, shown),
        height=height + _BELOW,
    )
    return element("figure", drawing, class_="states")


def _row(panel: Panel, curve: Curve, top: float) -> list[Element]:
    """Name and newest word, and below them the bar."""
    said = [_word(panel, value) for value in curve.values]
    newest = _word(panel, curve.last)
    letters = _LONGEST - max(len(word) for word, _ in said)
    name = curve.name if len(curve.name) <= letters else f"{curve.name[: letters - 1]}…"
    heading = element(
        "text",
        element("tspan", name, class_="name"),
        " ",
        element(
            "tspan",
            newest[0],
            class_=f"value k-{newest[1]}",
            data_v=tokens(word for word, _ in said),
        ),
        element("title", curve.name),
        y=top + 13,
    )
    bars = [
        part
        for first, end in runs(said)
        if said[first][0] != NOTHING
        for part in _bar(said[first], *_ends(first, end, len(said)), top + 18)
    ]
    return [heading, *bars]


def _ends(first: int, end: int, count: int) -> tuple[float, float]:
    """From half a step before the first moment to half a step behind the last."""
    step = 1 / (count - 1)
    left, right = max((first - 0.5) * step, 0.0), min((end - 0.5) * step, 1.0)
    if right - left < _THINNEST:
        left = min(left, 1 - _THINNEST)
        right = left + _THINNEST
    return left, right


def _bar(said: tuple[str, str], left: float, right: float, y: float) -> list[Element]:
    word, color = said
    box = element(
        "rect",
        element("title", word),
        class_=f"bar k-{color}",
        x=across(left),
        y=y,
        width=across(right - left),
        height=_BAR,
    )
    if (right - left) * _NARROW < len(word) * _LETTER + 10:
        return [box]
    return [box, element("text", word, class_=f"bar k-{color}", x=across(left), dx=6, y=y + 14)]


def _word(panel: Panel, value: float | None) -> tuple[str, str]:
    """Text and colour of a value."""
    if value is None:
        return NOTHING, "gray"
    return next(
        ((word.text, word.color) for word in panel.words if word.value == value),
        (number(value), "gray"),
    )


def _said(panel: Panel, shown: Sequence[Curve]) -> str:
    newest = (f"{curve.name} {_word(panel, curve.last)[0]}" for curve in shown)
    return f"{panel.title}. Last: {', '.join(newest)}"
