"""Programs in processes of their own: a command of the product, with the Ray cluster that it starts
or uses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.kills import AGENTS
from tests.ray.processes import pids_in

ROOT = Path(__file__).parents[2]
ENDED_S = 20.0
"""Seconds in which a killed driver's processes are gone."""
SEARCH_S = 90.0
"""Seconds in which also Ray's own agents are: for a minute they look for the cluster's head."""


class Program:
    """It leads a session, which all its processes stay in.

    folder: for its output. words: its command line. variables: of its environment, beside those of
    this process.
    """

    def __init__(
        self, folder: Path, name: str, words: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self.name = f"{name}-{time.monotonic_ns()}"
        self._out, self._err = folder / f"{self.name}.json", folder / f"{self.name}.log"
        kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.environment = {**kept, "OMP_NUM_THREADS": "1", **variables}
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                words,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative after a signal."""
        return self._process.poll()

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def errors(self) -> str:
        """What it said besides."""
        return self._err.read_text()

    def pids(self, name: str = "") -> list[int]:
        """Its live processes whose command line contains `name`, oldest first."""
        return pids_in(self._process.pid, name)

    def wait(self, timeout_s: float = 300.0) -> int:
        """Its exit code, once it has ended; it is killed after that time."""
        try:
            return self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            return self._process.wait()

    def terminate(self) -> None:
        """Asks it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """As the kernel does when memory runs out: without a word."""
        self._process.kill()
        self._process.wait()

    def left(self) -> list[int]:
        """Its processes that outlive it, seconds after its end."""
        begin = time.monotonic()
        while pids := self.pids():
            agents = [pid for name in AGENTS for pid in self.pids(name)]
            limit = SEARCH_S if set(pids) <= set(agents) else ENDED_S
            if time.monotonic() - begin > limit:
                break
            time.sleep(0.1)
        return pids

    def end(self) -> None:
        """Ends whatever of it still lives."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Command(Program):
    """`crossreid WORDS --json`; a cluster that it starts is in its session.

    folder: for its output. ray: where Ray keeps the files of its clusters, a short path. launcher:
    what starts it. variables: of its environment.
    """

    def __init__(
        self,
        folder: Path,
        ray: Path,
        *words: str,
        launcher: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        program = (sys.executable, *launcher, "-m", "service", *words, "--json")
        super().__init__(folder, words[0], program, {"RAY_TMPDIR": str(ray), **(variables or {})})

    @property
    def result(self) -> dict[str, Any]:
        """What it printed."""
        return json.loads(self.output)
