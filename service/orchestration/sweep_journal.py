"""The sweep's journal `decisions.jsonl`: append-only, and all that a later driver has to know.

The first line says which sweep it is. A `trial` line names a trial and its sample; a `decision`
line holds one report's verdict with everything that the next one depends on; an `end` line says
that a trial will not go on. A line that a crash cut off is left out when it is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import RunError

FILE_NAME = "decisions.jsonl"

Line = dict[str, Any]


class SweepJournal:
    """Appends lines; each is on its way to the disk once `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Raises RunError when the line cannot be written."""
        self._write(json.dumps(line) + "\n")

    def read(self) -> list[Line]:
        """Every whole line, oldest first; none when there is no file yet."""
        return [line for line in self._lines() if line is not None]

    def torn(self) -> int:
        """How many lines `read` leaves out since a crash cut them off."""
        return sum(line is None for line in self._lines())

    def mend(self) -> None:
        """Ends a last line that a crash cut off, so that the next one begins a line."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if text and not text.endswith(b"\n"):
            self._write("\n")

    def _lines(self) -> list[Line | None]:
        """The lines that hold anything; None for one that is not whole."""
        if not self.path.exists():
            return []
        return [_parsed(text) for text in self.path.read_bytes().split(b"\n") if text.strip()]

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RunError(
                f"the sweep's journal {self.path} cannot be written: {error}; free space or check "
                f"its rights, then crossreid tune --resume {self.path.parent}"
            ) from error


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
