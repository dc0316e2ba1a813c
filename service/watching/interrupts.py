"""Ctrl-C and its like as a number to look at, so that nothing is left half started."""

import signal
import time
from types import FrameType
from typing import Any

_SLICE_S = 0.1


class Interrupts:
    """While entered, SIGINT, SIGTERM and SIGHUP only count. For the main thread.

    A SIGHUP that is ignored (nohup) stays so.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Waits that long, or until the first interrupt; whether there was one."""
        until = time.monotonic() + seconds
        while not self.count and (left := until - time.monotonic()) > 0:
            time.sleep(min(_SLICE_S, left))
        return self.count > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
