"""The run's journal: one JSON line an event, append-only, the record that outlives every process.

A resumed run writes under the next attempt number, and its `start` names the step it goes on from;
what earlier attempts wrote past that step is superseded.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]

FILE_NAME = "journal.jsonl"


class Journal:
    """Appends events of one attempt with their time, from any thread; a line outlives this process
    once `append` returns. now: Unix seconds."""

    def __init__(self, run_dir: Path, attempt: int, now: Callable[[], float] = time.time) -> None:
        path = run_dir / FILE_NAME
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        self._attempt = attempt
        self._now = now
        self._lock = threading.Lock()
        if torn:
            self._file.write("\n")

    def append(self, event: Event) -> None:
        head = {"attempt": self._attempt, "time": round(self._now(), 3)}
        line = json.dumps({**head, **event})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_journal(run_dir: Path) -> list[Event]:
    """Every whole line, oldest first; a line cut off by a crash is left out."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return []
    events: list[Event] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


def last_attempt(events: Iterable[Event]) -> int:
    """The highest attempt number, 0 before the first."""
    return max((event["attempt"] for event in events), default=0)
