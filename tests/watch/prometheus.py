"""A Prometheus of the tests' own, on loopback, and data for it without waiting.

with serving(folder) as server:
    server.at('reid_train_global_step{run="demo"}', time.time())
"""

import contextlib
import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.telemetry.lines import BY_NAME, LABELS, PREFIX, Values

IDLE = "global: {scrape_interval: 1h}\n"
"""A configuration that scrapes nothing."""

Series = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and (time, value) pairs."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All values of a trial at a time, in Unix seconds."""

    run: str
    trial: str
    at: float
    values: Values


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server; times are Unix seconds."""

    url: str
    pid: int

    def at(self, expr: str, when: float) -> list[Series]:
        """The instant query's series, each with one pair."""
        found = self.get("query", query=expr, time=when)["result"]
        return [(s["metric"], [_pair(s["value"])]) for s in found]

    def between(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """The range query's series."""
        found = self.get("query_range", query=expr, start=start, end=end, step=step)["result"]
        return [(s["metric"], [_pair(pair) for pair in s["values"]]) for s in found]

    def label_values(self, label: str, selector: str, start: float, end: float) -> list[str]:
        args = {"match[]": selector, "start": start, "end": end}
        return self.get(f"label/{urllib.parse.quote(label)}/values", **args)

    def get(self, path: str, **args: Any) -> Any:
        """The data of an API answer; raises AssertionError with Prometheus's own words."""
        query = urllib.parse.urlencode(args)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{args}: {error.read().decode()}") from None


def lacks() -> str:
    """Which of the needed programs this machine has not; empty when it has all."""
    return " and ".join(name for name in ("prometheus", "promtool") if shutil.which(name) is None)


@contextlib.contextmanager
def serving(folder: Path, config: str = IDLE) -> Iterator[Prometheus]:
    """A server with its data and configuration in `folder`; stopped by its process id at the end.

    What `backfill` put into `folder` is served.
    """
    (folder / "prometheus.yml").write_text(config)
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(_command(folder, port), stdout=log, stderr=log)
    try:
        _wait_until_ready(process, port, folder / "log")
        yield Prometheus(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def backfill(folder: Path, snapshots: Iterable[Snapshot], more: Iterable[str] = ()) -> None:
    """Writes the snapshots, and `more` lines of OpenMetrics, as blocks of a server in `folder`."""
    text = folder / "openmetrics.txt"
    text.write_text("\n".join([*openmetrics(snapshots), *more, "# EOF"]) + "\n")
    data = folder / "data"
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, data]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def openmetrics(snapshots: Iterable[Snapshot]) -> list[str]:
    """One line a sample, each series together and in time."""
    series: dict[str, list[tuple[float, float]]] = {}
    for shot in snapshots:
        for name, samples in shot.values.items():
            for key, value in samples.items():
                names = (*LABELS, *BY_NAME[name].labels)
                labels = dict(zip(names, (shot.run, shot.trial, *key), strict=True))
                series.setdefault(selector(PREFIX + name, labels), []).append((shot.at, value))
    return [f"{name} {_number(value)} {at:.3f}" for name in series for at, value in series[name]]


def selector(name: str, labels: Mapping[str, str]) -> str:
    """The series as text, its label values escaped."""
    pairs = (f"{label}={json.dumps(text, ensure_ascii=False)}" for label, text in labels.items())
    return f"{name}{{{','.join(pairs)}}}"


def _command(folder: Path, port: int) -> list[str | os.PathLike[str]]:
    return [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=10y",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5),
        ):
            return
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready after 30 s: {log.read_text()}")


def _pair(pair: tuple[float, str]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(float(value))
