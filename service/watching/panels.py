"""A panel as a card: its title and meaning, and what its kind draws."""

from service.causes import WORDS
from service.telemetry.lines import BY_NAME
from service.telemetry.panels.panel import PREFIX, Panel, metrics_in
from service.watching.asking import Answers
from service.watching.charts import chart
from service.watching.curves import curves
from service.watching.frame import Frame
from service.watching.markup import Child, Element, code_words, element
from service.watching.plots import plot
from service.watching.tables import big_numbers, table
from service.watching.timelines import timeline

_EXPLAIN = "crossreid explain CAUSE"


def card(panel: Panel, answers: Answers, frame: Frame, *, run: str, now: float) -> Element:
    """now: when the page is drawn, in Unix seconds."""
    drawn, unit = _drawn(panel, answers, frame, run, now)
    return element(
        "article",
        _meaning(panel, unit),
        _no_data(panel) if drawn is None else drawn,
        class_=f"card w{panel.width}",
    )


def _drawn(
    panel: Panel, answers: Answers, frame: Frame, run: str, now: float
) -> tuple[Element | None, str]:
    """What the panel shows, None without data, and the unit of its axis."""
    if panel.kind == "table":
        return table(panel, answers, run=run, zone=frame.zone, now=now), ""
    if panel.kind == "stat":
        return big_numbers(panel, answers), ""
    shown = curves(panel, answers, frame.span, frame.trials)
    if all(curve.is_bound for curve in shown):
        return None, ""
    if panel.kind == "states":
        return timeline(panel, shown, frame), ""
    drawn = plot(panel, shown)
    return chart(panel, drawn, frame), drawn.units.unit


def _meaning(panel: Panel, unit: str) -> Element:
    """The title, which opens what the panel means."""
    is_said = unit in panel.title.lower().split()
    unit_words = [" ", element("small", unit)] if unit and not is_said else []
    causes = [
        part
        for cause in panel.causes
        for part in (element("dt", element("code", cause.value)), element("dd", WORDS[cause][0]))
    ]
    lines: list[Child] = [
        element("li", element("code", PREFIX + name), f": {BY_NAME[name].help}")
        for name in panel.metrics
    ]
    return element(
        "details",
        element("summary", element("h3", panel.title, *unit_words)),
        element("p", *code_words(panel.text)),
        element("ul", *lines) if lines else None,
        element("p", "Causes that it shows (", element("code", _EXPLAIN), "):") if causes else None,
        element("dl", *causes) if causes else None,
        class_="meaning",
    )


def _no_data(panel: Panel) -> Element:
    asked = [name for t in panel.targets if not t.is_bound for name in metrics_in(t.expr)]
    names: list[Child] = []
    for name in dict.fromkeys(asked):
        names += [", " if names else "", element("code", PREFIX + name)]
    return element("p", element("b", "No data"), " of ", *names, class_="empty")
