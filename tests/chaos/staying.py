"""A Ray cluster on this machine that was there before a run's commands, and stays when they go."""

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.command import ROOT, Program
from tests.chaos.kills import AGENTS

LEFT_S = 90.0
"""Seconds after the last command's end in which nothing of it is left: for a minute the exporter
waits for a driver that was killed."""
_UP_S = 60.0
_STARTED = "Ray runtime started"
_CPUS = 2
_PORTS = (
    "port",
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
)
SHARED = ("ray::Exporter", "ray::_AutoscalingCoordinatorActor")
"""Actors that serve all runs of a cluster."""
_CLEANER = "PlacementGroupCleaner"
"""Ray's; where no dashboard tells it that its controller was killed, it waits for that for ever."""
_RAYS_OWN = ("_AutoscalingCoordinatorActor", _CLEANER)
_ASK = """
import json, ray
from ray._private import state
ray.init(log_to_driver=False, configure_logging=False)
groups, actors = ray.util.placement_group_table(), state.actors()
held = [key for key, group in groups.items() if group["state"] != "REMOVED"]
alive = [actor["ActorClassName"] for actor in actors.values() if actor["State"] != "DEAD"]
print(json.dumps({"groups": held, "actors": alive}))
"""


class Staying:
    """A head and its node, with room for a run's workers and no more.

    variables: what a command needs to join it.
    """

    def __init__(self, folder: Path, ray: Path) -> None:
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.variables = {
            "RAY_ADDRESS": f"127.0.0.1:{ports['port']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        own = {name: value for name, value in self.variables.items() if name != "RAY_ADDRESS"}
        # Ray would wait half a minute for its own detached actors to leave.
        own |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        words = (
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", f"--num-cpus={_CPUS}", "--include-dashboard=false"),
            *("--object-store-memory=100000000", f"--temp-dir={ray}"),
            *(f"--{name}={port}" for name, port in ports.items()),
        )
        self._program = Program(folder, "head", words, own)
        self.pids = self._program.pids
        self.end = self._program.end

    def wait_until_up(self) -> None:
        """
        Raises:
            RuntimeError: it ended instead, or takes too long.
        """
        until = time.monotonic() + _UP_S
        while _STARTED not in (told := self._program.output + self._program.errors):
            if self._program.exit_code is not None or time.monotonic() > until:
                raise RuntimeError(f"Ray's head is not up: {told}")
            time.sleep(0.1)

    def actors(self, *besides: str) -> list[int]:
        """Processes in which an actor lives, but for those that are called `besides`."""
        others = {pid for name in ("ray::IDLE", *AGENTS, *besides) for pid in self.pids(name)}
        return [pid for pid in self.pids("ray::") if pid not in others]

    def left(self, cleaners: int) -> Iterator[str]:
        """What of a run that has ended is still there, in words; then the cluster is stopped.

        cleaners: of Ray's own that may be left.
        """
        until = time.monotonic() + LEFT_S
        while found := list(self._held(cleaners)):
            if time.monotonic() > until:
                break
            time.sleep(1.0)
        yield from found
        self._program.terminate()
        self._program.wait(LEFT_S)
        if pids := self._program.left():
            yield f"after the end of the cluster there are still processes: {pids}"

    def _held(self, cleaners: int) -> Iterator[str]:
        asked = self._asked()
        if groups := asked["groups"]:
            yield f"the cluster still holds room for placement groups {groups}"
        if actors := [name for name in asked["actors"] if name not in _RAYS_OWN]:
            yield f"on the cluster there are still actors: {actors}"
        if (found := asked["actors"].count(_CLEANER)) > cleaners:
            yield f"Ray left {found} of its {_CLEANER}s for {cleaners} controllers that were killed"
        if pids := self.actors(*(f"ray::{name}" for name in _RAYS_OWN)):
            yield f"on the cluster there are still processes of actors: {pids}"

    def _asked(self) -> dict[str, list[str]]:
        """What the cluster holds, as its head says."""
        answer = subprocess.run(
            (sys.executable, "-c", _ASK),
            cwd=ROOT,
            env=self._program.environment | self.variables,
            capture_output=True,
            text=True,
            timeout=LEFT_S,
            check=True,
        )
        found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
        return found


@contextmanager
def staying(folder: Path, ray: Path) -> Iterator[Staying]:
    """A cluster that is up; afterwards nothing of it lives. folder: for its output. ray: where it
    keeps its files, a short path."""
    cluster = Staying(folder, ray)
    try:
        cluster.wait_until_up()
        yield cluster
    finally:
        cluster.end()


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
