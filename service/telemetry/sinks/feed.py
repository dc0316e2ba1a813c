"""Sinks that follow runs in threads of their own, so that no server ever delays a training.

The journals are the queue: what a place cannot take now is read again later, nothing is dropped and
nothing piles up in memory.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from service.telemetry.logs import redacted
from service.telemetry.sinks.channel import Channel
from service.telemetry.sinks.reading import Source
from service.telemetry.sinks.sink import Place
from service.telemetry.sinks.story import TOLD
from service.training.journal import Event

CLOSE_S = 30.0
"""Seconds that a driver waits for its sinks at the end."""
_RETRY_S = (0.5, 60.0)
"""Shortest and longest pause after a failure; each is twice the last one."""
_SHOWN = 200

SourceOf = Callable[[str], Source]
"""Where the lines of the trial with this key are."""


class Feed:
    """Keeps one place up to date, in one thread."""

    def __init__(self, name: str, place: Place, source_of: SourceOf) -> None:
        self._name = name
        self._place = place
        self._source_of = source_of
        self._channels: dict[str, Channel] = {}
        self._behind: dict[str, str] = {}
        self._news: dict[str, None] = {}
        self._wake = threading.Condition()
        self._is_closing = False
        self._has_said_where = False
        self._pause_s = _RETRY_S[0]
        self.failures = 0
        self.messages: SimpleQueue[str] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def notice(self, trial: str) -> None:
        """There is something new to read about the trial."""
        with self._wake:
            self._news[trial] = None
            self._wake.notify()

    def ask_to_close(self) -> None:
        """Has the thread read everything once more, end every sink, and end."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end."""
        self._thread.join(timeout_s)

    def ending(self) -> list[str]:
        """What there is to say at the end."""
        changed: dict[str, int] = {}
        for channel in list(self._channels.values()):
            for what, times in channel.changed.items():
                changed[what] = changed.get(what, 0) + times
        lines = [f"{self._name} holds {times} {what}" for what, times in changed.items()]
        return [*self._lacking(), *lines]

    def _lacking(self) -> list[str]:
        again = f"crossreid export RUN --to {self._name} sends all of it again"
        calls = "call" if self.failures == 1 else "calls"
        failed = f"{self.failures} {calls} failed" if self.failures else ""
        if self._thread.is_alive():
            because = f" ({failed})" if failed else ""
            return [f"{self._name} had not taken everything when time was up{because}; {again}"]
        if self._behind:
            trials = "1 trial" if len(self._behind) == 1 else f"{len(self._behind)} trials"
            last = list(self._behind.values())[-1]
            return [f"{self._name} lacks the end of {trials}: {failed}, {last}; {again}"]
        return [f"{self._name}: {failed}, and in the end everything was sent"] if failed else []

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while (trial := self._next()) is not None:
            if self._carry(trial, Channel.catch_up):
                self._pause_s = _RETRY_S[0]
            else:
                self._pause(trial)
        for trial in {**self._channels, **self._news}:
            if self._carry(trial, Channel.catch_up):
                self._carry(trial, Channel.close)

    def _next(self) -> str | None:
        """The trial that has waited longest; None when it is time to close."""
        with self._wake:
            self._wake.wait_for(lambda: self._news or self._is_closing)
            if self._is_closing:
                return None
            trial = next(iter(self._news))
            del self._news[trial]
            return trial

    def _pause(self, trial: str) -> None:
        """After a failure; the trial is then tried again, whether it has news or not."""
        with self._wake:
            self._news[trial] = None
            self._wake.wait_for(lambda: self._is_closing, self._pause_s)
        self._pause_s = min(2 * self._pause_s, _RETRY_S[1])

    def _carry(self, trial: str, act: Callable[[Channel], None]) -> bool:
        try:
            channel = self._channel(trial)
            act(channel)
        except Exception as error:  # noqa: BLE001  any library may raise anything; it is counted
            self._failed(trial, error)
            return False
        self._behind.pop(trial, None)
        if channel.where and not self._has_said_where:
            self._has_said_where = True
            self.messages.put(f"{self._name}: {channel.where}")
        return True

    def _failed(self, trial: str, error: Exception) -> None:
        self.failures += 1
        self._behind[trial] = words(error)
        if self.failures == 1:
            told = f"{self._name} takes nothing now: {words(error)}; training goes on, and the rest"
            self.messages.put(f"{told} is sent as soon as it can be")

    def _channel(self, trial: str) -> Channel:
        if trial not in self._channels:
            self._channels[trial] = Channel(self._source_of(trial), self._place)
        return self._channels[trial]


class Sinks:
    """What a driver holds: all places that its run goes to. Without any it costs nothing."""

    def __init__(self, places: Mapping[str, Place], source_of: SourceOf) -> None:
        self._feeds = {name: Feed(name, place, source_of) for name, place in places.items()}
        self._said: list[str] = []
        self._is_closed = False

    def hear(self, trial: str, event: Event) -> None:
        """The trial's journal has this new line, or its sweep's has. Never waits."""
        if event["event"] in TOLD:
            for feed in self._feeds.values():
                feed.notice(trial)

    @property
    def failures(self) -> Mapping[str, int]:
        """Calls that failed, by sink."""
        return {name: feed.failures for name, feed in self._feeds.items()}

    def messages(self) -> list[str]:
        """What there is to say to the user since the last call; at the end, after `close`."""
        for feed in self._feeds.values():
            while not feed.messages.empty():
                self._said.append(feed.messages.get())
        said, self._said = self._said, []
        return said

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Sends the rest, for at most `timeout_s` seconds or until the user's next interrupt; a
        second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        until = time.monotonic() + timeout_s
        for feed in self._feeds.values():
            feed.ask_to_close()
        with contextlib.suppress(KeyboardInterrupt):
            for feed in self._feeds.values():
                feed.join(max(0.0, until - time.monotonic()))
        self._said = self.messages()
        for feed in self._feeds.values():
            self._said += feed.ending()


def words(error: Exception) -> str:
    """An error's kind and first line, without secrets."""
    line = (str(error).strip().splitlines() or [""])[0]
    told = f"{type(error).__name__}: {line}" if line else type(error).__name__
    told = redacted(told)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}..."
