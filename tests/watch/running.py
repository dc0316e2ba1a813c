"""Real runs, each with a driver of its own as people start it, and those who look at them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.config import Config
from service.telemetry.lines import BY_NAME, LABELS, PREFIX

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
_LEAST_S = 10
"""On a busy machine an exporter that was killed needs some of these to be whole again."""

Samples = dict[str, dict[tuple[str, ...], float]]
"""Line to its samples, by the values of the line's own labels."""


class Driver:
    """`crossreid train` or `tune` in a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / f"{words[0]}-{time.monotonic_ns()}.log"
        with self.log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", *words, "--json"],
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        """As the kernel does when memory runs out: without a word."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def drivers(folder: Path) -> Iterator[Any]:
    """Starts drivers; those that still run are ended at the end."""
    started: list[Driver] = []

    def start(*words: str) -> Driver:
        started.append(Driver(folder, *words))
        return started[-1]

    try:
        yield start
    finally:
        for driver in started:
            driver.end()


def written(config: Config, file: Path) -> str:
    file.write_text(config.to_yaml())
    return str(file)


class Listener:
    """A webhook that keeps every message of Alertmanager."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                listener.alerts += json.loads(self.rfile.read(size))["alerts"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, name: str, run: str, status: str = "firing") -> bool:
        return any(
            (a["labels"]["alertname"], a["labels"].get("run"), a["status"]) == (name, run, status)
            for a in self.alerts
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every message about alerts of that name."""
        return [a["labels"] for a in self.alerts if a["labels"]["alertname"] == name]

    def fired(self, run: str, *, but: str) -> set[str]:
        """Alerts about the run, but those of one signal."""
        about = [a["labels"] for a in self.alerts if a["labels"].get("run") == run]
        return {labels["alertname"] for labels in about if labels["signal"] != but}

    def open_ones(self) -> set[tuple[str, str]]:
        """Alerts, with their runs, whose last message was that they fire."""
        last = {a["fingerprint"]: a for a in self.alerts}
        return {
            (a["labels"]["alertname"], a["labels"].get("run", ""))
            for a in last.values()
            if a["status"] == "firing"
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Scraper:
    """Reads `/metrics` a few times a second and keeps every different page."""

    def __init__(self, exporters: Path) -> None:
        self.pages: list[str] = []
        self._exporters = exporters
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where a run says that its exporter is; empty before there is one."""
        for file in self._exporters.glob("*.json"):
            return f"http://{json.loads(file.read_text())[0]['targets'][0]}/metrics"
        return ""

    def now(self) -> dict[tuple[str, str], Samples]:
        """What is served now, by run and trial; nothing when nobody serves."""
        return parsed(self._page())

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _page(self) -> str:
        try:
            with urlopen(self.address, timeout=5) as answer:
                return answer.read().decode()
        except (OSError, ValueError):
            return ""

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            page = self._page()
            if page and page not in self.pages[-1:]:
                self.pages.append(page)


def parsed(page: str) -> dict[tuple[str, str], Samples]:
    """A page of `/metrics` by run and trial."""
    found: dict[tuple[str, str], Samples] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            run, trial = (sample.labels[label] for label in LABELS)
            key = tuple(sample.labels[label] for label in BY_NAME[name].labels)
            found.setdefault((run, trial), {}).setdefault(name, {})[key] = sample.value
    return found


def hasty(folder: Path, factor: float) -> Path:
    """The deployed rules with every wait shortened, to `_LEAST_S` at least; their expressions
    stay."""
    folder.mkdir()
    for file in sorted(RULES.glob("*.yml")):
        content = yaml.safe_load(file.read_text())
        for rule in (rule for group in content["groups"] for rule in group["rules"]):
            for wait in ("for", "keep_firing_for"):
                if wait in rule:
                    rule[wait] = f"{max(_LEAST_S, round(_seconds(rule[wait]) / factor))}s"
        (folder / file.name).write_text(yaml.safe_dump(content))
    return folder


def _seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
