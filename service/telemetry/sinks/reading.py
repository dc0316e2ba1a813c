"""A trial's journals, read on as they grow.

A trial's own journal lies in its folder. In a sweep the scheduler's file beside the trials' folders
has its decisions, and says when it has ended.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from service.decisions import Verdict
from service.telemetry.logs import redacted
from service.telemetry.sinks.sink import Entry, Setting, Status, Subject, flat
from service.telemetry.sinks.story import Story, surviving
from service.training.journal import FILE_NAME, Event, last_attempt

_CONFIG = "config.yaml"
_WELL = (Verdict.GO, Verdict.WAIT)


class Tail:
    """The lines of a file that grows. mark: only lines that hold it are parsed."""

    def __init__(self, path: Path, mark: str = "") -> None:
        self._path = path
        self._mark = mark.encode()
        self._at = 0

    def new(self) -> list[Event]:
        """The whole lines since the last call; one that a crash cut off is left out."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        parsed = [_parsed(line) for line in whole.split(b"\n") if self._mark in line]
        return [event for event in parsed if event is not None]


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a trial's lines are. group, trial, folder: as in `Subject`. judged: the file of the
    sweep's scheduler, None for a run of its own."""

    group: str
    trial: str
    folder: Path
    judged: Path | None


class Reader:
    """Tells a trial's story from its journals, from the beginning or on from where it was."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._begin()

    def again(self) -> list[Entry]:
        """Everything that counts so far, as if it were told for the first time."""
        self._begin()
        events = surviving(self._journal.new())
        self._note(events)
        return self._told([*self._judgements(events), *events])

    def more(self) -> list[Entry] | None:
        """What has come since the last call; None when something that was told counts no more, or
        an ended trial goes on, so that `again` is due."""
        events = self._journal.new()
        for event in events:
            if event["event"] == "start" and (self.is_over or event["step"] < self._story.step):
                return None
        self._note(events)
        return self._told([*events, *self._judgements(events)])

    def subject(self) -> Subject:
        """Whom the story is about.

        Raises:
            OSError: its config cannot be read.
        """
        source = self._source
        return Subject(
            source.group,
            source.trial,
            source.folder,
            self._attempt,
            read_settings(source.folder),
            self._began,
        )

    @property
    def is_over(self) -> bool:
        """Whether the trial has ended; in a sweep the scheduler has the last word."""
        if self._source.judged is None:
            return self._status is not None
        return self._ended_at is not None and self._ended_at >= self._continued_at

    @property
    def status(self) -> Status:
        """How it ended, or STOPPED when it did not end by itself."""
        if self._verdict == Verdict.NO_GO:
            return Status.FAILED
        return self._status or Status.STOPPED

    def _begin(self) -> None:
        source = self._source
        self._journal = Tail(source.folder / FILE_NAME)
        self._judged = Tail(source.judged, json.dumps(source.trial)) if source.judged else None
        self._attempt = 1
        self._status: Status | None = None
        self._verdict = ""
        self._ended_at: float | None = None
        self._began = self._continued_at = 0.0
        self._story = Story()

    def _told(self, events: list[Event]) -> list[Entry]:
        verdicts = [event["verdict"] for event in events if event["event"] == "decision"]
        self._verdict = [self._verdict, *verdicts][-1]
        return [entry for event in events for entry in self._story.tell(event)]

    def _note(self, events: list[Event]) -> None:
        """Keeps in mind how the trial stands after `events`."""
        for event in events:
            if event["event"] == "start":
                self._status = None
                self._continued_at = event.get("time", 0.0)
                self._began = self._began or self._continued_at
            if event["event"] in ("error", "end"):
                self._status = _status(event)
        self._attempt = max(self._attempt, last_attempt(events))

    def _judgements(self, events: list[Event]) -> list[Event]:
        """What the scheduler has decided since the last call, as the trial's own line would say it.

        A trial that goes on alone decides for itself from then on.
        """
        if self._judged is None:
            return []
        lines = [x for x in self._judged.new() if x.get("trial") == self._source.trial]
        for line in lines:
            if line["event"] == "end":
                self._ended_at = line["time"]
        own = [event["step"] for event in events if event["event"] == "decision"]
        return [
            {"event": "decision", "time": line["time"], **line["decision"]}
            for line in lines
            if line["event"] == "decision" and (not own or line["step"] < own[0])
        ]


def read_settings(folder: Path) -> dict[str, Setting]:
    """The config of the run in `folder` by dotted name, without secrets; a list is JSON text.

    Raises:
        OSError: there is no config.
    """
    values = yaml.safe_load((folder / _CONFIG).read_text("utf-8"))
    return {name: _setting(value) for name, value in flat(values, ".").items()}


def _setting(value: object) -> Setting:
    if isinstance(value, bool | int | float):
        return value
    return redacted(value if isinstance(value, str) else json.dumps(value))


def _status(event: Event) -> Status:
    if event["event"] == "error" or event["verdict"] == Verdict.NO_GO:
        return Status.FAILED
    return Status.FINISHED if event["verdict"] in _WELL else Status.STOPPED
