"""What the command line shows: progress on standard error, results as text for standard output."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from service.orchestration.progress import MAIN_TRIAL, OnProgress, PlainProgress, Update
from service.telemetry import logs

if TYPE_CHECKING:
    from service.data.manifest import Manifest

_AVERAGES = ("MM-1", "MM-2", "MM-3", "MM-4", "mean")


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Shows a run while it works: a bar with ETA on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield PlainProgress(_write_error)
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[line]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bars:
        yield _Bars(bars)


class _Bars:
    """An `OnProgress` with one bar a trial."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, update: Update) -> None:
        prefix = "" if update.trial == MAIN_TRIAL else f"{update.trial}  "
        for message in update.messages:
            self._bars.console.print(logs.redacted(prefix + message), markup=False, soft_wrap=True)
        if not update.step:
            return
        if update.trial not in self._tasks:
            self._tasks[update.trial] = self._bars.add_task(
                "training" if update.trial == MAIN_TRIAL else update.trial,
                total=update.total,
                line="",
            )
        self._bars.update(
            self._tasks[update.trial],
            completed=update.step,
            line=logs.numbers_line(update.line),
        )


def evaluation(summary: Mapping[str, Any]) -> str:
    """The evaluation in `summary.json` as a table: query kinds, then averages and chance."""
    lines = ("R1", "R5", "R10", "mAP", "mINP")
    shown = [name for name in lines if isinstance(summary.get(name), Mapping)]
    if "mAP" not in shown:
        return ""
    table = Table(title="Retrieval in the RGB gallery, in percent", title_justify="left")
    table.add_column("query")
    for name in shown:
        table.add_column(name, justify="right")
    kinds = [key for key in summary["mAP"] if key not in _AVERAGES]
    averages = [key for key in _AVERAGES if key in summary["mAP"]]
    for key in kinds + averages:
        if averages and key == averages[0]:
            table.add_section()
        table.add_row(key, *(_percent(summary[name].get(key)) for name in shown))
    table.add_section()
    for group, row in _by_group(summary.get("after_neck", {})).items():
        table.add_row(f"{group} after the neck", *(_percent(row.get(name)) for name in shown))
    text = plain(table)
    chance = summary.get("chance_mAP")
    return text if chance is None else f"{text}mAP by chance {chance:.2%}\n"


def manifest(found: "Manifest", pairable: int, unpairable: list[str]) -> str:
    """What is in a records folder, for people."""
    table = Table(title="Rows by split and modality", title_justify="left")
    names = list(next(iter(found.counts.values())))
    for name in ("split", *names):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, counts in found.counts.items():
        table.add_row(split, *(str(counts.get(name, 0)) for name in names))
    height, width = found.image_size
    lines = [
        f"{found.num_classes} people to train on, {pairable} of them pairable; images "
        f"{height}x{width}; fingerprint {found.fingerprint}",
        f"queries: {sum(found.query_counts.values())} in {len(found.query_counts)} kinds",
    ]
    if unpairable:
        shown = ", ".join(unpairable[:20]) + (" ..." if len(unpairable) > 20 else "")
        lines.append(f"not pairable (no VIS, or nothing else), by directory: {shown}")
    dropped = [f"{number} {reason}" for reason, number in found.dropped_queries.items() if number]
    if dropped:
        lines.append(f"queries left out: {', '.join(dropped)}")
    lines.append(f"quarantined: {len(found.quarantined)}")
    lines += [f"  {bad.split} {bad.source}: {bad.reason}" for bad in found.quarantined]
    lines += [f"{name}: {number}" for name, number in found.notes.items() if number]
    return plain(table) + "\n".join(lines) + "\n"


def plain(table: Table, width: int | None = None) -> str:
    """A rich table as text.

    width: columns of a line; None takes the terminal's, or 120 where there is none.
    """
    console = Console(highlight=False, width=width or (None if sys.stdout.isatty() else 120))
    with console.capture() as text:
        console.print(table)
    return text.get()


def _by_group(by_metric: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """{metric: {group: value}} as {group: {metric: value}}."""
    groups: dict[str, dict[str, float]] = {}
    for metric, values in by_metric.items():
        for group, value in values.items():
            groups.setdefault(group, {})[metric] = value
    return groups


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _write_error(line: str) -> None:
    sys.stderr.write(logs.redacted(line) + "\n")
    sys.stderr.flush()
