"""The sweep's journal `decisions.jsonl`: append-only, and all that a later driver has to know.

The first line says which sweep it is. A `trial` line names a trial and its sample; a `decision`
line holds one report's verdict with everything that the next one depends on; an `end` line says
that a trial will not go on. A line that a crash cut off is left out when it is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.config import Config
from service.errors import RunError

FILE_NAME = "decisions.jsonl"

Line = dict[str, Any]

_COMPARING = ("samples", "search", "metric", "base", "base_grace_steps", "reduction_factor")


class SweepJournal:
    """Appends lines; each is on its way to the disk once `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Raises RunError when the line cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(
                f"the sweep's journal {self.path} cannot be written: {error}; free space or check "
                f"its rights, then crossreid tune --resume {self.path.parent}"
            ) from error

    def read(self) -> list[Line]:
        """Every whole line, oldest first; none when there is no file yet."""
        if not self.path.exists():
            return []
        lines: list[Line] = []
        for text in self.path.read_bytes().split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def mend(self) -> None:
        """Ends a last line that a crash cut off, so that the next one begins a line."""
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")


def head_line(sweep: str, config: Config) -> Line:
    """The first line: what makes a continued sweep the same sweep."""
    tune = config.tune.model_dump(mode="json")
    return {
        "event": "sweep",
        "sweep": sweep,
        "fingerprint": config.fingerprint(),
        "space": tune["space"],
        **{name: tune[name] for name in _COMPARING},
    }


def check_head(journal: SweepJournal, sweep: str, config: Config) -> list[Line]:
    """The journal's lines after its head; none when nothing was written yet.

    Raises:
        RunError: the journal is another sweep's, or its first line is lost.
    """
    lines = journal.read()
    if not lines:
        return []
    found, wanted = lines[0], head_line(sweep, config)
    if found.get("event") != "sweep":
        raise RunError(
            f"{journal.path} has lost its first line, which says what sweep it belongs to; put it "
            f"back ({json.dumps(wanted)}), or start a new sweep"
        )
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        told = "; ".join(f"{name} was {found.get(name)} and is {wanted[name]}" for name in other)
        raise RunError(
            f"{journal.path} belongs to another sweep: {told}. Continue a sweep with the config "
            "and in the folder it was started with, or start a new one; nothing was changed"
        )
    return lines[1:]
