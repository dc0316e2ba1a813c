"""Decisions as upright lines in every chart, with the verdict's word where there is room."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from service.decisions import Verdict
from service.telemetry.panels.panel import VERDICT_WORDS, View
from service.watching.asking import Answers, mark_question
from service.watching.canvas import across, anchored
from service.watching.markup import Element, element
from service.watching.span import Span

_COLORS = {word.text: word.color for word in VERDICT_WORDS}
_TURNS = (Verdict.RAISE, Verdict.ROLLBACK, Verdict.PAUSE, Verdict.NO_GO)
_URGENCY = (
    *(Verdict.NO_GO, Verdict.PAUSE, Verdict.ROLLBACK, Verdict.GO),
    Verdict.RAISE,
)
_SIZES = ((215.0, ""), (265.0, " middle"), (440.0, " fine"))
"""Pixels of a chart on a phone and of wider ones, with the class of words that fit there."""
_LETTER, _ROOM = 7.0, 7.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A decision at a Unix time in seconds.

    is_turn: it changes the run, or is the first GO; others only say for a while how things stand.
    """

    time: float
    verdict: str
    trial: str
    is_turn: bool = True


@dataclass(frozen=True, slots=True)
class Caption:
    """A verdict's word over a chart. place: 0 to 1. size: class of the charts with room for it."""

    place: float
    verdict: str
    size: str


def color(verdict: str) -> str:
    """As Grafana calls it."""
    return _COLORS.get(verdict, "gray")


def decisions(view: View, answers: Answers, span: Span) -> tuple[Mark, ...]:
    """Decisions within the span, in time.

    The policy says at every report what is in force; a verdict that is said again is only there
    when each time is a turn of the run.
    """
    told = sorted(
        {
            Mark(value / 1000, series.labels.get("decision", ""), series.labels.get("trial", ""))
            for mark in view.marks
            for series in answers[mark_question(mark)]
            for _, value in series.points
        },
        key=lambda mark: (mark.time, mark.trial),
    )
    return tuple(mark for mark in _changes(told) if 0 <= span.place(mark.time) <= 1)


def upright(marks: Iterable[Mark], span: Span, width: int, height: int) -> list[Element]:
    """The lines, one path a verdict, on a canvas of that size: short ones for what is no turn."""
    paths: dict[str, dict[str, None]] = {}
    for mark in marks:
        at = round(span.place(mark.time) * width)
        length = height if mark.is_turn else height // 20
        paths.setdefault(mark.verdict, {})[f"M{at} 0v{length}"] = None
    return [
        element("path", class_=f"mark k-{color(verdict)}", d="".join(found))
        for verdict, found in paths.items()
    ]


def captions(marks: Sequence[Mark], span: Span) -> tuple[Caption, ...]:
    """Words of turns that do not touch, the most urgent verdicts chosen first; in time."""
    turns = (mark for mark in marks if mark.is_turn)
    by_urgency = sorted(turns, key=lambda mark: (_rank(mark.verdict), mark.time))
    chosen: list[Caption] = []
    for width, size in _SIZES:
        for mark in by_urgency:
            caption = Caption(span.place(mark.time), mark.verdict, size)
            if not any(_touch(caption, other, width) for other in chosen):
                chosen.append(caption)
    return tuple(sorted(chosen, key=lambda caption: caption.place))


def caption_texts(found: Iterable[Caption], y: float) -> list[Element]:
    """The words as SVG; those at an edge stay inside the chart."""
    return [
        element(
            "text",
            caption.verdict,
            class_=f"word k-{color(caption.verdict)}{caption.size}",
            x=across(caption.place),
            y=y,
            text_anchor=anchored(caption.place),
        )
        for caption in found
    ]


def _changes(told: Iterable[Mark]) -> Iterator[Mark]:
    in_force: dict[str, str] = {}
    learning: set[str] = set()
    for mark in told:
        is_turn = mark.verdict in _TURNS or (
            mark.verdict == Verdict.GO and mark.trial not in learning
        )
        if is_turn or in_force.get(mark.trial) != mark.verdict:
            yield replace(mark, is_turn=is_turn)
        in_force[mark.trial] = mark.verdict
        if mark.verdict == Verdict.GO:
            learning.add(mark.trial)


def _rank(verdict: str) -> int:
    return _URGENCY.index(verdict) if verdict in _URGENCY else len(_URGENCY)


def _touch(one: Caption, other: Caption, width: float) -> bool:
    letters = (len(one.verdict) + len(other.verdict)) / 2
    return abs(one.place - other.place) * width < letters * _LETTER + _ROOM
