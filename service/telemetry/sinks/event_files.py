"""TensorBoard's event files, written from the journals and from nothing else.

Where steps were trained again, a new file takes the place of the old one. Marking the old steps as
purged would not do: not every reader of event files obeys the mark. The new file still begins with
it, for a TensorBoard that looks on meanwhile and has the old file in memory.
"""

import contextlib
import html
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary

# Classes that are made at import, where no type checker sees them.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.record_writer import masked_crc32c

from service.telemetry.sinks.sink import Entry, Numbers, Setting, Status, Subject

FOLDER = "tensorboard"
"""Folder in the trial's own, where TensorBoard finds its files."""
_NAME = "events.out.tfevents.{number:010d}.crossreid"


class TensorBoard:
    """Event files in each trial's folder, or in `out`: in a folder for each run, and in that one
    for each trial.

    Numbers are kept as 32-bit floats.
    """

    def __init__(self, out: Path | None = None) -> None:
        self._out = out

    def open(self, subject: Subject) -> "EventFile":
        """Raises OSError when the folder cannot be written."""
        if self._out is None:
            return EventFile(subject.folder / FOLDER, subject)
        return EventFile(self._out / subject.group / subject.trial, subject)


class EventFile:
    """One trial's event file: a `Sink`."""

    def __init__(self, folder: Path, subject: Subject) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._began = subject.began
        old = sorted(folder.glob(_NAME.replace("{number:010d}", "*")))
        number = 1 + max((int(path.name.split(".")[3]) for path in old), default=0)
        # Unbuffered, so that what is not on its way to the disk is still in `_unsent`.
        self._file = (folder / _NAME.format(number=number)).open("wb", buffering=0)
        self._unsent: list[bytes] = []
        self._head(subject.settings)
        self.flush()
        _take_away(old)

    @property
    def where(self) -> str:
        return str(self._folder)

    @property
    def changed(self) -> Mapping[str, int]:
        return {}

    def put(self, entry: Entry) -> None:
        if isinstance(entry, Numbers):
            values = [Summary.Value(tag=t, simple_value=v) for t, v in entry.values.items()]
            self._add(entry.step, entry.time, Summary(value=values))
        else:
            shown = summary.text(f"run/{entry.kind}", _markdown(entry.words))
            self._add(entry.step, entry.time, shown)

    def flush(self) -> None:
        """Writes everything that was put, or nothing of it."""
        end = self._file.tell()
        rest = b"".join(self._unsent)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            self._file.seek(end)
            raise
        self._unsent.clear()

    def close(self, status: Status) -> None:
        self._file.close()

    def _head(self, settings: Mapping[str, Setting]) -> None:
        """The format's version, the purge mark, and the settings: as a table and as parameters."""
        self._write(Event(wall_time=self._began, file_version="brain.Event:2"))
        purge = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=self._began, step=0, session_log=purge))
        self._add(0, self._began, summary.text("run/settings", _table(settings)))
        _, parameters, _ = summary.hparams(dict(settings), {})
        self._add(0, self._began, parameters)

    def _add(self, step: int, time: float, shown: Any) -> None:
        self._write(Event(wall_time=time, step=step, summary=shown))

    def _write(self, event: Any) -> None:
        """A record of TensorFlow: length, its checksum, data, its checksum; little-endian."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._unsent.append(length + sums[0] + data + sums[1])


def _take_away(old: list[Path]) -> None:
    """The newest file stays, empty: a TensorBoard that reads it would wait for it for ever."""
    for path in old[:-1]:
        path.unlink()
    for path in old[-1:]:
        os.truncate(path, 0)


def _markdown(words: str) -> str:
    return "\n\n".join(html.escape(line, quote=False) for line in words.split("\n"))


def _table(settings: Mapping[str, Setting]) -> str:
    cells = {name: html.escape(str(value), quote=False) for name, value in settings.items()}
    lines = [f"| {name} | {value} |".replace("\n", " ") for name, value in cells.items()]
    return "\n".join(["| setting | value |", "|---|---|", *lines])
