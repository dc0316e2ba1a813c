"""Who came and who did not, once a collective has failed; asked through the ranks' store.

Each rank whose collective failed leaves a mark and looks for the others' for some seconds. The
store answers whether or not the process group still works, except when the process that serves it
hangs too: that is noticed by its silence.
"""

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from service.errors import LostRankError

_MARK = "crossreid/came/{rank}"
_LATE, _CUT_OFF = b"late", b"cut off"
_CUT_OFF_S = 1.0
"""Seconds in which the rank that gave up first, and so cut the others off, has left its mark."""
_SILENCE_S = 3.0
"""Seconds after which a store that does not answer is taken to hang."""
_LOOK_S = 0.05
_COLLECTIVE_ERRORS = {
    "DistError",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "CollectiveTimeoutError",
}
_COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


class Store(Protocol):
    """What is used of c10d's store."""

    def set(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process hangs or went away."""
    if {kind.__name__ for kind in type(error).__mro__} & _COLLECTIVE_ERRORS:
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in words for word in _COLLECTIVE_WORDS)


def is_late(error: BaseException) -> bool:
    """Whether the time limit of this rank's own collective ran out."""
    words = str(error).lower()
    return "timed out" in words or "timeout" in words


def patience_s(limit_s: float) -> float:
    """Seconds that the roll call takes at most, after collectives with this time limit.

    The ranks' limits end as far apart as they came to the collective.
    """
    return min(30.0, max(3.0, limit_s / 10))


def backstop_s(limit_s: float) -> float:
    """The limit, in seconds, for whatever ends a process that hangs without asking it: late enough
    that the roll call comes first. For NCCL, which aborts the process, and for Ray's health
    check."""
    return limit_s + patience_s(limit_s) + 15.0


def name_of_this_process() -> str:
    """As a person finds it."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def lost_ranks(
    store: Store, rank: int, names: Sequence[str], *, limit_s: float, late: bool
) -> LostRankError:
    """The error that names who did not come. Every rank whose collective failed calls it.

    names: of the process behind each rank. late: this rank's own limit ran out; otherwise its
    connection was cut, which happens to the peers of a rank that ended, and to those of one whose
    limit ran out. Takes `patience_s` at most when a rank hangs. When one has ended, it takes a
    second and names nobody, since those that compute, or wait for others, notice it only later:
    who launched the ranks can tell.
    """
    call = _Call(store, rank, len(names), late)
    if call.is_about_a_hang():
        absent = call.absent(patience_s(limit_s))
        return LostRankError(_hang_words(absent, names, limit_s), absent)
    return LostRankError("another rank has ended, and its connections were cut", ())


def _hang_words(absent: Sequence[int], names: Sequence[str], limit_s: float) -> str:
    if not absent:
        return (
            f"the ranks waited more than {limit_s:g} s for each other, but all of them answer: one "
            "of them, or the network, is slow; raise cluster.collective_timeout_s"
        )
    told = ", ".join(f"rank {rank} ({names[rank]})" for rank in absent)
    return f"{told} did not come within {limit_s:g} s and does not answer: it hangs"


class _Call:
    """One rank's part in a roll call; asks in a thread, since a store that hangs never answers."""

    def __init__(self, store: Store, rank: int, world: int, late: bool) -> None:
        self._store = store
        self._rank = rank
        self._world = world
        self._marks = {rank: _LATE if late else _CUT_OFF}
        self._answered_at = time.monotonic()
        threading.Thread(target=self._ask, daemon=True).start()

    def is_about_a_hang(self) -> bool:
        """Whether anybody's limit ran out, after giving them time to say so."""
        self._wait(_CUT_OFF_S, lambda: _LATE in self._marks.copy().values())
        return _LATE in self._marks.copy().values()

    def absent(self, wait_s: float) -> tuple[int, ...]:
        """Who has left no mark within `wait_s`; rank 0, which serves the store, when that is
        silent."""
        self._wait(wait_s, lambda: len(self._marks) == self._world or self._is_silent())
        if self._is_silent() and len(self._marks) < self._world:
            return (0,)
        return tuple(sorted(set(range(self._world)) - set(self._marks.copy())))

    def _is_silent(self) -> bool:
        return time.monotonic() - self._answered_at > _SILENCE_S

    def _wait(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not is_enough() and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _ask(self) -> None:
        """Until all marks are there; a store whose server has ended is silent at once."""
        try:
            self._store.set(_MARK.format(rank=self._rank), self._marks[self._rank])
            while len(self._marks) < self._world:
                for rank in set(range(self._world)) - set(self._marks):
                    if self._store.check([_MARK.format(rank=rank)]):
                        self._marks[rank] = self._store.get(_MARK.format(rank=rank))
                    self._answered_at = time.monotonic()
                time.sleep(_LOOK_S)
        except RuntimeError:
            self._answered_at = -math.inf
