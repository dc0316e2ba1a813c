"""What a panel is, as values: queries, unit, words. Grafana's JSON is made from them.

Queries are PromQL with Grafana's variables `$run`, `$trial`, `$__range` and `$__rate_interval`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from service.causes import Cause
from service.decisions import Verdict
from service.telemetry.lines import BY_NAME, LABELS, PREFIX

RUN = 'run="$run",trial=~"$trial"'
"""Matchers of the run view: one run, some of its trials."""
FLEET = 'run=~"$run"'
"""Matchers of the fleet view: some runs, all of their trials."""

Kind = Literal["lines", "areas", "states", "table", "stat"]


@dataclass(frozen=True, slots=True)
class Word:
    """How a number is shown: as text, in a colour that Grafana knows by name."""

    value: int
    text: str
    color: str


@dataclass(frozen=True, slots=True)
class Target:
    """One query of a panel.

    name: its legend, in which `{{label}}` stands for a label's value; in a table the title of the
    column, or empty for a query whose labels alone are shown. is_bound: others are held against it,
    so it is drawn dashed. unit, decimals, words: those of a table's column.
    """

    expr: str
    name: str = ""
    is_bound: bool = False
    color: str = ""
    unit: str = ""
    decimals: int | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    unit: Grafana's id, or text that is put behind the number. text: what it means, for people.
    causes: those that its lines show. width, height: grid cells, of which 24 make a row. highest,
    lowest: ends of the axis, None where the data sets them. is_symlog: tenfold steps, with zero.
    """

    title: str
    kind: Kind
    unit: str
    text: str
    targets: tuple[Target, ...]
    causes: tuple[Cause, ...] = ()
    width: int = 8
    height: int = 8
    lowest: float | None = None
    highest: float | None = None
    decimals: int | None = None
    is_symlog: bool = False
    words: tuple[Word, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the lines that it asks for, without `PREFIX`, each once, in order."""
        found = (name for target in self.targets for name in metrics_in(target.expr))
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A dashboard. marks: queries whose values are the Unix times of decisions, in ms."""

    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    marks: tuple[Target, ...]

    @property
    def panels(self) -> Iterator[Panel]:
        return (panel for row in self.rows for panel in row.panels)


def metrics_in(expr: str) -> list[str]:
    """Names of our metrics in a query, without `PREFIX`; series that rules record have a colon."""
    return re.findall(rf"(?<![\w:]){PREFIX}(\w+)(?![\w:])", expr)


def series(name: str, where: str, *matchers: str) -> str:
    """A selector, such as `reid_train_gate_threshold{run="$run",gate="go"}`.

    Raises:
        KeyError: the table of metrics has no such line.
        ValueError: the line has no label of that name.
    """
    line = BY_NAME[name]
    known = (*LABELS, *line.labels)
    for matcher in matchers:
        if re.split("[=!]", matcher)[0] not in known:
            raise ValueError(f"{name} has the labels {known}; found the matcher {matcher}")
    return f"{PREFIX}{name}{{{','.join((where, *matchers))}}}"


def curve(name: str, where: str, legend: str = "{{trial}}") -> Target:
    """A line as it is, whatever address serves it."""
    return Target(f"max without (instance) ({series(name, where)})", legend)


def bound(gate: str, where: str, color: str) -> Target:
    """A limit of the policy, by the setting's name."""
    matcher = f'gate="{gate}"'
    return Target(f"max by (gate) ({series('gate_threshold', where, matcher)})", gate, True, color)


def latest(name: str, where: str, *, over: str = "run, trial", take: str = "max") -> str:
    """The newest value in the time shown, also of trials that are gone by its end.

    A resumed trial may be served at another address than before: what counts is the one with its
    newest step. A sum takes all of them.
    """
    seen = f"last_over_time({series(name, where)}[$__range])"
    if take == "sum":
        return f"sum by ({over}) ({seen})"
    steps = f"last_over_time({series('heartbeat_timestamp_seconds', where)}[$__range])"
    newest = f"topk by (run, trial) (1, max by (run, trial, instance) ({steps}))"
    chosen = f"{seen} and on (run, trial, instance) {newest}"
    # A trial without a step has been at no other address.
    return f"{take} by ({over}) ({chosen} or {seen} unless on (run, trial) {steps})"


VERDICT_WORDS = tuple(
    Word(number, verdict.value, color)
    for number, (verdict, color) in enumerate(
        {
            Verdict.WAIT: "gray",
            Verdict.GO: "green",
            Verdict.RAISE: "dark-green",
            Verdict.HOLD: "yellow",
            Verdict.ROLLBACK: "orange",
            Verdict.PAUSE: "purple",
            Verdict.NO_GO: "red",
        }.items()
    )
)
"""Verdicts as numbers, since a state timeline shows numbers."""


def verdict_in_force(where: str) -> str:
    """The verdict of each trial as a number of `VERDICT_WORDS`."""
    return " or ".join(
        f"max by (run, trial) ({_verdict(where, word.text)} * {word.value})"
        for word in VERDICT_WORDS
    )


def verdict_last_seen(where: str) -> str:
    """When each trial's last verdict was last seen, in ms, with verdict and cause as labels.

    An ended trial stays for `telemetry.linger_s`, or for one scrape, so steps of 5 s see the last
    verdict of each.
    """
    seen = f"max_over_time(timestamp({series('verdict_info', where)})[$__range:5s])"
    return f"topk by (run, trial) (1, max by (run, trial, verdict, cause) ({seen})) * 1000"


def decision_marks(where: str, *matchers: str) -> Target:
    """Decisions as annotations."""
    selector = series("gate_decision_timestamp_seconds", where, *matchers)
    return Target(f"max by (run, trial, decision) ({selector}) * 1000", "Decisions")


def description(panel: Panel, alerts: tuple[str, ...]) -> str:
    """The panel's text, the lines behind it, and who watches them; Markdown."""
    parts = [panel.text]
    if panel.metrics:
        parts.append("\n".join(f"- `{PREFIX}{n}`: {BY_NAME[n].help}" for n in panel.metrics))
    if panel.causes:
        named = ", ".join(f"`{cause.value}`" for cause in panel.causes)
        parts.append(f"Causes (`crossreid explain CAUSE`): {named}")
    if alerts:
        parts.append(f"Alerts: {', '.join(alerts)}")
    return "\n\n".join(parts)


def _verdict(where: str, verdict: str) -> str:
    matcher = f'verdict="{verdict}"'
    return series("verdict_info", where, matcher)
