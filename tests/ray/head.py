"""A Ray cluster of one machine that asks for a token, as `ray start` makes it; and commands to it.

Everything lies in one folder, which is also its HOME, so that the user's own token and clusters
are not touched.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
REPO = Path(__file__).parents[2]
_PORTS = (
    "port",
    "dashboard-port",
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
)
_UP_S = 60.0
_IN_START = '        "event": "start",\n'
CHANGE = "a change of mine"
"""What the training job of the checkout prints, and its workers write into a run's journal; the
installed code does neither."""


@dataclass(frozen=True, slots=True)
class Head:
    """A running cluster. address: of its dashboard. checkout: a copy of the code to submit from.
    temp: what Ray itself writes."""

    folder: Path
    temp: Path
    address: str
    token: str
    checkout: Path
    ports: tuple[int, ...]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def python(self) -> str:
        return sys.executable

    def environment(self, **changed: str | None) -> dict[str, str]:
        values = clean_environment(self.folder) | {
            "RAY_API_SERVER_ADDRESS": self.address,
            "TMPDIR": str(self.folder / "tmp"),
        }
        values |= {name: value for name, value in changed.items() if value is not None}
        return {name: value for name, value in values.items() if name not in _gone(changed)}

    def start(self, *words: str, **changed: str | None) -> "subprocess.Popen[str]":
        """A command of the checkout; a variable that is None is taken away."""
        process = subprocess.Popen(
            [sys.executable, "-m", "service", *words],
            cwd=self.checkout,
            env=self.environment(**changed),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: str, **changed: str | None) -> "subprocess.CompletedProcess[str]":
        process = self.start(*words, **changed)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.address}{path}")
        request.add_header("Authorization", f"Bearer {self.token}")
        return urllib.request.urlopen(request, timeout=5)


def clean_environment(home: Path) -> dict[str, str]:
    """This process's, without anything of Ray's, with `home` as HOME."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"HOME": str(home), "PATH": f"{BIN}:{kept['PATH']}", "OMP_NUM_THREADS": "1"}
    return kept | own | {"PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def head(folder: Path, cpus: int = 2) -> Iterator[Head]:
    """A cluster in `folder` with so many logical CPUs; afterwards none of its processes is left."""
    token = secrets.token_hex(16)
    (folder / ".ray").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / ".ray" / "auth_token").write_text(token)
    ports = _free_ports(len(_PORTS))
    # A socket's path has 107 bytes at most, and Ray's own part of it is long.
    temp = Path(tempfile.mkdtemp(prefix="head-"))
    found = Head(
        folder, temp, f"http://127.0.0.1:{ports[1]}", token, checkout(folder), tuple(ports)
    )
    options = [f"--{name}={port}" for name, port in zip(_PORTS, ports, strict=True)]
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
        *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"),
        *("--object-store-memory=100000000", f"--temp-dir={temp}", *options),
    ]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command,
        cwd=folder,
        # Ray would wait half a minute for its own detached actors to leave.
        env=clean_environment(folder)
        | {"RAY_AUTH_MODE": "token", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_up(found, process)
        yield found
    finally:
        for started in found.started:
            if started.poll() is None:
                started.kill()
            started.communicate()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            log.close()
            shutil.rmtree(temp, ignore_errors=True)


def checkout(folder: Path) -> Path:
    """A copy of the code, as a researcher's own, with a change in what the driver runs and one in
    what the workers run."""
    made = folder / "checkout"
    for name in ("service", "jobs"):
        shutil.copytree(REPO / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    _add(made / "jobs/train.py", f'    print("{CHANGE}", flush=True)\n', "    check_versions()\n")
    _add(made / "service/training/events.py", f'        "{CHANGE}": True,\n', _IN_START)
    return made


def _add(file: Path, lines: str, before: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, f"{file} has not one place for the change"
    file.write_text(text.replace(before, lines + before))


def processes_of(found: Head) -> list[str]:
    """Command lines of the cluster's processes and of what they started, but not of this process:
    they name one of its folders, or have it as their HOME."""
    left = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                words = (path / "cmdline").read_bytes().decode(errors="replace")
                variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            named = any(str(folder) in words for folder in (found.folder, found.temp))
            if named or f"HOME={found.folder}" in variables:
                left.append(words.replace("\0", " ")[:200])
    return left


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _gone(changed: dict[str, str | None]) -> set[str]:
    return {name for name, value in changed.items() if value is None}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_until_up(found: Head, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + _UP_S
    while time.monotonic() < until:
        assert process.poll() is None, (found.folder / "head.log").read_text()
        try:
            found.get("/api/version").close()
            # Jobs are taken once an agent is there.
            found.get("/api/jobs/").close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise AssertionError((found.folder / "head.log").read_text())
