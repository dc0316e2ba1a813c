"""From journal lines to numbers and texts: the same for a run that trains now and for an old one.

Pure: nothing here knows of files, threads or servers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from service.decisions import Verdict
from service.telemetry import logs
from service.telemetry.sinks.sink import Entry, Numbers, Text, flat
from service.training.ending import STOPPED
from service.training.journal import Event

_TROUBLES = ("lost", "leaving", "checkpoint_failed", "checkpoint_damaged")

TOLD = (
    *("start", "plan", "epoch", "steps", "health", "checkpoint"),
    *("decision", "directive", "audit", "error", "end"),
    *_TROUBLES,
)
"""The events that a story tells of; the others say nothing that these do not."""

_PLACE = ("event", "attempt", "time", "step")
_FINAL = ("error", "end")
_ENDING = [(str(verdict),) for verdict in Verdict if verdict.ends]


def surviving(events: Iterable[Event]) -> list[Event]:
    """The lines that count: an attempt that goes on after a step supersedes what earlier ones wrote
    past it, and how they ended."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "start":
            step = event["step"]
            kept = [e for e in kept if e["event"] not in _FINAL and e.get("step", 0) <= step]
        kept.append(event)
    return kept


class Story:
    """Tells the lines of one trial, in order; it remembers what it must not tell again."""

    def __init__(self) -> None:
        self._time = 0.0
        self._step = 0
        self._epoch = 0
        self._said: tuple[Any, ...] = ()

    @property
    def step(self) -> int:
        """The last step that was told of."""
        return self._step

    def tell(self, event: Event) -> list[Entry]:
        """The entries of a line; none for a line that repeats what was said."""
        self._time = event.get("time", self._time)
        step = event.get("step", self._step)
        self._step = max(self._step, step)
        found = _numbers(event) if self._is_news(event) else {}
        entries: list[Entry] = [Numbers(step, self._time, found)] if found else []
        words = self._words(event)
        if words:
            facts = self._facts(event)
            kind = event["event"]
            entries.append(Text(step, self._time, kind, logs.redacted(words), facts))
        return entries

    def _is_news(self, event: Event) -> bool:
        """An attempt that begins inside an epoch tells of that epoch once more."""
        if event["event"] != "epoch":
            return True
        is_new = event["epoch"] > self._epoch
        self._epoch = max(self._epoch, event["epoch"])
        return is_new

    def _words(self, event: Event) -> str:
        match event["event"]:
            case "start":
                made_of = f"world size {event['world_size']}, {event['precision']}"
                head = f"attempt {event['attempt']} begins after step {event['step']}: {made_of}"
                return "\n".join([head, *logs.start_lines(event)])
            case "plan":
                return f"[sampler] {event['plan']}"
            case "decision":
                return self._decision(event)
            case "directive":
                return logs.directive_line(event["step"], event["directive"])
            case "audit":
                return logs.audit_line(event)
            case "error":
                return f"{event['kind']}: {event['message']}"
            case "end":
                return logs.verdict_line(event["verdict"], event["words"], event["remedy"])
            case name if name in _TROUBLES:
                return logs.trouble_line(event)
            case _:
                return ""

    def _decision(self, event: Event) -> str:
        """Said only when it is another than the last."""
        saying = (event["verdict"], event["cause"], event["reason"])
        is_new, self._said = saying != self._said, saying
        return logs.decision_line(event) if is_new else ""

    def _facts(self, event: Event) -> dict[str, str]:
        """A trial that a decision stopped ends as that decision says."""
        match event["event"]:
            case "error":
                return {"verdict": "ERROR", "cause": event["name"]}
            case "end" if event["verdict"] == STOPPED and self._said[:1] in _ENDING:
                return {}
            case "decision" | "end":
                return {"verdict": event["verdict"], "cause": event["cause"] or "none"}
            case _:
                return {}


def _numbers(event: Event) -> dict[str, float]:
    """Every number of a line by its tag; tags of a section share what stands before the slash."""
    match event["event"]:
        case "steps" | "epoch":
            return _plain(event["event"], event)
        case "health":
            health = dict(event["health"])
            kinds = health.pop("ce_by_kind", {})
            return _plain("health", health) | _plain("ce_by_kind", kinds)
        case "checkpoint":
            return {"checkpoint/step": float(event["step"])}
        case "end":
            found = _plain("", flat(event["summary"], "/"))
            return {name if "/" in name else f"summary/{name}": v for name, v in found.items()}
        case _:
            return {}


def _plain(section: str, values: Mapping[str, Any]) -> dict[str, float]:
    prefix = f"{section}/" if section else ""
    return {
        f"{prefix}{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name not in _PLACE
    }
