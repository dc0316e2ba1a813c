"""The checkpoints of a run as all its ranks see them: rank 0 writes, and all take one over."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from service.config import Config
from service.distributed import Distributed
from service.errors import CheckpointError, DamagedCheckpointError, StoreError
from service.training import events
from service.training.checkpoint import State, load
from service.training.journal import Event
from service.training.owner import claim
from service.training.parts import together, unhurried
from service.training.sharing import require_shared
from service.training.store import FolderStore, open_checkpoints
from service.training.writer import TELL_S, CheckpointWriter

T = TypeVar("T")

FIRST_PAUSES_S = (1.0, 4.0)
"""Seconds before each further try to reach the store of a run that is new."""
READ_PAUSES_S = (1.0, 4.0, 15.0, 30.0, 60.0, 60.0)
"""Seconds before each further try to read the checkpoints of a run that goes on."""
LAST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 120.0
"""Seconds before the run's last checkpoint is tried again, and, doubled each time, at most."""


class Saving:
    """Finds, takes and finishes the checkpoints of the run in `run_dir`.

    records: fingerprint of the records, which a continued run must share with its checkpoints, as
    it must the config's. emit: writes the journal; it may be called from another thread. Every rank
    must make one.

    Raises:
        CheckpointError: on all ranks, if the store of `run.checkpoints` cannot be opened, or rank 0
            cannot write there.
        RunError: on all ranks, if not all of them see the run's folders.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        world: Distributed,
        records: str,
        emit: Callable[[Event], None],
    ) -> None:
        self._world, self._emit = world, emit
        self._made_with = {"config": config.fingerprint(), "records": records}
        self._limit_s = config.cluster.collective_timeout_s
        self._run_dir = run_dir
        self._is_elsewhere = config.run.checkpoints is not None
        self._store = together(world, lambda: open_checkpoints(config.run.checkpoints, run_dir))
        require_shared(run_dir, "run.storage", world)
        if self._is_elsewhere and isinstance(self._store, FolderStore):
            require_shared(self._store.folder, "run.checkpoints", world)
        self._failures = config.train.failed_checkpoints
        self._writer = CheckpointWriter(
            self._store,
            made_with=self._made_with,
            keep=config.train.keep_checkpoints,
            failures=self._failures,
            tell=emit,
        )
        self._taken = 0
        self._damaged: dict[int, str] = {}

    def newest(self, written: int, *, is_new: bool = False) -> State | None:
        """The newest whole checkpoint, None when none was ever written. Every rank must call it.

        Each damaged one before it is told of. written: step of the newest that the journal knows.
        is_new: the run has not begun, so that checkpoints elsewhere that say nothing else are
        another run's, and a store that fails is no reason to wait long. All ranks pass the same.

        Raises:
            CheckpointError: on all ranks: none is whole, one belongs to another run, config,
                records or version, or the store cannot be reached for some minutes.
        """
        rank0 = self._world.rank == 0
        pauses_s = FIRST_PAUSES_S if is_new else READ_PAUSES_S
        found = self._read(lambda: self._find(written, is_new) if rank0 else None, pauses_s)
        step = self._world.broadcast_object(found[0] if found else None)
        if step is None:
            return None
        self._taken = step
        return self._read(
            lambda: found[1] if found else load(self._store, step, made_with=self._made_with),
            pauses_s,
        )

    def take(self, step: int, score: float | None, state: Callable[[], State]) -> None:
        """Rank 0 hands the state after `step` over to be written, unless it did so before; the
        other ranks, which hold the same one, do nothing. Waits for no store.

        score: CE over ln C at the last report, which decides what is kept as the best.
        """
        if self._world.rank != 0 or step == self._taken:
            return
        finite = score if score is not None and math.isfinite(score) else None
        self._writer.write(state(), step, finite)
        self._taken = step

    def finish(
        self, step: int, score: float | None, state: Callable[[], State], *, again: bool = True
    ) -> None:
        """Takes the run's last checkpoint and waits until it is written. Every rank must call it.

        again: one that failed is tried anew, `train.failed_checkpoints` times at most.

        Raises:
            CheckpointError: on all ranks, when it failed.
        """
        began, pause_s = time.monotonic(), LAST_PAUSE_S
        for left in reversed(range(self._failures + 1 if again else 1)):
            failure = self._finished(step, score, state, began)
            if failure is None:
                return
            if not left:
                raise failure
            self._emit(events.checkpoint_slow(step, time.monotonic() - began))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _finished(
        self, step: int, score: float | None, state: Callable[[], State], began: float
    ) -> CheckpointError | None:
        """Why the last checkpoint failed, the same on all ranks; None once it is written."""
        if self._writer.failure is not None:
            self._taken = 0
        self.take(step, score, state)
        told_at, waiting = time.monotonic(), 1.0
        while waiting:
            is_done = self._world.rank != 0 or self._writer.wait(self._world.turn_s)
            (waiting,) = self._world.agree([float(not is_done)])
            now = time.monotonic()
            if not is_done and now - told_at >= TELL_S:
                told_at = now
                self._emit(events.checkpoint_slow(step, now - began))
        return self._world.broadcast_object(self._writer.failure)

    @property
    def fatal(self) -> CheckpointError | None:
        """Why the run must end: more checkpoints failed in a row than may; rank 0 only."""
        return self._writer.fatal

    def close(self) -> None:
        """Waits for what is still being written, also after an error, but no longer than ranks wait
        for each other."""
        self._writer.close(self._limit_s)

    def _read(self, call: Callable[[], T], pauses_s: tuple[float, ...]) -> T:
        """As `unhurried`; where the store fails on any rank, all try again after each pause."""
        for pause_s in pauses_s:
            try:
                return unhurried(self._world, call)
            except StoreError as error:
                self._emit(events.checkpoint_unread(pause_s, str(error)))
                time.sleep(pause_s)
        return unhurried(self._world, call)

    def _find(self, written: int, is_new: bool) -> tuple[int, State] | None:
        if self._is_elsewhere:
            claim(self._store, self._run_dir, is_new=is_new)
        steps = self._store.steps()
        if written > max(steps, default=0):
            self._tell_damaged(written, f"{self._store.place(written)} is gone, which was written")
        for step in reversed(steps):
            if step in self._damaged:
                continue
            try:
                return step, load(self._store, step, made_with=self._made_with)
            except DamagedCheckpointError as error:
                self._tell_damaged(step, str(error))
        if self._damaged:
            raise CheckpointError(
                f"no checkpoint is whole: {'; '.join(self._damaged.values())}. Put a whole copy of "
                "one back, or point run.checkpoints to where they are, then --resume; or start a "
                "new run"
            )
        return None

    def _tell_damaged(self, step: int, message: str) -> None:
        """Once, however often the store has to be asked."""
        if step not in self._damaged:
            self._damaged[step] = message
            self._writer.mark_damaged(step)
            self._emit(events.checkpoint_damaged(self._store.place(step), message))
