"""Several ranks as fresh processes of this machine, for plain runs and tests without Ray."""

import contextlib
import math
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from service.distributed import TIMEOUT_S, Distributed
from service.errors import ClusterError

T = TypeVar("T")

GRACE_S = 10.0
"""Seconds that a launched process has to end by itself once its work is done or lost."""


def launch(
    fn: Callable[..., T],
    world: int,
    *args: Any,
    backend: str = "gloo",
    timeout_s: float = TIMEOUT_S,
) -> list[T]:
    """Run `fn(distributed, *args)` in `world` processes here; their results in rank order.

    They are forked from a server that has computed nothing, has this process's environment as it
    was at the first call, and may load modules beforehand, as `multiprocessing` can be told.

    fn: importable by name; args and results can be pickled. Each process computes with one CPU
    thread, finds the others through a file and talks over loopback. With backend "nccl" rank r has
    GPU r. timeout_s: seconds, > 0, for every collective; the whole may take as long as it takes.

    Raises:
        The first failing rank's own exception, with its rank and traceback as a note; the other
        processes are ended.
        LostRankError: a rank hangs, as the others say.
        ClusterError: a process ended without a result, or its error cannot be pickled.
    """
    context = get_context("forkserver")
    payload = pickle.dumps((fn, args))
    with tempfile.TemporaryDirectory(prefix="crossreid-") as folder:
        store = os.path.join(folder, "store")
        processes: list[BaseProcess] = []
        pipes: dict[Connection, int] = {}
        try:
            for rank in range(world):
                reader, writer = context.Pipe(duplex=False)
                pipes[reader] = rank
                process = context.Process(
                    target=_child,
                    args=(rank, world, backend, store, timeout_s, writer, payload),
                    daemon=True,
                )
                process.start()
                processes.append(process)
                writer.close()
            results = _collect(pipes, processes)
            for process in processes:
                process.join(GRACE_S)
            return [results[rank] for rank in range(world)]
        finally:
            _end(processes)
            for reader in pipes:
                reader.close()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a launched rank ended; at: seconds of the machine's monotonic clock."""

    value: Any
    error: Exception | None
    at: float


def _collect(pipes: Mapping[Connection, int], processes: Sequence[BaseProcess]) -> dict[int, Any]:
    """Each rank's result, or the failure that came first raised.

    The first, because a rank that fails makes the others fail in their next collective.
    """
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [reader for reader, rank in pipes.items() if rank not in results]
        ready = wait(waiting)
        ended = {
            pipes[reader]: _receive(reader, pipes[reader], processes[pipes[reader]])
            for reader in waiting
            if reader in ready
        }
        failed = [outcome for outcome in ended.values() if outcome.error is not None]
        if failed:
            first = min(failed, key=lambda outcome: outcome.at)
            assert first.error is not None
            raise first.error
        results.update((rank, outcome.value) for rank, outcome in ended.items())
    return results


def _receive(reader: Connection, rank: int, process: BaseProcess) -> _Outcome:
    """What `rank` has sent; a process that died without a word counts as the earliest failure."""
    try:
        value, error, trace, at = pickle.loads(reader.recv_bytes())
    except EOFError:
        process.join()
        lost = ClusterError(
            f"rank {rank} ended with exit code {process.exitcode} and without a result; a negative "
            "code is a signal (-9: killed, often for memory)"
        )
        return _Outcome(None, lost, -math.inf)
    if error is not None:
        error.add_note(f"in rank {rank}:\n{trace}")
    return _Outcome(value, error, at)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Ask what still runs to end, then make it: a training process may handle SIGTERM itself."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(GRACE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _child(
    rank: int,
    world: int,
    backend: str,
    store: str,
    timeout_s: float,
    pipe: Connection,
    payload: bytes,
) -> None:
    """What a launched process runs: sends (result, exception, traceback text, time) and ends."""
    try:
        with _joined(rank, world, backend, store, timeout_s) as distributed:
            fn, args = pickle.loads(payload)
            with distributed.names_the_lost():
                value = fn(distributed, *args)
            pipe.send_bytes(pickle.dumps((value, None, "", time.monotonic())))
    except Exception as error:  # noqa: BLE001  it is raised again, in the parent
        pipe.send_bytes(_failure(error))


@contextlib.contextmanager
def _joined(
    rank: int, world: int, backend: str, store: str, timeout_s: float
) -> Iterator[Distributed]:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if world == 1:
        yield Distributed.single(device)
        return
    distributed = Distributed.start(
        backend, device, timeout_s, init_method=f"file://{store}", rank=rank, world_size=world
    )
    yield distributed
    distributed.close()


def _failure(error: Exception) -> bytes:
    """The message for a failed rank; an exception that does not survive pickling becomes text."""
    trace, at = "".join(traceback.format_exception(error)), time.monotonic()
    try:
        message = pickle.dumps((None, error, trace, at))
        pickle.loads(message)
    except Exception:  # noqa: BLE001  any class may refuse either way
        text = ClusterError(f"a rank failed with {type(error).__name__}: {error}")
        message = pickle.dumps((None, text, trace, at))
    return message
