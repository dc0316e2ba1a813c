"""One writer a run: rank 0 writes only once the rank 0 of an earlier attempt has ended.

That one may outlive its driver or its controller by seconds, and a stopped process by hours. Its
lock goes with it.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from service.errors import RunError, StillWrittenError
from service.rollcall import name_of_this_process

if TYPE_CHECKING:
    from service.distributed import Distributed

LOCK_FILE = ".writer.lock"
_NAME_FILE = ".writer"
_BUSY = "held by another process"
PATIENCE_S = 60.0
"""Seconds in which a file system gives up the lock of a process that has ended, or of a machine
that is away: NFS 4 does within 90 of its last word (`nfsv4leasetime` of Linux)."""
_TRY_S = 0.5
_TELL_S = 3.0


@contextmanager
def writing_alone(
    run_dir: Path,
    world: "Distributed",
    patience_s: float = PATIENCE_S,
    waits: Callable[[str], None] = lambda holder: None,
) -> Iterator[None]:
    """Lets rank 0 write in `run_dir` during the block. *Collective*.

    All ranks wait together, so that none takes the others to hang. waits: called once on rank 0, if
    it has to wait for some seconds, with the process that it waits for.

    Raises:
        StillWrittenError: on all ranks, an earlier rank 0 holds the lock for longer than
            `patience_s`.
        RunError: on all ranks, rank 0 does not have the folder or may not write there.
    """
    lock = FileLock(run_dir / LOCK_FILE, fallback_to_soft=False)
    began = time.monotonic()
    is_told = False
    trouble: str | None = _BUSY
    while trouble is not None:
        trouble = world.broadcast_object(_trouble(lock, run_dir) if world.rank == 0 else None)
        waited_s = time.monotonic() - began
        if trouble == _BUSY and world.rank == 0 and waited_s > _TELL_S and not is_told:
            is_told = True
            waits(_holder(run_dir))
        is_late = world.agree([world.rank == 0 and waited_s > patience_s])[0]
        if trouble == _BUSY and is_late:
            raise StillWrittenError(_words(run_dir, patience_s))
        if trouble not in (None, _BUSY):
            raise RunError(trouble)
    try:
        if world.rank == 0:
            with suppress(OSError):
                (run_dir / _NAME_FILE).write_text(name_of_this_process(), "utf-8")
        yield
    finally:
        # A storage that fails now may be what ended the block, which must be told. The lock goes
        # with this process at the latest.
        with suppress(OSError):
            if world.rank == 0:
                (run_dir / _NAME_FILE).unlink(missing_ok=True)
        with suppress(OSError):
            lock.release()


def _trouble(lock: FileLock, run_dir: Path) -> str | None:
    """What stands between this process and the lock; None when it has it."""
    # The lock would make the folder, on a machine that does not share the storage.
    if not run_dir.is_dir():
        return (
            f"{run_dir} is not on the machine of rank 0, {socket.gethostname()}; run.storage must "
            "be a folder that all machines share"
        )
    try:
        lock.acquire(timeout=_TRY_S)
    except Timeout:
        return _BUSY
    except OSError as error:
        return (
            f"cannot lock {run_dir}: {error}; free space, check its rights, or use a file system "
            "with locks (flock) for run.storage, then --resume"
        )
    return None


def _holder(run_dir: Path) -> str:
    try:
        return (run_dir / _NAME_FILE).read_text("utf-8")
    except OSError:
        return "a process that did not say who it is"


def _words(run_dir: Path, waited_s: float) -> str:
    return (
        f"a worker of an earlier attempt still writes to {run_dir} after {waited_s:g} s: "
        f"{_holder(run_dir)}; end it (kill -9), then continue the run with --resume"
    )
