"""Threads that work ahead while their results are taken in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""Of the container that this process is in: microseconds of CPU in a period, and the period's."""


def usable_cpus(limit: Path = _LIMIT) -> int:
    """How many threads are of use: a container sees all CPUs of its machine and may have few."""
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    try:
        allowed, period = limit.read_text().split()
        return max(1, min(cpus, int(allowed) // int(period)))
    except (OSError, ValueError):
        # No limit, which is written as `max`, or none that can be read.
        return cpus


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 0
) -> Generator[Result, None, None]:
    """`function(item)` for each item, in the order of the items, computed by `threads` threads.

    At most `threads + ahead` items are begun and not yet taken, so memory is bounded. `items` is
    advanced in the caller's thread only. An exception surfaces where its result would have come.
    No thread outlives the iterator: closing it early drops what has not begun and waits for the
    rest.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="in-order")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == threads + ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
