"""Threads that work ahead while their results are taken in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
