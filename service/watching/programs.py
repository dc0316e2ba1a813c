"""The programs that watch: Prometheus and Alertmanager, found on the PATH and old enough or not."""

import re
import shutil
import subprocess
from dataclasses import dataclass

from service.errors import WatchError

_ANSWER_S = 20.0
_VERSION = re.compile(r"\bversion (\d+(?:\.\d+)+)")


@dataclass(frozen=True, slots=True)
class Need:
    """A program that is needed.

    names: what it may be called, the first one found is taken. least: its oldest version that
    will do. reason: what of ours needs that. package: Debian's name. releases: the project's own.
    """

    title: str
    names: tuple[str, ...]
    least: tuple[int, ...]
    reason: str
    package: str
    releases: str


@dataclass(frozen=True, slots=True)
class Program:
    """A program that will do. path: absolute."""

    title: str
    path: str
    version: str


PROMETHEUS = Need(
    title="Prometheus",
    names=("prometheus",),
    least=(2, 42),
    reason="the rules use keep_firing_for",
    package="prometheus",
    releases="https://prometheus.io/download/#prometheus",
)
ALERTMANAGER = Need(
    title="Alertmanager",
    names=("alertmanager", "prometheus-alertmanager"),
    least=(0, 22),
    reason="the routes use matchers",
    package="prometheus-alertmanager",
    releases="https://prometheus.io/download/#alertmanager",
)


def find(need: Need) -> Program:
    """The first program on the PATH that meets the need.

    Raises:
        WatchError: there is none; says what was found, what is needed and where it comes from.
    """
    found = []
    for path in filter(None, map(shutil.which, need.names)):
        said = _said(path)
        version = _VERSION.search(said)
        if version and _numbers(version[1]) >= need.least:
            return Program(need.title, path, version[1])
        found.append(f"{path} is {version[1]}" if version else f"{path} tells no version: {said}")
    names = " or ".join(need.names)
    least = ".".join(map(str, need.least))
    raise WatchError(
        f"{'; '.join(found) or f'no {names} on the PATH'}; needed is {need.title} {least} or newer "
        f"({need.reason}). Install Debian's package {need.package}, or put the program from "
        f"{need.releases} on the PATH"
    )


def _said(path: str) -> str:
    """What `--version` prints, wherever it prints it, or why it prints nothing."""
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C must not look like a program that says nothing.
            start_new_session=True,
            timeout=_ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return lines[0][:200] if lines else f"it ended with status {done.returncode} and no word"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
