"""`crossreid train` on the head's host, and what its journal says."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.training.journal import Event, read_journal
from tests.hosts.nodes import PYTHON, Machines


@dataclass(frozen=True, slots=True)
class Driver:
    """A run's driver. folder: the run's. log: what it prints."""

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def events(self, *kinds: str) -> list[Event]:
        """The journal's lines of these kinds; of all without any."""
        return [e for e in read_journal(self.folder) if not kinds or e["event"] in kinds]

    def wait_for(self, found: Callable[[Event], bool], timeout_s: float) -> Event:
        """The first line of the journal that is looked for.

        Raises:
            AssertionError: the driver ended before, or it takes too long.
        """
        until = time.monotonic() + timeout_s
        while True:
            over = self.process.poll() is not None or time.monotonic() > until
            for event in self.events():
                if found(event):
                    return event
            assert not over, f"exit {self.process.poll()}, no such event:\n{self.log.read_text()}"
            time.sleep(0.05)

    def step(self, number: int, timeout_s: float = 300.0, attempt: int = 1) -> Event:
        """The line of the first step from `number` on, of this or a later attempt."""
        return self.wait_for(
            lambda e: e["event"] == "steps" and e["step"] >= number and e["attempt"] >= attempt,
            timeout_s,
        )

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def ended(self, timeout_s: float = 300.0) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)


def drive(
    machines: Machines,
    config: Path,
    storage: Path,
    name: str,
    *words: str,
    is_new: bool = True,
) -> Driver:
    """Starts run `name` of `config` on the cluster, or continues it. words: overrides."""
    log = machines.logs / f"{name}.log"
    fixed = (f"cluster.address={machines.address}", f"run.storage={storage}")
    which = ("--run-id" if is_new else "--resume", name)
    train = (PYTHON, "-m", "service", "train", str(config), *which)
    process = machines.head.start((*train, *fixed, *words), log)
    return Driver(process, storage / name, log)
