"""Writes checkpoints in the background: training hands over a copy and goes on.

One is written at a time and at most one waits; a newer one takes the place of a waiting one, so a
slow store costs checkpoints and never steps. The memory of a copy is kept for a later one. It stays
one copy where each write ends before the next save, and becomes two or three where they do not.
"""

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import CheckpointError
from service.training import events
from service.training.checkpoint import Identity, State, best_of, save, snapshot
from service.training.journal import Event
from service.training.store import Store

PAUSES_S = (1.0, 4.0)
"""Seconds before each further try; a checkpoint whose last try fails has failed."""
TURN_S = 0.0001
"""Seconds after which a thread that writes lets training have the interpreter again. Training gives
it away with most of its calls, and with Python's own 5 ms would lose as much at each."""
TELL_S = 30.0
"""Seconds after which a checkpoint that the run waits for is told of, and again."""


@dataclass(frozen=True, slots=True)
class _Taken:
    state: State
    step: int
    score: float | None


class CheckpointWriter:
    """Keeps the newest `keep` checkpoints and the best one.

    failures: checkpoints in a row that may fail. tell: hears what becomes of each checkpoint, from
    the thread that calls `write` or the writing one.
    """

    def __init__(
        self,
        store: Store,
        *,
        made_with: Identity,
        keep: int,
        failures: int = 0,
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._store = store
        self._made_with = made_with
        self._keep = keep
        self._failures = failures
        self._tell = tell
        self._changed = threading.Condition()
        self._newest = 0
        self._waiting: _Taken | None = None
        self._spares: list[State] = []
        self._is_writing = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._damaged: set[int] = set()
        self._failed = 0
        self._failure: CheckpointError | None = None

    def write(self, state: State, step: int, score: float | None = None) -> None:
        """Takes a copy now and returns; it is written in the background. score: CE over ln C."""
        with self._changed:
            spare = self._spares.pop() if self._spares else None
        taken = _Taken(snapshot(state, spare), step, score)
        with self._changed:
            replaced, self._waiting, self._newest = self._waiting, taken, step
            self._spares += [replaced.state] if replaced else []
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        if replaced is not None:
            self._say(events.checkpoint_skipped(replaced.step))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing is left to write; False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._waiting is None and not self._is_writing, timeout_s
            )

    def close(self, limit_s: float = math.inf) -> None:
        """Waits until nothing is left to write, telling of it, and ends the thread; nothing may
        follow.

        What takes longer than `limit_s` seconds has failed. The store may hold its thread for ever,
        which is left behind: it tells, tries and clears nothing any more.
        """
        began, waited_s = time.monotonic(), 0.0
        while not self.wait(min(TELL_S, limit_s - waited_s)):
            waited_s = time.monotonic() - began
            if waited_s >= limit_s:
                told = f"the store has held it up for {waited_s:.0f} s, so the run ends without it"
                self._fail(self._newest, told)
                break
            self._say(events.checkpoint_slow(self._newest, waited_s))
        with self._changed:
            self._is_closed, self._waiting = True, None
            self._spares.clear()
            self._changed.notify_all()
            is_held_up = self._is_writing
        if self._thread is not None and not is_held_up:
            self._thread.join()

    def mark_damaged(self, step: int) -> None:
        """The checkpoint of `step` is none to keep: it goes once another one is written."""
        self._damaged.add(step)

    @property
    def failure(self) -> CheckpointError | None:
        """Why the newest checkpoint that was tried failed; None when it did not."""
        return self._failure

    @property
    def fatal(self) -> CheckpointError | None:
        """The failure that the run must not survive: one more in a row than may be."""
        return self._failure if self._failed > self._failures else None

    def _run(self) -> None:
        while taken := self._next():
            with _taking_turns():
                self._try(taken)
            with self._changed:
                if not self._is_closed:
                    self._spares.append(taken.state)

    def _try(self, taken: _Taken) -> None:
        try:
            self._write(taken)
        except Exception as error:  # noqa: BLE001  told, and the run's end in time
            told = f"checkpoint of step {taken.step} failed: {type(error).__name__}: {error}"
            # Whoever is told may be what failed.
            with contextlib.suppress(Exception):
                self._fail(taken.step, told)

    def _next(self) -> _Taken | None:
        """What to write next, once there is something; None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
            taken, self._waiting = self._waiting, None
            self._is_writing = taken is not None
            return taken

    def _write(self, taken: _Taken) -> None:
        for pause_s in (*PAUSES_S, None):
            try:
                save(
                    self._store,
                    taken.state,
                    step=taken.step,
                    made_with=self._made_with,
                    score=taken.score,
                )
                break
            except CheckpointError as error:
                if pause_s is None or self._is_closed:
                    return self._fail(taken.step, str(error))
                time.sleep(pause_s)
        self._failed, self._failure = 0, None
        self._damaged.discard(taken.step)
        self._say({"event": "checkpoint", "step": taken.step})
        if not self._is_closed:
            self._clear(taken.step)

    def _fail(self, step: int, message: str) -> None:
        self._failed, self._failure = self._failed + 1, CheckpointError(message)
        self._say(events.checkpoint_failed(step, message))

    def _say(self, event: Event) -> None:
        if not self._is_closed:
            self._tell(event)

    def _clear(self, newest: int) -> None:
        """Deletes what is neither among the newest nor the best; what stays for now is told of."""
        try:
            found = self._store.steps()
            steps = [step for step in found if step not in self._damaged]
            kept = {*steps[-self._keep :], best_of(self._store, steps)}
            for step in found:
                if step not in kept:
                    self._store.delete(step)
            self._store.sweep()
        except CheckpointError as error:
            self._say(events.checkpoint_stays(newest, str(error)))


@contextlib.contextmanager
def _taking_turns() -> Iterator[None]:
    """All threads of the process take turns of `TURN_S` at most while it is open."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(TURN_S, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
