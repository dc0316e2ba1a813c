"""A run's numbers for Prometheus: the hold on the exporter, and the file that says where it is.

`<storage>/exporters/<run id>.json` is a target file as Prometheus' file_sd reads it, there while
the run's driver lives, so that an exporter at any port is found.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from service.config import Config
from service.errors import RunError
from service.orchestration.cluster import Cluster
from service.orchestration.progress import OnProgress, Update
from service.orchestration.runs import Run, is_held
from service.telemetry.exporter import ExporterLease, acquire
from service.training.files import write_text

TARGETS = "exporters"
"""Folder of target files, next to the runs."""


@contextlib.contextmanager
def served(
    run: Run, cluster: Cluster, on_progress: OnProgress, trial: str
) -> Iterator[ExporterLease | None]:
    """The run's hold on the cluster's exporter; None when telemetry is off.

    At the end waits until Prometheus, if one scrapes regularly, has seen that the run ended: two
    scrape intervals at most, and `telemetry.linger_s` at most. trial: who says so.

    Raises:
        ClusterError: the exporter cannot be started, or not at the port that it must have.
    """
    config: Config = run.config
    if not config.telemetry.enabled:
        yield None
        return
    lease = acquire(config.telemetry, run.run_id, local=cluster.local)
    with announced(run.path.parent, run.run_id, lease.reach):
        try:
            yield lease
        finally:
            seconds = lease.release()
            if seconds:
                words = f"waiting until Prometheus has seen the end, {seconds:.0f} s at most"
                on_progress(Update(trial=trial, messages=(words,)))
                with contextlib.suppress(KeyboardInterrupt):
                    lease.wait_until_seen(seconds)


@contextlib.contextmanager
def announced(storage: Path, run: str, target: str) -> Iterator[Path]:
    """Keeps the run's target file, and removes those that lost drivers left.

    target: host:port. The file that comes is whole from the start.

    Raises:
        RunError: it cannot be written.
    """
    folder = storage / TARGETS
    file = folder / f"{run}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("*.json"):
            if not is_held(storage / other.stem):
                other.unlink(missing_ok=True)
        write_text(file, json.dumps([{"targets": [target]}]) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot write {file}, by which Prometheus finds this run: {error}; check the folder's "
            "rights, or set telemetry.enabled=false"
        ) from error
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
