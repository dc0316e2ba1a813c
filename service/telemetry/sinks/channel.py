"""One trial in one place: whatever its journals say comes to stand there, once and in order."""

from service.telemetry.logs import redacted
from service.telemetry.sinks.reading import Reader, Source
from service.telemetry.sinks.sink import Entry, Numbers, Place, Sink, Status

_AT_ONCE = 500
"""Entries between two flushes; as many wait here while a server does not answer."""


class Channel:
    """Carries a trial's story on. The journals hold what was not sent, so a call that fails may
    simply be repeated."""

    def __init__(self, source: Source, place: Place) -> None:
        self._reader = Reader(source)
        self._place = place
        self._sink: Sink | None = None
        self._waiting: list[Entry] = []
        self._has_begun = False
        self.where = ""
        self.numbers = self.texts = 0
        self._changed: dict[str, int] = {}

    @property
    def changed(self) -> dict[str, int]:
        """As `Sink.changed`."""
        return dict(self._sink.changed) if self._sink else self._changed

    def catch_up(self) -> None:
        """Sends what the journals have said since the last call. Raises whatever the place raises.

        Where steps were trained again, a new sink begins with what counts.
        """
        self._deliver()
        entries = self._news()
        if entries is None:
            self._end(Status.SUPERSEDED)
            entries = self._reader.again()
            self.numbers = self.texts = 0
        elif self._sink is None:
            return
        self._waiting = entries
        self._deliver()
        if self._reader.is_over:
            self.close()

    def close(self) -> None:
        """Ends the sink, if one is open, as the trial ended."""
        self._end(self._reader.status)

    def _news(self) -> list[Entry] | None:
        """What has come since the last call; None when the story is to be told from its beginning.

        So it is after a reading that failed, which may have taken lines that nobody got.
        """
        goes_on = self._has_begun and (self._sink is not None or self._reader.is_over)
        self._has_begun = False
        entries = self._reader.more() if goes_on else None
        self._has_begun = goes_on
        return entries

    def _deliver(self) -> None:
        if self._sink is not None:
            self._sink.flush()
        while self._waiting:
            if self._sink is None:
                self._sink = self._place.open(self._reader.subject())
                self._has_begun, self.where = True, redacted(self._sink.where)
            part = self._waiting[:_AT_ONCE]
            for entry in part:
                self._sink.put(entry)
                self._count(entry)
            del self._waiting[: len(part)]
            self._sink.flush()

    def _count(self, entry: Entry) -> None:
        if isinstance(entry, Numbers):
            self.numbers += len(entry.values)
        else:
            self.texts += 1

    def _end(self, status: Status) -> None:
        if self._sink is None:
            return
        sink, self._sink = self._sink, None
        self._changed = dict(sink.changed)
        sink.close(status)
