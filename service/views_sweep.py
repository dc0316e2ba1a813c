"""What the command line shows of a sweep: a table that lives while it runs, and the final one."""

import itertools
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.orchestration.progress import SWEEP, OnProgress, Update
from service.telemetry import logs
from service.views import plain, progress

if TYPE_CHECKING:
    from service.orchestration.rows import Row, Sweep

_NUMBERS = ("step", "CE/lnC", "top-1", "coverage", "SDM")
_COLUMNS = ("trial", "sample", *_NUMBERS, "verdict", "cause")
_SAID = ("[verdict]", "[control]", "[workers]", "[checkpoint]")
"""Messages that the table does not show by itself begin so, or are not of the documents' form."""
_SHOWN_DECISIONS = 12
_WIDEST = 36
"""A setting that needs more columns of the screen is broken."""
_LEAST_CAUSE = 12
"""Columns that a cause needs to stand beside the numbers; with fewer it stands below them."""
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class _Line:
    """A trial's cells as text. numbers: in the order of `_NUMBERS`. sample: a setting each."""

    trial: str
    sample: tuple[str, ...]
    numbers: tuple[str, ...]
    verdict: str
    cause: str

    @property
    def fixed(self) -> tuple[str, ...]:
        """What is never broken."""
        return (self.trial, *self.numbers, self.verdict)

    @property
    def note(self) -> str:
        """What may be broken, in one line."""
        return "; ".join(part for part in (", ".join(self.sample), self.cause) if part)


@contextmanager
def sweep_progress() -> Iterator[OnProgress]:
    """Shows a sweep while it works: a table with ETA on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        with progress() as show:
            yield show
        return
    table = LiveTable()

    def screen() -> Text:
        # Live keeps a line for itself.
        text = "\n".join(table.lines(console.width, console.height - 1))
        return Text(text, no_wrap=True, overflow="ignore")

    with Live(console=console, get_renderable=screen, refresh_per_second=4) as live:

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

    def lines(self, width: int, height: int) -> list[str]:
        """The screen as it is now: where the sweep stands, then the trials, running ones first.

        Where `height` lines do not hold all, those that have ended become one line, and so do the
        last of the running ones.
        """
        running = [_live_line(update) for update in self._trials.values() if not update.ended]
        ended = [_live_line(update) for update in self._trials.values() if update.ended]
        head, blocks = _blocks([*running, *ended], width)
        status = [self.status(), *head]
        if len(status) + sum(map(len, blocks)) <= height:
            return [*status, *itertools.chain.from_iterable(blocks)]
        shown = _fitting(blocks[: len(running)], height - len(status) - 1)
        more = len(running) - shown
        told = [f"{more} more running"] * (more > 0) + [f"{len(ended)} ended"] * bool(ended)
        return [*status, *itertools.chain.from_iterable(blocks[:shown]), ", ".join(told)]

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


def _live_line(update: Update) -> _Line:
    line = update.line
    steps = f"{update.step}/{update.total}" if update.total else ""
    return _line(update.trial, update.sample, steps, line, line.get("verdict", ""))


def _final_line(row: "Row") -> _Line:
    steps = f"{row.steps}/{row.total}" if row.total else str(row.steps)
    return _line(row.trial, row.sample, steps, {**row.summary, "cause": row.told}, row.verdict)


def _line(
    trial: str, sample: dict[str, Any], steps: str, line: dict[str, Any], verdict: str
) -> _Line:
    numbers = (
        steps,
        _number(line.get("ce_fraction"), ".3f"),
        _number(line.get("top1"), ".1%"),
        _number(line.get("pair_coverage"), ".2f"),
        _number(line.get("sdm_weight"), ".2g"),
    )
    settings = tuple(f"{key}={_short(value)}" for key, value in sample.items())
    return _Line(trial, settings, numbers, verdict, line.get("cause", ""))


def final(found: "Sweep", width: int | None = None) -> str:
    """The final table, what to do about the causes, the decisions by trial, the steps saved.

    width: columns of a line; None takes the terminal's, or 120 where there is none.
    """
    columns = width or (shutil.get_terminal_size().columns if sys.stdout.isatty() else 120)
    lines, title = [_final_line(row) for row in found.rows], f"Sweep {found.experiment_id}"
    if columns < _boxed_width(lines):
        head, blocks = _blocks(lines, columns)
        table = "\n".join([title, *head, *itertools.chain.from_iterable(blocks)])
    else:
        table = plain(_boxed(lines, title), columns)
    parts = [table, *_remedies(found.rows), *_decisions(found), saved(found), *_again(found)]
    return "".join(f"{part.rstrip()}\n" for part in parts)


def _again(found: "Sweep") -> list[str]:
    """How to go on with a sweep that ended by itself before all its trials had."""
    if not found.is_open or found.verdict == "STOPPED":
        return []
    return [f"some trials have not ended: crossreid tune --resume {found.path}"]


def _boxed(lines: list[_Line], title: str) -> Table:
    """Lines under `_COLUMNS`; the words of the cause give way before a setting is broken."""
    table = Table(title=title, title_justify="left")
    is_wide = _widest_setting(lines) > _WIDEST
    for name in _COLUMNS:
        may_break = name == "cause" or (name == "sample" and is_wide)
        table.add_column(name, overflow="fold", no_wrap=not may_break)
    for line in lines:
        # As Text: what stands in a setting or a cause is not markup.
        cells = (line.trial, "\n".join(line.sample), *line.numbers, line.verdict, line.cause)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _boxed_width(lines: list[_Line]) -> int:
    """Columns that the boxed table needs so that it breaks nothing but long settings and, at
    spaces, causes."""
    sample = max(len("sample"), min(_widest_setting(lines), _WIDEST))
    words = [len(word) for line in lines for word in line.cause.split()]
    cause = max(_LEAST_CAUSE, min(max(words, default=0), _WIDEST))
    return sum(_fixed_widths(lines)) + sample + cause + 3 * len(_COLUMNS) + 1


def _widest_setting(lines: list[_Line]) -> int:
    return max((len(setting) for line in lines for setting in line.sample), default=0)


def _fixed_widths(lines: list[_Line]) -> list[int]:
    cells = [("trial", *_NUMBERS, "verdict"), *(line.fixed for line in lines)]
    return [max(map(len, column)) for column in zip(*cells, strict=True)]


def _blocks(lines: list[_Line], width: int) -> tuple[list[str], list[list[str]]]:
    """The heading, and for each trial its numbers with its sample and cause: beside them where
    every trial's fit into `width` columns, else indented below them."""
    wide = _fixed_widths(lines)
    is_narrow = sum(wide) + 2 * (len(wide) - 1) > width
    below = sum(wide) + 2 * len(wide) + max((len(line.note) for line in lines), default=0) > width
    if is_narrow:
        return [], [[*_named(line, width), *_indented(line.note, width)] for line in lines]
    head = _aligned(("trial", *_NUMBERS, "verdict"), wide)
    if below:
        return [head], [
            [_aligned(line.fixed, wide), *_indented(line.note, width)] for line in lines
        ]
    return [f"{head}  sample; cause"], [
        [f"{_aligned(line.fixed, wide):<{sum(wide) + 2 * len(wide)}}{line.note}".rstrip()]
        for line in lines
    ]


def _aligned(cells: tuple[str, ...], wide: list[int]) -> str:
    """Numbers stand to the right."""
    last = len(cells) - 1
    aligned = [
        cell.ljust(w) if i in (0, last) else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(cells, wide, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def _named(line: _Line, width: int) -> list[str]:
    """The trial, its verdict and its numbers by name, over as many lines as it takes."""
    # A name stays with its number: `_indented` breaks at plain spaces alone.
    numbers = [
        f"{name}\N{NO-BREAK SPACE}{n}" for name, n in zip(_NUMBERS, line.numbers, strict=True) if n
    ]
    told = _indented("  ".join(filter(None, (line.trial, line.verdict, *numbers))), width, "")
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in told]


def _indented(text: str, width: int, lead: str = _INDENT) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 2 * len(_INDENT)),
        initial_indent=lead,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _fitting(blocks: list[list[str]], height: int) -> int:
    """How many of the first blocks `height` lines hold."""
    ends = itertools.accumulate(map(len, blocks))
    return sum(end <= height for end in ends)


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


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
