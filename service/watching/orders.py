"""How each program is started: its settings, its data and where it listens."""

import os
from pathlib import Path

from service.errors import WatchError
from service.watching.places import Place
from service.watching.programs import Program
from service.watching.servers import Order

KEPT = {"time": "90d", "size": "10GB"}
"""How long and how large the history may become; the oldest goes first."""


def prometheus_order(program: Program, place: Place, data: Path, settings: str) -> Order:
    """Prometheus with these settings and its history in `data`."""
    options = (
        f"--config.file={_written(data / 'prometheus.yml', settings)}",
        f"--storage.tsdb.path={data / 'prometheus'}",
        *(f"--storage.tsdb.retention.{kind}={limit}" for kind, limit in KEPT.items()),
        # What fires at once is told before Alertmanager is known, to nobody: said again soon.
        "--rules.alert.resend-delay=20s",
    )
    return _order(program, place, options, data / "prometheus.log")


def alertmanager_order(program: Program, place: Place, data: Path, settings: str) -> Order:
    """Alertmanager with these settings, alone, and its silences in `data`."""
    folder = data / "alertmanager"
    # What it told to the last terminal; this one has heard nothing yet.
    (folder / "nflog").unlink(missing_ok=True)
    options = (
        f"--config.file={_written(data / 'alertmanager.yml', settings)}",
        f"--storage.path={folder}",
        "--cluster.listen-address=",
    )
    return _order(program, place, options, data / "alertmanager.log")


def _order(program: Program, place: Place, options: tuple[str, ...], log: Path) -> Order:
    web = (f"--web.listen-address={place.listen}", f"--web.external-url={place.url}/")
    words = (program.path, *options, *web, "--log.level=warn")
    return Order(program.title, words, place.url, log)


def _written(path: Path, settings: str) -> Path:
    """Writes settings, which may hold a webhook's secret, for the owner's eyes."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)
            file.write(settings)
    except OSError as error:
        raise WatchError(f"cannot write {path}: {error.strerror}; see --data") from error
    return path
