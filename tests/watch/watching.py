"""`crossreid watch` as people start it: as a process, here on free ports and in a test's folder."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
FREE_PORTS = ("--port", "0", "--alertmanager-port", "0")


class Watch:
    """A running command. shown: the lines that it printed when it was ready. facts: those as JSON,
    if they were asked for so."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, as_json: bool) -> None:
        self.process = process
        self._errors = errors
        assert process.stdout is not None
        self.shown = [process.stdout.readline().rstrip()]
        while not as_json and self.shown[-1] and "Ctrl-C" not in self.shown[-1]:
            self.shown.append(process.stdout.readline().rstrip())
        assert self.shown[-1], f"it ended: {self.said()}"
        self.facts: dict[str, Any] = json.loads(self.shown[0]) if as_json else {}

    @property
    def url(self) -> str:
        return self.facts["prometheus"]["url"]

    @property
    def pids(self) -> list[int]:
        return [program["pid"] for program in self._programs]

    @property
    def ports(self) -> list[int]:
        return [urlsplit(program["url"]).port or 0 for program in self._programs]

    @property
    def _programs(self) -> list[dict[str, Any]]:
        found = (self.facts.get(name) for name in ("prometheus", "alertmanager"))
        return [program for program in found if program]

    def said(self) -> str:
        """All of standard error until now."""
        return self._errors.read_text()

    def lines(self, word: str) -> list[str]:
        """The lines that were said with this word in them, without their time."""
        return [line[10:] for line in self.said().splitlines() if word in line]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Interrupts it, as a terminal does: its whole group; its exit status."""
        os.killpg(self.process.pid, number)
        return self.process.wait(timeout=60)


@contextmanager
def started(
    folder: Path, *words: str, env: dict[str, str] | None = None, as_json: bool = True
) -> Iterator[Watch]:
    """The command, ready, with `folder`/runs as its storage; ended at the end if it still runs."""
    errors = folder / "stderr"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command(folder, *FREE_PORTS, *(["--json"] if as_json else []), *words),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=ROOT,
            env=env,
            start_new_session=True,
        )
    watch = None
    try:
        watch = Watch(process, errors, as_json)
        yield watch
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
        for pid in filter(is_alive, watch.pids if watch else ()):
            os.kill(pid, signal.SIGKILL)


def refused(
    folder: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command when it is expected to end by itself."""
    return subprocess.run(
        command(folder, *words),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=env,
        check=False,
    )


def command(folder: Path, *words: str) -> Sequence[str]:
    start = (sys.executable, "-m", "service", "watch", "--storage", str(folder / "runs"))
    return (*start, "--every", "1", *words)


def only(folder: Path, **programs: Path | str) -> dict[str, str]:
    """An environment whose PATH has nothing but these: a program to link to, or a script's text."""
    folder.mkdir()
    for name, program in programs.items():
        place = folder / name
        if isinstance(program, Path):
            place.symlink_to(program)
        else:
            place.write_text(f"#!/bin/sh\n{program}\n")
            place.chmod(0o755)
    return {**os.environ, "PATH": str(folder)}


def eventually(is_so: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Waits until it is so; whether it became so in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.1)
    return False


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
