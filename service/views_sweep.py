"""What the command line shows of a sweep: a table that lives while it runs, and the final one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.orchestration.progress import SWEEP, OnProgress, Update
from service.telemetry import logs
from service.views import plain, progress

if TYPE_CHECKING:
    from service.orchestration.rows import Row, Sweep

_COLUMNS = ("trial", "sample", "step", "CE/lnC", "top-1", "coverage", "SDM", "verdict", "cause")
_SAID = ("[verdict]", "[control]")
"""Messages that the table does not show by itself begin so, or are not of the documents' form."""
_SHOWN_DECISIONS = 12
_WIDEST = 36
"""A setting that needs more columns of the screen is broken."""


@contextmanager
def sweep_progress() -> Iterator[OnProgress]:
    """Shows a sweep while it works: a table with ETA on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with progress() as show:
            yield show
        return
    table = LiveTable()
    with Live(console=console, get_renderable=table.render, refresh_per_second=4) as live:

        def show_update(update: Update) -> None:
            table.take(update)
            for line in said(update):
                live.console.print(line, markup=False, soft_wrap=True)

        yield show_update


def said(update: Update) -> list[str]:
    """The messages of an update that belong above the table."""
    prefix = "" if update.trial == SWEEP else f"{update.trial}  "
    lines = update.messages
    if update.trial != SWEEP:
        lines = tuple(m for m in lines if m.startswith(_SAID) or "lost" in m)
    return [logs.redacted(prefix + line) for line in lines]


class LiveTable:
    """An `OnProgress` that keeps each trial's newest state, one row a trial.

    clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._trials: dict[str, Update] = {}
        self._number = 0
        self._began: tuple[float, int] | None = None

    def take(self, update: Update) -> None:
        """Notes an update; one without numbers leaves those before it."""
        if update.trial == SWEEP:
            self._number = update.total or self._number
            return
        if not (update.sample or update.trial in self._trials):
            return
        last = self._trials.get(update.trial, update)
        self._trials[update.trial] = Update(
            trial=update.trial,
            step=update.step or last.step,
            total=update.total or last.total,
            line=update.line or last.line,
            sample=update.sample or last.sample,
            ended=update.ended,
        )
        if self._began is None and self._steps:
            self._began = (self._clock(), self._steps)

    def render(self) -> Group:
        """The table as it is now, and below it where the sweep stands."""
        table = _table([_cells(update) for update in self._trials.values()])
        return Group(table, Text(self.status()))

    def status(self) -> str:
        """Trials that have ended, of how many; and the ETA if no more are stopped."""
        ended = sum(update.ended for update in self._trials.values())
        eta = self.eta_s()
        left = "" if eta is None else f"  ETA {logs.duration(eta)} if all run to their end"
        return f"{ended} of {self._number} trials have ended{left}"

    def eta_s(self) -> float | None:
        """Seconds left at the pace since the first step; None before there is one."""
        if self._began is None:
            return None
        began, first = self._began
        made, passed = self._steps - first, self._clock() - began
        if made <= 0 or passed <= 0:
            return None
        going = [u for u in self._trials.values() if not u.ended]
        totals = [u.total for u in self._trials.values() if u.total]
        usual = sum(totals) / len(totals)
        left = sum((u.total or usual) - u.step for u in going)
        left += usual * max(self._number - len(self._trials), 0)
        return left * passed / made

    @property
    def _steps(self) -> int:
        return sum(update.step for update in self._trials.values())


def _cells(update: Update) -> list[str]:
    line = update.line
    return [
        update.trial,
        _sample(update.sample),
        f"{update.step}/{update.total}" if update.total else "",
        _number(line.get("ce_fraction"), ".3f"),
        _number(line.get("top1"), ".1%"),
        _number(line.get("pair_coverage"), ".2f"),
        _number(line.get("sdm_weight"), ".2g"),
        line.get("verdict", ""),
        line.get("cause", ""),
    ]


def final(found: "Sweep") -> str:
    """The final table, what to do about the causes, the decisions by trial, the steps saved."""
    table = _table([_final_cells(row) for row in found.rows], f"Sweep {found.experiment_id}")
    parts = [plain(table), *_remedies(found.rows), *_decisions(found), saved(found)]
    return "".join(f"{part.rstrip()}\n" for part in parts)


def _table(rows: list[list[str]], title: str | None = None) -> Table:
    """Rows under `_COLUMNS`; the words of the cause give way before a setting is broken."""
    table = Table(title=title, title_justify="left")
    settings = [line for row in rows for line in row[1].splitlines()]
    is_wide = max(map(len, settings), default=0) > _WIDEST
    for name in _COLUMNS:
        may_break = name == "cause" or (name == "sample" and is_wide)
        table.add_column(name, overflow="fold", no_wrap=not may_break)
    for row in rows:
        table.add_row(*row)
    return table


def _final_cells(row: "Row") -> list[str]:
    lines = row.summary
    return [
        row.trial,
        _sample(row.sample),
        f"{row.steps}/{row.total}" if row.total else str(row.steps),
        _number(lines.get("ce_fraction"), ".3f"),
        _number(lines.get("top1"), ".1%"),
        _number(lines.get("pair_coverage"), ".2f"),
        _number(lines.get("sdm_weight"), ".2g"),
        row.verdict,
        row.told,
    ]


def _remedies(rows: "tuple[Row, ...]") -> list[str]:
    """What to do, once for each cause."""
    by_cause: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.remedy:
            by_cause.setdefault((row.cause, row.remedy), []).append(row.trial)
    return [
        f"{cause}: {remedy} ({', '.join(trials)})" for (cause, remedy), trials in by_cause.items()
    ]


def _decisions(found: "Sweep") -> list[str]:
    lines = ["decisions (all of them, with their findings, are in decisions.jsonl):"]
    for trial, decisions in found.decisions.items():
        told = [_decision(d) for d in decisions]
        more = len(told) - _SHOWN_DECISIONS
        if more > 0:
            told = [*told[: _SHOWN_DECISIONS - 1], f"... {more} more", told[-1]]
        lines.append(f"  {trial}  {'; '.join(told)}")
    return lines if len(lines) > 1 else []


def _decision(values: dict[str, Any]) -> str:
    acts = f" [{', '.join(values['actions'])}]" if values["actions"] else ""
    cause = f" {values['cause']}" if values["cause"] else ""
    return f"step {values['step']} {values['verdict']}{cause}{acts}"


def saved(found: "Sweep") -> str:
    """How many steps were not made because trials were stopped."""
    planned = found.steps + found.steps_saved
    share = found.steps_saved / planned if planned else 0.0
    return (
        f"{found.steps} steps made; steps saved by stopping early: {found.steps_saved} of "
        f"{planned} ({share:.0%})"
    )


def _sample(sample: dict[str, Any]) -> str:
    """One setting a line, so that none is broken."""
    return "\n".join(f"{key}={_short(value)}" for key, value in sample.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
