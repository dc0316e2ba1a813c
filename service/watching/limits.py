"""Names and values of limits, where their lines end, without touching each other."""

from collections.abc import Sequence

from service.watching.curves import is_drawn
from service.watching.markup import Element, element
from service.watching.plots import HEIGHT, Plot

_LINE = 13.0
"""Pixels from one line of text to the next."""
_TWO_LINED = 3
"""Up to so many limits have their value in a line of its own, which leaves the chart more room."""
_MOST = 11
"""With more limits than have room, each kind is named once."""
_OF_SEVERAL = "bound k-gray"
"""Paint of a name that several trials' limits share."""
_SHORT = 8
"""Letters of a short line."""


def names(plot: Plot, top: float) -> Element | None:
    """The limits' names at the right of a chart that begins at `top` pixels; None without any.

    One that had to move has a leader from the end of its line.
    """
    lines = _lines(plot)
    if not lines:
        return None
    tall = (len(lines[0][2]) - 1) * _LINE / 2
    places = spread([y for _, y, _ in lines], (tall + _LINE / 2) * 2, tall, HEIGHT - tall)
    drawn = []
    for (paint, y, words), place in zip(lines, places, strict=True):
        drawn.append(element("path", class_=f"leader {paint}", d=f"M1 {y:.1f}L8 {place:.1f}"))
        drawn += [
            element("text", word, class_=f"limit {paint}", x=11, y=place - tall + n * _LINE + 4)
            for n, word in enumerate(words)
        ]
    return element("svg", *drawn, class_="names", x="100%", y=top, width=1, height=HEIGHT)


def room(plot: Plot) -> int:
    """How much room the names need: 0 none, 1 some, 2 much."""
    letters = [len(word) for _, _, words in _lines(plot) for word in words]
    return 0 if not letters else 1 if max(letters) <= _SHORT else 2


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in the order of `wanted`, at least `gap` apart, as near to it as can be.

    They keep their order and stay between `low` and `high`; where there is no room for all, they
    lie evenly over it. Neighbours that are pushed apart lie around the middle of what they wanted.
    """
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    groups: list[list[float]] = []
    for number in order:
        groups.append([wanted[number]])
        while len(groups) > 1 and _first(groups[-1], gap, low, high) < (
            _first(groups[-2], gap, low, high) + gap * len(groups[-2])
        ):
            last = groups.pop()
            groups[-1] += last
    places = [
        _first(group, gap, low, high) + gap * place
        for group in groups
        for place in range(len(group))
    ]
    found = dict(zip(order, places, strict=True))
    return [found[number] for number in range(len(wanted))]


def _first(group: Sequence[float], gap: float, low: float, high: float) -> float:
    """Place of the first of a group whose members lie `gap` apart."""
    length = gap * (len(group) - 1)
    return max(min(sum(group) / len(group) - length / 2, high - length), low)


def _lines(plot: Plot) -> list[tuple[str, float, list[str]]]:
    """Of each limit: its paint, pixels from the top to the end of its line, and its words."""
    known = [b for b in plot.bounds if b.last is not None and is_drawn(b.last)]
    # The unit is that of the axis, which the chart's title has; the trial's is the colour.
    said = [(bound.variant, plot.units.number(bound.last or 0.0)) for bound in known]
    kept = dict(zip(said, known, strict=True))
    if len(kept) > _MOST:
        kept = dict({words[0]: (words, bound) for words, bound in kept.items()}.values())
    found = []
    for words, bound in kept.items():
        paint = bound.paint if said.count(words) == 1 else _OF_SEVERAL
        y = (1 - plot.scale.place(bound.last or 0.0)) * HEIGHT
        found.append((paint, y, list(words) if len(kept) <= _TWO_LINED else [" ".join(words)]))
    return found
