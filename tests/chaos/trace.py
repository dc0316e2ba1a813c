"""What an uninterrupted run told, and where another run of the same config tells something else.

A run that was killed any number of times writes one journal, attempt after attempt. Every attempt
goes on from a checkpoint, so it must tell, number for number, what the uninterrupted run told after
that step, as far as it came: also the lines that a later attempt superseded.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from service.telemetry.sinks.story import surviving
from service.training.journal import Event, read_journal
from tests.states import CLOCKS, same, without

COMPARED = ("steps", "health", "decision", "directive", "plan", "audit", "unpaired", "epoch")
"""Events that are the same in any run of a config, in this order."""
HEAD = ("attempt", "time", "seconds", "data_wait_s")
"""What a line says about this process's time, and not about training."""
FEW = 5
"""Differences told of one attempt; those after the first are often its consequences."""


def essence(event: Event) -> Event:
    """A line without what the clock decides."""
    kept = without(event, HEAD)
    if event["event"] == "health":
        kept["health"] = without(event["health"], CLOCKS)
    return kept


def told(events: Iterable[Event], after: int) -> list[Event]:
    """The compared lines past step `after`, in order. An attempt that begins there tells of its
    epoch once more, which is left out with it."""
    lines = [e for e in events if e["event"] in COMPARED and e["step"] > after]
    return [essence(line) for line in lines]


def differences(
    trace: list[Event], journal: list[Event], total: int, *, evaluated: bool = False
) -> Iterator[str]:
    """What is wrong with a journal, in words; nothing when it tells what the trace tells.

    trace: the journal of an uninterrupted run. total: the steps that the run makes. evaluated: by a
    command of its own, since the last attempt was lost between the verdict and its end.
    """
    # Who was lost is told by whoever misses it, between the attempts.
    journal = [event for event in journal if event["event"] != "lost"]
    yield from _order(journal)
    for attempt, lines in _attempts(journal):
        yield from _attempt(trace, attempt, lines)
    yield from _starts(journal)
    yield from _missing("steps", list(range(1, total + 1)), journal)
    for kind in ("health", "decision"):
        yield from _missing(kind, [e["step"] for e in trace if e["event"] == kind], journal)
    ends = [e for e in surviving(journal) if e["event"] == "end"]
    if [e["step"] for e in ends] not in ([[total], []] if evaluated else [[total]]):
        yield f"folded, the journal ends at {[e['step'] for e in ends]} instead of [{total}]"


def _missing(kind: str, due: list[int], journal: list[Event]) -> Iterator[str]:
    """due: the steps that have a line of this kind."""
    found = [e["step"] for e in surviving(journal) if e["event"] == kind]
    if found != due:
        missing = sorted(set(due) - set(found))
        twice = sorted({step for step in found if found.count(step) > 1})
        yield f"folded, the journal lacks {kind} {missing} and has {kind} {twice} more than once"


def _order(journal: list[Event]) -> Iterator[str]:
    """Two processes that write at a time would show as attempts that go back."""
    numbers = [number for number, _ in groupby(journal, key=lambda e: e["attempt"])]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"attempts write in the order {numbers}: two processes wrote at the same time"


def _attempts(journal: list[Event]) -> list[tuple[int, list[Event]]]:
    numbers = sorted({event["attempt"] for event in journal})
    return [(n, [e for e in journal if e["attempt"] == n]) for n in numbers]


def _attempt(trace: list[Event], attempt: int, lines: list[Event]) -> Iterator[str]:
    starts = [e["step"] for e in lines if e["event"] == "start"]
    if len(starts) != 1:
        yield f"attempt {attempt} has {len(starts)} starts, at steps {starts}"
        return
    for error in (e for e in lines if e["event"] == "error"):
        yield f"attempt {attempt} ended in {error['kind']}: {error['message']}"
    wanted, found = told(trace, starts[0]), told(lines, starts[0])
    where = f"attempt {attempt}, which began after step {starts[0]}"
    if len(found) > len(wanted):
        yield f"{where}: {len(found) - len(wanted)} lines too many, the last {found[-1]}"
    unlike = [(a, b) for a, b in zip(wanted, found, strict=False) if not same(a, b)]
    for expected, line in unlike[:FEW]:
        yield f"{where}: {_difference(expected, line)}"


def _difference(expected: Event, found: Event) -> str:
    place = f"{found['event']} of step {found['step']}"
    if (expected["event"], expected["step"]) != (found["event"], found["step"]):
        return f"{place} where {expected['event']} of step {expected['step']} was due"
    names = [n for n, a, b in _flat(expected, found) if not same(a, b)]
    pairs = {n: (a, b) for n, a, b in _flat(expected, found)}
    told = "; ".join(f"{n} is {pairs[n][1]!r} instead of {pairs[n][0]!r}" for n in names[:FEW])
    return f"{place}: {told}"


def _flat(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Values of both by their dotted names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _flat(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    else:
        yield name, a, b


def _starts(journal: list[Event]) -> Iterator[str]:
    """Every attempt goes on from what was told to be saved, and no further than there was."""
    saved, reached = 0, 0
    for event in journal:
        if event["event"] == "start" and not saved <= event["step"] <= reached:
            yield (
                f"attempt {event['attempt']} began after step {event['step']}; the run had come to "
                f"step {reached}, and had told of a checkpoint at step {saved}"
            )
        saved = max(saved, event["step"]) if event["event"] == "checkpoint" else saved
        reached = max(reached, event["step"]) if event["event"] == "steps" else reached


def summary_differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """What two summaries do not share, but for names, clocks, and what a later evaluation adds."""
    names = (*CLOCKS, "run_id", "wall_seconds", "evaluated_step")
    for name, a, b in _flat(without(expected, names), without(found, names)):
        if not same(a, b):
            yield f"summary.json: {name} is {b!r} instead of {a!r}"


def read_trace(folder: Path) -> list[Event]:
    """The journal of a run that made its way in one attempt."""
    journal = read_journal(folder)
    assert {event["attempt"] for event in journal} == {1}, f"{folder} was interrupted itself"
    return journal
