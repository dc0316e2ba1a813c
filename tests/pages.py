"""A drawn page, read as a browser and as a strict XML parser would."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from xml.etree import ElementTree

from service.telemetry.panels.panel import Target, View
from service.watching.asking import Answers, Question, question, questions
from service.watching.prometheus import Series
from service.watching.span import Span
from service.watching.standing import QUESTIONS

Element = ElementTree.Element


@dataclass(frozen=True, slots=True)
class Card:
    """One panel of a page."""

    root: Element

    @property
    def title(self) -> str:
        return (next(self.root.iter("h3")).text or "").strip()

    @property
    def is_empty(self) -> bool:
        return bool(found(self.root, "p", "empty"))

    @property
    def legend(self) -> dict[str, str]:
        """Names to newest values, with units, of a legend that is a list."""
        shown = {}
        for entry in self.root.iter("li"):
            for value in found(entry, "b", "value"):
                unit = "".join(text(small) for small in entry.iter("small"))
                shown[text(found(entry, "span", "name")[0])] = f"{text(value)} {unit}".strip()
        return shown

    @property
    def rows(self) -> list[dict[str, str]]:
        """A table's rows, by the titles of its columns."""
        titles = [text(cell) for cell in next(self.root.iter("thead")).iter("th")]
        return [
            dict(zip(titles, [text(cell) for cell in row], strict=True))
            for row in next(self.root.iter("tbody"))
        ]

    def ticks(self) -> list[tuple[str, float]]:
        """Words of the value axis and their heights in pixels from the top of the chart."""
        return [
            (text(tick), float(tick.get("y", "")) - 4) for tick in found(self.root, "text", "value")
        ]


def main_of(page: str) -> Element:
    """The page's content; raises ParseError where it is not well-formed."""
    return ElementTree.fromstring(page[page.index("<main") : page.index("</main>") + 7])


def cards(page: str) -> dict[str, Card]:
    """By title, without those that come twice."""
    return {card.title: card for card in map(Card, main_of(page).iter("article"))}


def found(root: Element, tag: str, *classes: str) -> list[Element]:
    """Elements below `root` of that tag with all of these classes."""
    return [e for e in root.iter(tag) if set(classes) <= set(e.get("class", "").split())]


def text(root: Element) -> str:
    """All text below, as one line."""
    return " ".join("".join(root.itertext()).split())


def lines_of(path: str) -> list[list[tuple[float, float]]]:
    """The points of each line of a path of `M x y l dx dy ...`."""
    found_lines = []
    for part in path.split("M")[1:]:
        start, _, steps = part.partition("l")
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", start)]
        points = [(numbers[0], numbers[1])]
        moves = [float(n) for n in re.findall(r"-?[\d.]+", steps)]
        for dx, dy in zip(moves[::2], moves[1::2], strict=True):
            points.append((points[-1][0] + dx, points[-1][1] + dy))
        found_lines.append(points)
    return found_lines


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Every tag and its attributes, as HTML's own rules find them."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader.found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def invented(view: View, span: Span, trials: Sequence[str]) -> Answers:
    """Answers to all that a page of the view asks: of each trial a line that rises."""
    asked = {question(panel, t): (panel, t) for panel in view.panels for t in panel.targets}
    answers: dict[Question, tuple[Series, ...]] = {}
    for one in (*QUESTIONS, *questions(view)):
        panel, target = asked.get(one, (None, Target(one.expr)))
        labels = _labels(target)
        of_trials = [("a", trial) for trial in trials]
        named = (
            [{}] if target.is_bound else [{"run": r, "trial": t, **labels} for r, t in of_trials]
        )
        is_state = panel is not None and panel.kind == "states"
        answers[one] = tuple(
            Series(names, _points(one, span, 1.0 if is_state else number + 0.5))
            for number, names in enumerate(named)
        )
    return answers


def _labels(target: Target) -> dict[str, str]:
    """Those that the query keeps or the legend needs, beside run and trial."""
    kept = (by for part in re.findall(r"by \(([^)]*)\)", target.expr) for by in part.split(", "))
    names = {*re.findall(r"{{(\w+)}}", target.name), *kept} - {"run", "trial"}
    return {name: _USUAL.get(name, "some") for name in sorted(names)}


def _points(one: Question, span: Span, value: float) -> tuple[tuple[float, float], ...]:
    times = span.times[-1:] if one.is_instant else span.times
    if "timestamp" in one.expr and one.expr.endswith("* 1000"):
        return tuple((at, at * 1000) for at in times)
    return tuple((at, value + span.place(at) * (value % 1)) for at in times)


_USUAL = {"verdict": "GO", "decision": "GO", "cause": "none"}
