"""Tables and big numbers: the newest values, a row for each set of labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import tzinfo

from service.causes import Cause
from service.telemetry.logs import duration
from service.telemetry.panels.panel import VERDICT_WORDS, Panel, Target
from service.watching.asking import Answers, natural, question
from service.watching.clock import moment
from service.watching.curves import named
from service.watching.legends import NOTHING
from service.watching.markup import Element, element
from service.watching.units import measure

_MOMENTS = ("dateTimeFromNow", "dateTimeAsIso")
_FEW = 4
"""So many columns fit on a phone."""
_NOT_SHOWN = ("__name__", "instance", "job")
_COLORS = {word.text: word.color for word in VERDICT_WORDS}


@dataclass(slots=True)
class _Row:
    labels: dict[str, str]
    values: dict[int, float] = field(default_factory=dict)


def table(panel: Panel, answers: Answers, *, run: str, zone: tzinfo, now: float) -> Element | None:
    """The panel's table: labels, then one column a named target; None without any row.

    A label that is the page's run in every row is left out. now: when the page is drawn.
    """
    rows = _rows(panel, answers)
    if not rows:
        return None
    names = list(dict.fromkeys([*_asked(panel), *(n for row in rows for n in row.labels)]))
    names = [n for n in names if any(n in row.labels for row in rows)]
    names = [n for n in names if n != "run" or any(row.labels.get(n, run) != run for row in rows)]
    columns = [(number, t) for number, t in enumerate(panel.targets) if t.name]
    rows.sort(key=lambda row: [natural(row.labels.get(name, "")) for name in names])
    shown = {number: _column(number, t, rows, zone, now) for number, t in columns}
    body = [
        element(
            "tr",
            *(_label(name, row.labels.get(name, "")) for name in names),
            *(shown[number][place] for number, _ in columns),
        )
        for place, row in enumerate(rows)
    ]
    head = element(
        "tr",
        *(element("th", name, scope="col") for name in names),
        *(element("th", t.name, scope="col", class_=_kind(t)) for _, t in columns),
    )
    made = element("table", element("thead", head), element("tbody", *body))
    is_wide = len(names) + len(columns) > _FEW
    return element("div", made, class_="scroll wide" if is_wide else "scroll")


def big_numbers(panel: Panel, answers: Answers) -> Element | None:
    """The panel's newest values, large; None without any."""
    found = [
        (named(target.name, series.labels), value)
        for target in panel.targets
        for series in answers[question(panel, target)]
        for _, value in series.points[-1:]
    ]
    if not found:
        return None
    units = measure(panel.unit, panel.decimals, max(abs(value) for _, value in found))
    return element(
        "ul",
        *(element("li", element("b", units.text(v)), " ", element("span", n)) for n, v in found),
        class_="big",
    )


def _rows(panel: Panel, answers: Answers) -> list[_Row]:
    """The answers merged: a series joins every row with whose labels its own agree."""
    rows: list[_Row] = []
    found = [(number, answers[question(panel, t)]) for number, t in enumerate(panel.targets)]
    found.sort(key=lambda item: -max((len(series.labels) for series in item[1]), default=0))
    for number, of_target in found:
        for series in of_target:
            labels = {n: v for n, v in series.labels.items() if n not in _NOT_SHOWN}
            fitting = [row for row in rows if _agree(row, labels) and number not in row.values]
            if not fitting:
                fitting = [_Row(labels)]
                rows += fitting
            for row in fitting:
                row.labels.update(labels)
                row.values[number] = series.points[-1][1]
    return rows


def _asked(panel: Panel) -> list[str]:
    """The labels that the queries keep, in the order in which they name them."""
    kept = (by for target in panel.targets for by in re.findall(r"by \(([^)]*)\)", target.expr))
    return [label for by in kept for label in by.split(", ")]


def _agree(row: _Row, labels: dict[str, str]) -> bool:
    common = row.labels.keys() & labels.keys()
    return bool(common) and all(row.labels[name] == labels[name] for name in common)


def _label(name: str, value: str) -> Element:
    color = f"word k-{_COLORS[value]}" if value in _COLORS else None
    is_some = value and value != Cause.NONE
    return element("td", value if is_some else NOTHING, class_=color, data_th=name)


def _column(
    number: int, target: Target, rows: Sequence[_Row], zone: tzinfo, now: float
) -> list[Element]:
    values = [row.values.get(number) for row in rows]
    known = [abs(value) for value in values if value is not None]
    units = measure(target.unit or "none", target.decimals, max(known, default=0.0))
    cells = []
    for value in values:
        text, kind = NOTHING, _kind(target)
        if value is not None and target.words:
            text, kind = next(
                ((w.text, f"word k-{w.color}") for w in target.words if w.value == value),
                (units.text(value), kind),
            )
        elif value is not None and target.unit in _MOMENTS:
            text = _when(value / 1000, zone, now, target.unit)
        elif value is not None:
            text = units.text(value)
        cells.append(element("td", text, class_=kind, data_th=target.name))
    return cells


def _kind(target: Target) -> str | None:
    """Numbers are aligned at the right."""
    return None if target.words or target.unit in _MOMENTS else "number"


def _when(time: float, zone: tzinfo, now: float, unit: str) -> str:
    if unit == "dateTimeFromNow" and now >= time:
        return f"{duration(now - time)} ago"
    return moment(time, zone)
