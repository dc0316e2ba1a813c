"""What a page asks of Prometheus: which run, over which time, and every query of a view."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.errors import WatchError
from service.telemetry.panels.panel import PREFIX, RUN, Panel, Target, View, series
from service.watching.filling import Filling, quoted
from service.watching.prometheus import Prometheus, Series
from service.watching.span import Span, find_span

_RUNNING = f"{PREFIX}running"
_AT_ONCE = 8
_MOMENTS, _FEWEST_MOMENTS = 300, 60
_MOMENTS_OF_ALL = 1600
"""Moments times trials, so that a sweep's page stays small."""


@dataclass(frozen=True, slots=True)
class Question:
    """A query with variables, at the end of the span or at each of its moments."""

    expr: str
    is_instant: bool


Answers = Mapping[Question, tuple[Series, ...]]

_PRESENT = Question(f"count by (trial) (count_over_time({series('running', RUN)}[$__gap]))", False)
"""Which trials have samples of their own at a moment, not only older ones within the lookback."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A run, those of its trials that are shown, and one of them by name or None for all."""

    run: str
    trials: tuple[str, ...]
    trial: str | None


def question(panel: Panel, target: Target) -> Question:
    return Question(target.expr, panel.kind in ("table", "stat"))


def mark_question(mark: Target) -> Question:
    return Question(mark.expr, False)


def questions(view: View) -> tuple[Question, ...]:
    """All of a view's, each once."""
    asked = [question(panel, target) for panel in view.panels for target in panel.targets]
    return tuple(dict.fromkeys([*asked, *map(mark_question, view.marks)]))


def choose(
    server: Prometheus, run: str | None, trial: str | None, *, hours: float, now: float
) -> Choice:
    """The newest run in the last `hours`, or the named one, and its trials.

    Raises:
        WatchError: there is no run in that time, or no run or trial of that name; names the known.
    """
    lately = f"[{round(hours * 3600)}s]"
    found = server.at(f"count by (run, trial) (last_over_time({_RUNNING}{lately}))", now)
    named = [(s.labels.get("run", ""), s.labels.get("trial", "")) for s in found]
    known = sorted(named, key=lambda names: (names[0], natural(names[1])))
    if run is None:
        run = _newest(server, [of for of, _ in known], lately, now)
    trials = tuple(name for of, name in known if of == run)
    if run is None or not trials:
        raise _no_run(server, run, sorted({of for of, _ in known}), hours)
    if trial is not None and trial not in trials:
        raise WatchError(
            f"run {run} has no trial {trial!r} in the last {hours:g} h; it has "
            f"{_listed(trials)}; leave --trial out to see all"
        )
    return Choice(run, trials if trial is None else (trial,), trial)


def natural(name: str) -> list[tuple[float, str]]:
    """A key that sorts trial_2 before trial_10, and lr_0.01 behind lr_0.001."""
    parts = re.findall(r"[0-9]+(?:[.][0-9]+)?|[^0-9]+", name)
    return [(float(p), "") if p[0] in "0123456789" else (-1.0, p) for p in parts]


def span_of(server: Prometheus, choice: Choice, *, hours: float, now: float) -> Span:
    """From the first sample of what is shown within the last `hours` to its last."""
    most = moments(len(choice.trials))
    shown = f'{_RUNNING}{{run="{quoted(choice.run)}"'
    if choice.trial is not None:
        shown += f',trial="{quoted(choice.trial)}"'
    span = find_span(server, f"{shown}}}", since=now - hours * 3600, now=now, most=most)
    if span is None:
        raise WatchError(f"the samples of run {choice.run} have gone from {server.url}; try again")
    return span


def moments(trials: int) -> int:
    """How many steps of time a page of so many trials has at most."""
    return min(_MOMENTS, max(_MOMENTS_OF_ALL // trials, _FEWEST_MOMENTS))


def ask(
    server: Prometheus, asked: Iterable[Question], choice: Choice, span: Span
) -> dict[Question, tuple[Series, ...]]:
    """Every answer, several asked at once.

    Where a trial was not heard of, the points of its series are left out: Prometheus repeats the
    last sample for five minutes, which would be drawn as a line.
    """
    filling = Filling({"run": choice.run, "trial": choice.trial}, _lengths(span))

    def answer(one: Question) -> tuple[Series, ...]:
        expr = filling.fill(one.expr)
        if one.is_instant:
            return server.at(expr, span.end)
        return server.between(expr, span.start, span.end, span.step)

    wanted = tuple(dict.fromkeys([_PRESENT, *asked]))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(zip(wanted, pool.map(answer, wanted), strict=True))
    present = {s.labels["trial"]: {at for at, _ in s.points} for s in answers.pop(_PRESENT)}
    return {
        one: found if one.is_instant else tuple(_heard(series, present) for series in found)
        for one, found in answers.items()
    }


def _heard(found: Series, present: Mapping[str, set[float]]) -> Series:
    """The series where its trial has samples; one of no trial as it is."""
    if "trial" not in found.labels:
        return found
    moments = present.get(found.labels["trial"], set())
    return Series(found.labels, tuple(pair for pair in found.points if pair[0] in moments))


def _lengths(span: Span) -> dict[str, float]:
    return {
        # A second more, since the first sample lies on the border, which newer versions leave out.
        "__range": span.length + 1.0,
        "__rate_interval": max(span.step + span.scrape, 4 * span.scrape),
        # Two lost scrapes are no gap yet.
        "__gap": max(span.step, 3 * span.scrape) + 0.5,
    }


def _newest(server: Prometheus, runs: list[str], lately: str, now: float) -> str | None:
    """Of the runs that run now the one that began last, so that a page stays with it; else the one
    whose last step is the newest."""
    steps = f"max by (run) (last_over_time({PREFIX}heartbeat_timestamp_seconds{lately}))"
    begun = f"min by (run) (min_over_time(timestamp({_RUNNING}){lately[:-1]}:1m]))"
    heard, began = _by_run(server.at(steps, now)), _by_run(server.at(begun, now))
    running = _by_run(server.at(f"count by (run) ({_RUNNING} == 1)", now))

    def rank(run: str) -> tuple[bool, float]:
        # One that is too young for the minutes looked at began last.
        return (True, began.get(run, now)) if run in running else (False, heard.get(run, 0.0))

    return max(runs, key=rank, default=None)


def _by_run(found: tuple[Series, ...]) -> dict[str, float]:
    return {one.labels.get("run", ""): one.points[0][1] for one in found}


def _no_run(server: Prometheus, run: str | None, lately: list[str], hours: float) -> WatchError:
    wanted = "no run" if run is None else f"no run {run!r}"
    ever = server.label_values("run", _RUNNING)
    if not ever:
        return WatchError(
            f"{server.url} knows {wanted} and no other: it has never scraped an exporter of "
            "crossreid. A run says in STORAGE/exporters where its exporter is, which crossreid "
            "watch reads; others are named with --target"
        )
    known = f"within that time it knows {_listed(lately) or 'none'}, ever {_listed(ever)}"
    return WatchError(
        f"{server.url} knows {wanted} in the last {hours:g} h; {known}; look further back with "
        "--hours, or name another with --run"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
