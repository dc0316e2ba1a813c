"""The checkpoints of a run as all its ranks see them: rank 0 writes, and all take one over."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from service.config import Config
from service.distributed import Distributed
from service.errors import CheckpointError, DamagedCheckpointError
from service.training import events
from service.training.checkpoint import State, load
from service.training.journal import Event
from service.training.parts import raise_together, together
from service.training.store import open_checkpoints
from service.training.writer import CheckpointWriter

T = TypeVar("T")

WAIT_S = 5.0
"""Seconds, at most, after which ranks that wait for the last checkpoint hear of each other: an
upload may take longer than the time limit of a collective."""
TELL_S = 30.0
"""Seconds after which a last checkpoint that is still being written is told of, and again."""


class Saving:
    """Finds, takes and finishes the checkpoints of the run in `run_dir`.

    records: fingerprint of the records, which a continued run must share with its checkpoints, as
    it must the config's. emit: writes the journal; it may be called from another thread. Every rank
    must make one.

    Raises:
        CheckpointError: on all ranks, if the store of `run.checkpoints` cannot be opened.
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
        self._slice_s = min(WAIT_S, config.cluster.collective_timeout_s / 4)
        self._is_elsewhere = config.run.checkpoints is not None
        self._store = together(world, lambda: open_checkpoints(config.run.checkpoints, run_dir))
        self._writer = CheckpointWriter(
            self._store,
            made_with=self._made_with,
            keep=config.train.keep_checkpoints,
            failures=config.train.failed_checkpoints,
            tell=emit,
        )
        self._taken = 0

    def newest(self, written: int, *, is_new: bool = False) -> State | None:
        """The newest whole checkpoint, None when none was ever written. Every rank must call it.

        Each damaged one before it is told of. written: step of the newest that the journal knows.
        is_new: the run has no earlier attempt, so that checkpoints elsewhere are another run's.
        Rank 0's count.

        Raises:
            CheckpointError: on all ranks: none is whole, one belongs to another run, config,
                records or version, or the store cannot be reached.
        """
        rank0 = self._world.rank == 0
        found = self._waited(lambda: self._find(written, is_new) if rank0 else None)
        step = self._world.broadcast_object(found[0] if found else None)
        if step is None:
            return None
        self._taken = step
        return self._waited(
            lambda: found[1] if found else load(self._store, step, made_with=self._made_with)
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

    def finish(self, step: int, score: float | None, state: Callable[[], State]) -> None:
        """Takes the run's last checkpoint and waits until it is written. Every rank must call it.

        Raises:
            CheckpointError: on all ranks, when it failed.
        """
        if self._writer.failure is not None:
            self._taken = 0
        self.take(step, score, state)
        began = told_at = time.monotonic()
        waiting = 1.0
        while waiting:
            is_done = self._world.rank != 0 or self._writer.wait(self._slice_s)
            (waiting,) = self._world.agree([float(not is_done)])
            now = time.monotonic()
            if not is_done and now - told_at >= TELL_S:
                told_at = now
                self._emit(events.checkpoint_slow(step, now - began))
        raise_together(self._world, self._writer.failure)

    @property
    def fatal(self) -> CheckpointError | None:
        """Why the run must end: more checkpoints failed in a row than may; rank 0 only."""
        return self._writer.fatal

    def close(self) -> None:
        """Waits for what is still being written, also after an error."""
        self._writer.close()

    def _waited(self, call: Callable[[], T]) -> T:
        """As `together`, for what may take longer than the time limit of a collective."""
        with ThreadPoolExecutor(1, "checkpoints") as pool:
            task, waiting = pool.submit(call), 1.0
            while waiting:
                is_done = bool(wait([task], self._slice_s).done)
                (waiting,) = self._world.agree([float(not is_done)])
            return together(self._world, task.result)

    def _find(self, written: int, is_new: bool) -> tuple[int, State] | None:
        damaged: list[str] = []
        steps = self._store.steps()
        if steps and is_new and self._is_elsewhere:
            raise CheckpointError(
                f"{self._store.place(steps[-1])} belongs to another run of this name, since this "
                "one is new; take another --run-id, or move that run's checkpoints away"
            )
        if written > max(steps, default=0):
            place = self._store.place(written)
            damaged.append(self._tell_damaged(written, f"{place} is gone, which was written"))
        for step in reversed(steps):
            try:
                return step, load(self._store, step, made_with=self._made_with)
            except DamagedCheckpointError as error:
                damaged.append(self._tell_damaged(step, str(error)))
        if damaged:
            raise CheckpointError(
                f"no checkpoint is whole: {'; '.join(damaged)}. Put a whole copy of one back, or "
                "point run.checkpoints to where they are, then --resume; or start a new run"
            )
        return None

    def _tell_damaged(self, step: int, message: str) -> str:
        self._writer.mark_damaged(step)
        self._emit(events.checkpoint_damaged(self._store.place(step), message))
        return message
