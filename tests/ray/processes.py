"""Tests' own processes, by what their command line says; from /proc."""

import os
from pathlib import Path
from typing import NamedTuple


class _Stat(NamedTuple):
    """state: Z for one that has ended and that nobody has asked about yet."""

    state: str
    parent: int
    session: int


def pids_of(name: str) -> list[int]:
    """Descendants of this process whose command line contains `name`."""
    return [pid for pid in _all() if name in _command(pid) and _is_ours(pid)]


def pids_in(session: int, name: str = "") -> list[int]:
    """Live processes of a session whose command line contains `name`, oldest first.

    session: the pid of the process that began it. Processes stay in it when their parent dies.
    """
    found = []
    for pid in _all():
        stat = _stat(pid)
        if stat.session == session and stat.state != "Z" and name in _command(pid):
            found.append(pid)
    return sorted(found, key=_began)


def _all() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = _stat(pid).parent
    return False


def _stat(pid: int) -> _Stat:
    values = _stat_values(pid)
    return _Stat(values[0], int(values[1]), int(values[3])) if values else _Stat("Z", 0, 0)


def _began(pid: int) -> int:
    """Ticks since the machine's start."""
    values = _stat_values(pid)
    return int(values[19]) if values else 0


def _stat_values(pid: int) -> list[str]:
    """What /proc says after the command's name; nothing about one that is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return stat.rpartition(")")[2].split()
