"""One session of watching: both programs with our rules, and alerts as lines in a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from service.errors import WatchError
from service.watching.alerts import Board
from service.watching.deployment import Deployment, read_deployment
from service.watching.interrupts import Interrupts
from service.watching.listener import Listener, Message
from service.watching.orders import alertmanager_order, prometheus_order
from service.watching.places import Place, free_places
from service.watching.programs import ALERTMANAGER, PROMETHEUS, Program, find
from service.watching.runs import Runs
from service.watching.servers import Order, Server, running
from service.watching.settings import alertmanager_yaml, prometheus_yaml

TARGET_FILES = "exporters"
"""Folder of the storage in which every driver writes where its exporter is."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to watch, and where.

    storage: the folder of the runs. data: that of the history; both absolute. rules: another folder
    of rule files. targets: HOST:PORT of exporters that no run of the storage names.
    every_s: seconds between two scrapes. listen: host of both programs. port, alertmanager_port: 0
    takes a free one. webhook: URL that gets every alert as well.
    """

    storage: Path
    data: Path
    rules: Path | None = None
    targets: tuple[str, ...] = ()
    every_s: int = 5
    listen: str = "127.0.0.1"
    port: int = 9090
    alertmanager_port: int = 9093
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before anything starts. lacks: why there is no Alertmanager."""

    asked: Asked
    deployment: Deployment
    prometheus: Program
    alertmanager: Program | None
    lacks: str

    @property
    def target_files(self) -> Path:
        return self.asked.storage / TARGET_FILES

    @property
    def ports(self) -> dict[str, int]:
        """The option of each port that is needed, to the port."""
        ports = {"--port": self.asked.port}
        if self.alertmanager is not None:
            ports["--alertmanager-port"] = self.asked.alertmanager_port
        return ports


class Session:
    """What runs while the block of `watching` lasts."""

    def __init__(self, plan: Plan, servers: list[Server], board: Board) -> None:
        self.url = servers[0].order.url
        self._plan = plan
        self._servers = servers
        self._board = board
        self._runs = Runs(self.url, plan.asked.every_s)

    def look(self) -> list[str]:
        """What there is to tell, apart from alerts: runs that came or went, and silence.

        Raises:
            WatchError: a program ended by itself; says its last words.
        """
        for server in self._servers:
            server.require_alive()
        lines = self._runs.changes()
        if len(self._servers) > 1 and self._plan.deployment.has_watchdog:
            logs = " and ".join(str(server.order.log) for server in self._servers)
            lines += self._board.silence(time.monotonic(), f"Alerts on {self.url}, and at {logs}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Where everything is."""
        plan = self._plan
        shown = {server.order.title.lower(): _shown(server) for server in self._servers}
        return {
            "prometheus": shown["prometheus"],
            "alertmanager": shown.get("alertmanager"),
            "alertmanager_lacks": plan.lacks or None,
            "targets": list(plan.asked.targets),
            "target_files": str(plan.target_files),
            "every_s": plan.asked.every_s,
            "rules": [str(path) for path in plan.deployment.rules],
            "data": str(plan.asked.data),
        }


@contextmanager
def watching(asked: Asked, tell: Tell, interrupts: Interrupts) -> Iterator[Session]:
    """Both programs, ready unless there was an interrupt; they end with the block.

    Their history lies in `asked.data` and is there again the next time. Without an Alertmanager
    Prometheus runs alone, and `tell` says so. To be entered by the main thread.

    tell: takes a line for the terminal, from any thread.

    Raises:
        WatchError: Prometheus is missing or too old, a port is taken, the folder is in use or
            cannot be written, a program does not start or ends by itself.
    """
    plan = _planned(asked)
    board = Board(time.monotonic())

    def hear(message: Message) -> None:
        for line in board.hear(message, time.monotonic()):
            tell(line)

    with ExitStack() as stack:
        stack.enter_context(_held(asked.data))
        places = free_places(asked.listen, plan.ports)
        if plan.lacks:
            tell(f"without Alertmanager alerts are seen on Prometheus' page only: {plan.lacks}")
        if not places[0].is_loopback:
            tell(
                f"--listen {asked.listen}: whoever reaches that address can read the runs and "
                "silence alerts, without a password"
            )
        listener = Listener(hear)
        stack.callback(listener.close)
        orders = _orders(plan, places, listener.url)
        servers = stack.enter_context(running(orders, interrupts, tell))
        listener.start()
        yield Session(plan, servers, board)


def _planned(asked: Asked) -> Plan:
    prometheus = find(PROMETHEUS)
    alertmanager, lacks = None, ""
    try:
        alertmanager = find(ALERTMANAGER)
    except WatchError as error:
        lacks = str(error)
    deployment = read_deployment(asked.rules)
    return Plan(asked, deployment, prometheus, alertmanager, lacks)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other watch out of it."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise WatchError(
            f"another crossreid watch keeps its history in {folder}; look at that one or end it, "
            "or take another folder and other ports: --data FOLDER --port 0 --alertmanager-port 0"
        ) from error
    except OSError as error:
        raise WatchError(
            f"cannot keep a history in {folder}: {error.strerror or error}; name a folder that can "
            "be written: --data FOLDER"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _orders(plan: Plan, places: list[Place], listener: str) -> list[Order]:
    """How to start the programs; their settings are written."""
    asked = plan.asked
    try:
        plan.target_files.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WatchError(
            f"cannot make {plan.target_files}, where runs say where they are scraped: "
            f"{error.strerror}; --storage FOLDER names the runs' folder"
        ) from error
    settings = prometheus_yaml(
        plan.deployment.prometheus,
        every_s=asked.every_s,
        targets=plan.asked.targets,
        target_files=plan.target_files,
        rules=plan.deployment.rules,
        alertmanager=places[1].reached if plan.alertmanager else None,
    )
    orders = [prometheus_order(plan.prometheus, places[0], asked.data, settings)]
    if plan.alertmanager:
        routes = plan.deployment.alertmanager
        settings = alertmanager_yaml(routes, listener=listener, webhook=asked.webhook)
        orders.append(alertmanager_order(plan.alertmanager, places[1], asked.data, settings))
    return orders


def _shown(server: Server) -> dict[str, Any]:
    return {"url": server.order.url, "pid": server.pid, "log": str(server.order.log)}
