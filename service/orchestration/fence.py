"""Ends a worker that is cut off from its cluster, so that another one can take its place.

Ray gives up a machine that it does not reach, and starts the workers anew on others. A worker that
lives on there would keep its GPU, and a rank 0 the run's lock, until the time limit of its
collective.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RECONNECT_S = 60.0
"""For so long Ray's own processes wait for a head that restarts, unless this variable, which
KubeRay sets with a fault-tolerant head, says otherwise."""
_GRACE_S = 15.0
_ASK_S = 5.0
_LOOK_S = 1.0
_EXIT = 70
"""EX_SOFTWARE of sysexits.h; nobody is there to read it."""
_WORDS = b"crossreid: Ray cannot be reached any more; this worker ends\n"


def cut_off_s() -> float:
    """Seconds without a word of the cluster after which a worker is cut off: a little longer than
    a head may take to come back."""
    return float(os.environ.get(_RECONNECT, _RECONNECT_S)) + _GRACE_S


def give_up() -> None:
    """Ends this process, whatever its threads wait for and whether or not it can say so."""
    try:
        os.write(2, _WORDS)
    finally:
        os._exit(_EXIT)


@contextmanager
def fenced(
    ask: Callable[[], object],
    end: Callable[[], None] = give_up,
    *,
    limit_s: float,
    look_s: float = _LOOK_S,
) -> Iterator[None]:
    """Calls `end` in a thread once the cluster has not answered for `limit_s` during the block.

    ask: a question to the cluster, which may fail, and may wait for ever. Seconds in which this
    process does not run do not count: a stopped machine is not cut off.
    """
    over, answered = threading.Event(), threading.Event()

    def asking() -> None:
        while not over.wait(min(_ASK_S, limit_s / 4)):
            with suppress(Exception):
                ask()
                answered.set()

    def watching() -> None:
        silent_s = 0.0
        while not over.wait(look_s):
            silent_s = 0.0 if answered.is_set() else silent_s + look_s
            answered.clear()
            if silent_s >= limit_s:
                return end()

    for work in (asking, watching):
        threading.Thread(target=work, daemon=True, name=work.__name__).start()
    try:
        yield
    finally:
        over.set()
