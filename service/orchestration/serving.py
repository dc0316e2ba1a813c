"""A run's numbers for Prometheus: the hold on the exporter, and the file that says where it is.

`<storage>/exporters/<run id>.json` is a target file as Prometheus' file_sd reads it, there while
the run's driver lives, so that an exporter at any port is found. That of a trial which goes on
alone is `<sweep>.<trial>.json`.
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
from service.orchestration.sinks import storage_of
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
    scrape intervals at most, and `telemetry.linger_s` at most; the user's next interrupt ends that.
    trial: who says so.

    Raises:
        ClusterError: the exporter cannot be started, or not at the port that it must have.
    """
    config: Config = run.config
    if not config.telemetry.enabled:
        yield None
        return
    lease = acquire(config.telemetry, run.run_id, local=cluster.local)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(announced(storage_of(run.path), run.path, lease.reach))
            yield lease
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                _let_go(lease, on_progress, trial)


def _let_go(lease: ExporterLease, on_progress: OnProgress, trial: str) -> None:
    seconds = lease.release()
    if seconds:
        words = f"waiting until Prometheus has seen the end, {seconds:.0f} s at most"
        on_progress(Update(trial=trial, messages=(words,)))
        lease.wait_until_seen(seconds)


@contextlib.contextmanager
def announced(storage: Path, run: Path, target: str) -> Iterator[Path]:
    """Keeps the target file of the run in folder `run`, and removes those that lost drivers left.

    target: host:port. The file that comes is whole from the start.

    Raises:
        RunError: it cannot be written.
    """
    folder = storage / TARGETS
    file = folder / f"{'.'.join(run.relative_to(storage).parts)}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("*.json"):
            if is_held(storage.joinpath(*other.stem.split("."))) is False:
                with contextlib.suppress(PermissionError):  # another user's, for him to remove
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
