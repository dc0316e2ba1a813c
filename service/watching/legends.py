"""Names and newest values below a chart; a script puts the values at the cursor there."""

from collections.abc import Iterable, Sequence

from service.watching.curves import Curve, runs
from service.watching.markup import Element, element
from service.watching.units import Measure

_MANY, _MANY_CELLS = 12, 24
"""Entries of a list, and of a table, that are shown at once; more are behind a click."""
_SHORT, _MIDDLE = 11, 26
"""Letters of an entry, for three or two of them side by side."""
NOTHING = "-"
"""Where there is no value; the script knows it too."""


def legend(shown: Sequence[Curve], measure: Measure) -> Element | None:
    """A list, or a table of trials and variants where there are several of both."""
    if not shown:
        return None
    trials = list(dict.fromkeys(curve.trial for curve in shown))
    variants = list(dict.fromkeys(curve.variant for curve in shown))
    if len(trials) == 1 or len(variants) == 1:
        return _folded(_list(shown, measure), len(shown), _MANY)
    made = _folded(_table(shown, trials, variants, measure), len(shown), _MANY_CELLS)
    if made.tag != "details":
        return made
    return element("div", _keys(shown, trials, variants), made)


def tokens(words: Iterable[str]) -> str:
    """Words for the script, equal neighbours as `word*count`, separated by `|`."""
    listed = list(words)
    parts = (
        listed[first] if end - first == 1 else f"{listed[first]}*{end - first}"
        for first, end in runs(listed)
    )
    return "|".join(parts)


def _list(shown: Sequence[Curve], measure: Measure) -> Element:
    letters = max(
        len(curve.name) + len(measure.text(0.0 if curve.last is None else curve.last))
        for curve in shown
    )
    size = "short" if letters <= _SHORT else "middle" if letters <= _MIDDLE else "long"
    return element("ul", *(_entry(c, measure) for c in shown), class_=f"legend {size}")


def _folded(made: Element, count: int, most: int) -> Element:
    if count <= most:
        return made
    return element("details", element("summary", f"All {count} values"), made, class_="more")


def _keys(shown: Sequence[Curve], trials: Sequence[str], variants: Sequence[str]) -> Element:
    """What the colours stand for, without values."""
    of_variants = [(_key(c for c in shown if c.variant == name), name) for name in variants]
    of_trials = [(_key(c for c in shown if c.trial == name), name) for name in trials]
    known = of_variants if all(key for key, _ in of_variants) else of_trials
    entries = (element("li", *key, element("span", name, class_="name")) for key, name in known)
    return element("ul", *entries, class_="legend short")


def _entry(curve: Curve, measure: Measure) -> Element:
    return element(
        "li",
        *_key([curve]),
        element("span", curve.name, class_="name", title=curve.name),
        " ",
        _value("b", curve, measure),
        *([" ", element("small", measure.unit)] if measure.unit else []),
    )


def _table(
    shown: Sequence[Curve],
    trials: Sequence[str],
    variants: Sequence[str],
    measure: Measure,
) -> Element:
    cells = {(curve.trial, curve.variant): curve for curve in shown}
    columns = [
        element("th", *_key(c for c in shown if c.variant == name), name or "value", scope="col")
        for name in variants
    ]
    rows = []
    for trial in trials:
        key = _key(curve for curve in shown if curve.trial == trial)
        name = element("th", *key, trial, scope="row", title=trial)
        found = (cells.get((trial, variant)) for variant in variants)
        values = (c and _value("span", c, measure) for c in found)
        rows.append(element("tr", name, *(element("td", value) for value in values)))
    head = element("tr", element("th", measure.unit, scope="col"), *columns)
    table = element("table", element("thead", head), element("tbody", *rows), class_="legend")
    return element("div", table, class_="scroll")


def _key(shown: Iterable[Curve]) -> list[Element]:
    """A piece of the line, as far as these curves have it in common."""
    paints = [set(curve.paint.split()) for curve in shown]
    common = " ".join(sorted(set.intersection(*paints)))
    return [element("i", class_=f"key {common}")] if common else []


def _value(tag: str, curve: Curve, measure: Measure) -> Element:
    words = (NOTHING if value is None else measure.number(value) for value in curve.values)
    newest = NOTHING if curve.last is None else measure.number(curve.last)
    return element(tag, newest, class_="value", data_v=tokens(words))
