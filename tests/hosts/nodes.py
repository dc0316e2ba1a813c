"""A Ray cluster on hosts, as machines form one: a head that trains nothing, and nodes with CPUs."""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hosts.netns import Host, hosts

PORT = 6379
HEAD = "head"
PYTHON = sys.executable
RAY = (PYTHON, "-m", "ray.scripts.scripts")
_UP_S = 60.0
_STARTED = "Ray runtime started"
_NODE = "raylet/raylet"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The head asks its nodes often: some seconds without an answer are a lost node.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_ASK = """
import json, ray
ray.init(address="{address}", log_to_driver=False, configure_logging=False)
print(json.dumps({expression}))
"""
_GROUPS = "[str(group['state']) for group in ray.util.placement_group_table().values()]"
_NODES = "{node['NodeManagerAddress']: node['NodeID'] for node in ray.nodes() if node['Alive']}"


@dataclass(slots=True)
class Machines:
    """Hosts with Ray on them. logs: what their programs print."""

    hosts: Mapping[str, Host]
    logs: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def head(self) -> Host:
        return self.hosts[HEAD]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    def start(self, **cpus: int) -> None:
        """Starts Ray's head if there is none, then nodes with so many CPUs, by their host.

        Raises:
            RuntimeError: one ended instead, or is not up in time.
        """
        if HEAD not in self.nodes:
            own = ("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
            self._started({HEAD: own})
        join = f"--address={self.address}"
        self._started({name: (join, f"--num-cpus={number}") for name, number in cpus.items()})

    def _started(self, words: Mapping[str, Sequence[str]]) -> None:
        before = {name: self._log(name).count(_STARTED) for name in words}
        for name, own in words.items():
            host = self.hosts[name]
            every = (
                "--block",
                f"--node-ip-address={host.address}",
                f"--temp-dir={host.folder / 'ray'}",
                "--object-store-memory=100000000",
            )
            log = self.logs / f"{name}.log"
            self.nodes[name] = host.start((*RAY, "start", *own, *every), log)
        until = time.monotonic() + _UP_S
        for name, count in before.items():
            while self._log(name).count(_STARTED) == count:
                if self.nodes[name].poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"Ray on {name} is not up:\n{self._log(name)}")
                time.sleep(0.05)

    def _log(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def where(self, name: str) -> dict[str, int]:
        """How many processes with `name` in their command line each host has; hosts with none are
        left out."""
        counts = {host.name: len(host.pids(name)) for host in self.hosts.values()}
        return {host: count for host, count in counts.items() if count}

    def placement_groups(self) -> list[str]:
        """The states of all placement groups that there ever were."""
        return self._asked(_GROUPS)

    def preempt(self, name: str, notice_s: int) -> None:
        """Tells Ray that the host will be taken away, as a cloud does with spot machines; its node
        ends when the notice does."""
        node = self._asked(_NODES)[self.hosts[name].address]
        words = ("--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION")
        why = ("--reason-message", "spot", "--deadline-remaining-seconds", str(notice_s))
        self.head.run((*RAY, "drain-node", f"--address={self.address}", *words, *why))

    def wait_until_left(self, name: str, timeout_s: float) -> None:
        """Until the host's node has ended by itself; `ray start` stays there with what it logs.

        Raises:
            TimeoutError: it goes on.
        """
        until = time.monotonic() + timeout_s
        while self.hosts[name].pids(_NODE):
            if time.monotonic() > until:
                raise TimeoutError(f"Ray's node on {name} goes on:\n{self._log(name)}")
            time.sleep(0.2)

    def _asked(self, expression: str) -> Any:
        """What Ray's head says to a Python expression."""
        program = _ASK.format(address=self.address, expression=expression)
        return json.loads(self.head.run((PYTHON, "-c", program)))


@contextmanager
def machines(
    names: Sequence[str], logs: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Machines]:
    """Hosts with a common token, the first of them the head's; no Ray runs on them yet.

    environment: variables beyond `ENVIRONMENT`.
    """
    token = secrets.token_hex(32)
    with hosts((HEAD, *names), {**ENVIRONMENT, **(environment or {})}) as found:
        for host in found.values():
            file = host.folder / "home" / ".ray" / "auth_token"
            file.parent.mkdir()
            file.touch(mode=0o600)
            file.write_text(token)
        yield Machines(found, logs)
