"""Prometheus and Alertmanager as children of this process, which never outlive it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from service.errors import WatchError
from service.watching.interrupts import Interrupts

READY_S = 300.0
"""Seconds in which a program must be ready; Prometheus reads its history first."""
_END_S = 10.0
_LOOK_S = 0.1
_LAST_LINES = 5
_SET_PARENT_DEATH_SIGNAL = 1
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy of the environment does not reach this machine's loopback."""


@dataclass(frozen=True, slots=True)
class Order:
    """A program to start. words: its path and options. log: file of what it prints."""

    title: str
    words: tuple[str, ...]
    url: str
    log: Path


class Server:
    """A program that was started.

    Raises:
        WatchError: it cannot be started.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        try:
            with order.log.open("wb") as log:
                self._process = subprocess.Popen(
                    order.words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in the terminal is for this process alone, which ends its children.
                    start_new_session=True,
                    preexec_fn=_end_with_parent(),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise WatchError(f"cannot start {order.words[0]}: {error}") from error
        self.pid = self._process.pid

    def require_alive(self) -> None:
        """Raises WatchError, with the end of its log, when it has ended."""
        status = self._process.poll()
        if status is None:
            return
        lines = self.order.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise WatchError(
            f"{self.order.title} ended by itself with {how}; its last words in "
            f"{self.order.log}:{said}"
        )

    def is_ready(self) -> bool:
        try:
            _DIRECT.open(f"{self.order.url}/-/ready", timeout=5.0).close()
        except (OSError, HTTPException):
            return False
        return True

    def end(self) -> None:
        """Asks it to end, without waiting."""
        self._process.terminate()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """Ends it at once, and waits for that."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(
    orders: Sequence[Order], interrupts: Interrupts, tell: Callable[[str], None]
) -> Iterator[list[Server]]:
    """The servers, ready unless there was an interrupt; ended after the block, also by an error.

    Each is asked to end and has ten seconds; one more interrupt kills it. To be entered by the main
    thread, and before others run: children end with the thread that started them.

    Raises:
        WatchError: a program cannot be started, ends by itself, or is not ready in time.
    """
    servers: list[Server] = []
    try:
        for order in orders:
            servers.append(Server(order))
        for server in servers:
            _wait_until_ready(server, interrupts, tell)
        yield servers
    finally:
        _end(servers, interrupts)


def _wait_until_ready(server: Server, interrupts: Interrupts, tell: Callable[[str], None]) -> None:
    start, told = time.monotonic(), False
    while not server.is_ready():
        server.require_alive()
        waited = time.monotonic() - start
        if waited > READY_S:
            raise WatchError(
                f"{server.order.title} is not ready after {READY_S:g} s; see {server.order.log}"
            )
        if waited > 5.0 and not told:
            tell(f"{server.order.title} is not ready yet; it may have much history to read")
            told = True
        if interrupts.wait(_LOOK_S):
            return
    # Whoever answered may have been another program, at a port that ours could not get.
    server.require_alive()


def _end(servers: Sequence[Server], interrupts: Interrupts) -> None:
    until, before = time.monotonic() + _END_S, interrupts.count
    for server in servers:
        server.end()
    while not all(server.has_ended() for server in servers):
        if time.monotonic() > until or interrupts.count > before:
            break
        time.sleep(_LOOK_S)
    for server in servers:
        server.kill()


def _end_with_parent() -> Callable[[], None] | None:
    """For the child, before it becomes the program: Linux ends it when this process dies, however.

    Other systems have no such thing; there kill -9 of this process leaves its children.
    """
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def tie() -> None:
        # Our own handler of the signal would swallow it until the program has taken over.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
        if os.getppid() != parent:  # It died before the call.
            os._exit(1)

    return tie
