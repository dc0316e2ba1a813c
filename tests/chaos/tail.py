"""The journal of a run as it grows."""

import json
from pathlib import Path

from service.training.journal import FILE_NAME


class Tail:
    """attempt: that of the last line, 0 before the first. step: the last one that it made."""

    def __init__(self, run_dir: Path) -> None:
        self.attempt = 0
        self.step = 0
        self._path = run_dir / FILE_NAME
        self._offset = 0

    def read(self) -> int:
        """Takes in the whole lines that have come; how many there were."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            self._offset += len(line) + 1
            self._hear(line)
        return len(lines)

    def _hear(self, line: bytes) -> None:
        """A line that a crash cut off says nothing."""
        try:
            event = json.loads(line)
        except ValueError:
            return
        self.attempt = event["attempt"]
        if event["event"] in ("start", "steps"):
            self.step = event["step"]
