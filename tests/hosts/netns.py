"""Hosts on this machine: namespaces, each with an address, a name and a home of its own.

All interfaces are made inside namespaces whose names carry this process's id, the switch between
them too. So nothing of this machine's own network changes, runs side by side cannot collide, and
what a namespace holds ends with it. Only files and the process table are shared.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.77.0"
"""Of every `hosts()`: each has a network of its own, joined to no other."""
PORT = "eth0"
"""A host's interface, as it sees it."""
_PROGRAMS = {"ip": "iproute2", "bridge": "iproute2", "unshare": "util-linux", "mount": "mount"}
_NUMBERS = itertools.count(1)
_GONE_S = 20.0
_NOT_TAKEN = ("RAY_", "GLOO_", "NCCL_")
"""Variables of this process that say what holds on this machine only."""
_AS_HOST = (
    "sh",
    "-ec",
    'mount --bind "$HOST_NAMES" /etc/hosts; echo "$0" > /proc/sys/kernel/hostname; exec "$@"',
)
_NAMES = "127.0.0.1 localhost\n127.0.1.1 {name}\n"
"""As Debian's installer writes them: a host's own name leads to a loopback address."""


def missing() -> str:
    """Why hosts cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"hosts need `{program}` (on Debian: apt-get install {package})"
    try:
        with hosts(("one",)) as found:
            found["one"].run(("true",))
    except subprocess.CalledProcessError as error:
        return f"this machine makes no network namespaces: {error.stderr.strip()}"
    return ""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. address: its IPv4 address. folder: its own, short enough for sockets in it.
    switch: the namespace that holds the other end of its cable."""

    name: str
    namespace: str
    address: str
    folder: Path
    switch: str
    environment: Mapping[str, str] = field(default_factory=dict)
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """A program on this host, in a session of its own; what it prints goes to `log`."""
        with log.open("ab") as out:
            program = subprocess.Popen(
                (*self._inside, *words),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.programs.append(program)
        return program

    def run(self, words: Sequence[str], timeout_s: float = 60.0) -> str:
        """What a program on this host prints.

        Raises:
            CalledProcessError: it failed.
        """
        done = subprocess.run(
            (*self._inside, *words),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return _checked(done).stdout

    @property
    def _inside(self) -> tuple[str, ...]:
        return (*("ip", "netns", "exec", self.namespace, "unshare", "--uts"), *_AS_HOST, self.name)

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in os.environ if not name.startswith(_NOT_TAKEN)}
        own = {
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "HOST_NAMES": str(self.folder / "hosts"),
        }
        return {**kept, **own, **self.environment}

    def pids(self, name: str = "") -> list[int]:
        """Processes on this host whose command line contains `name`."""
        listed = _ip("netns", "pids", self.namespace).stdout.split()
        return [pid for pid in map(int, listed) if name in _command(pid)]

    def has_open(self, file: str) -> bool:
        """Whether a process on this host has this file open."""
        return any(file in _open_files(pid) for pid in self.pids())

    def kill(self) -> None:
        """Ends every process at once, as a lost machine does; returns when all are gone.

        Raises:
            TimeoutError: some are still there.
        """
        until = time.monotonic() + _GONE_S
        while pids := {*self.pids(), *(p.pid for p in self.programs if p.poll() is None)}:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name} still has the processes {pids}")
            time.sleep(0.05)

    def cut(self) -> None:
        """Pulls the network cable at the switch: what is sent vanishes without an answer."""
        _ip("-n", self.switch, "link", "set", "dev", self.name, "down")

    def join(self) -> None:
        """Puts the cable back."""
        _ip("-n", self.switch, "link", "set", "dev", self.name, "up")

    def isolate(self, how: bool = True) -> None:
        """Parts it from all other hosts that are isolated too; the rest it still reaches."""
        words = ("link", "set", "dev", self.name, "isolated", "on" if how else "off")
        _run("bridge", "-n", self.switch, *words)


@contextmanager
def hosts(
    names: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Host]]:
    """One host for each name, on one network, by name.

    environment: variables of all programs on them. At the end, and when the start fails midway,
    every process on them is killed and namespaces, interfaces and folders are removed.
    """
    prefix = f"cr{os.getpid()}-{next(_NUMBERS)}-"
    switch = f"{prefix}switch"
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix=prefix))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        _namespace(stack, switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found: dict[str, Host] = {}
        for number, name in enumerate(names, start=1):
            address = f"{SUBNET}.{number}"
            own = environment or {}
            host = Host(name, f"{prefix}{name}", address, root / name, switch, own)
            _namespace(stack, host.namespace)
            stack.callback(host.kill)
            _installed(host)
            found[name] = host
        yield found


def _namespace(stack: ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _installed(host: Host) -> None:
    """A home, names, and a cable to the switch, where its end is called as the host."""
    (host.folder / "home").mkdir(parents=True)
    (host.folder / "hosts").write_text(_NAMES.format(name=host.name))
    at = ("-n", host.namespace)
    ends = ("type", "veth", "peer", "name", host.name, "netns", host.switch)
    _ip(*at, "link", "add", "name", PORT, *ends)
    _ip(*at, "addr", "add", f"{host.address}/24", "dev", PORT)
    _ip(*at, "link", "set", PORT, "up")
    _ip("-n", host.switch, "link", "set", "dev", host.name, "master", "bridge", "up")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _open_files(pid: int) -> set[str]:
    found: set[str] = set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(link))
    return found


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return _run("ip", *words)


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return _checked(subprocess.run(words, capture_output=True, text=True))


def _checked(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Raises for a failure, and shows what the program said."""
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(f"{done.stdout}{done.stderr}")
        raise
    return done
