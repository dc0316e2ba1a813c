"""Folders that all ranks must see: another of their machines has to go on from them one day."""

import contextlib
import os
import secrets
from pathlib import Path

from service.distributed import Distributed
from service.errors import RunError
from service.rollcall import name_of_this_process
from service.training.history import unwritable
from service.training.parts import together


def require_shared(folder: Path, setting: str, world: Distributed) -> None:
    """Makes sure that all ranks see the folder of rank 0, which is made if need be. *Collective*.

    setting: what names the folder, for the message.

    Raises:
        RunError: on all ranks, naming those that do not see it.
        CheckpointError: on all ranks, rank 0 cannot write there.
    """
    probe = world.broadcast_object(together(world, lambda: _probe(folder, world.rank)))
    seen = world.gather_objects((os.path.isdir(probe), name_of_this_process()))
    if world.rank == 0:
        with contextlib.suppress(OSError):
            os.rmdir(probe)
    blind = [f"rank {rank} ({name})" for rank, (sees, name) in enumerate(seen) if not sees]
    if blind:
        raise RunError(
            f"{folder} of rank 0 ({seen[0][1]}) is not there for {', '.join(blind)}; {setting} "
            "must be a folder that all machines share under one path: mount it on each, or choose "
            "another"
        )


def _probe(folder: Path, rank: int) -> str:
    """An empty folder that rank 0 makes; by its name a store takes it away if nobody else does."""
    if rank != 0:
        return ""
    try:
        probe = folder / f".checkpoint_probe.{secrets.token_hex(4)}"
        probe.mkdir(parents=True)
    except OSError as error:
        raise unwritable(error) from error
    return str(probe)
