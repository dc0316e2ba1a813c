"""A run's or sweep's journals, sent to TensorBoard, MLflow or Weights & Biases afterwards."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigError, RunError
from service.orchestration.progress import MAIN_TRIAL, OnProgress, ignore, rows_progress
from service.orchestration.runs import Run, is_held, open_run
from service.orchestration.sinks import make_place, source_of, storage_of
from service.orchestration.sweeps import is_sweep
from service.telemetry.sinks.channel import Channel
from service.telemetry.sinks.feed import words
from service.telemetry.sinks.needs import check_needs
from service.training.journal import FILE_NAME

_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Export:
    """What came of one trial. where: where a person finds it. changed: what the place cannot keep
    as it was, and how often."""

    trial: str
    where: str
    numbers: int
    texts: int
    changed: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export(
    run: str,
    to: str,
    *,
    out: Path | None = None,
    storage: str = "runs",
    on_progress: OnProgress = ignore,
) -> list[Export]:
    """Sends everything that counts in the journals of a run, a sweep or a trial.

    run: an id below `storage`, or a folder. to: a name as in `telemetry.sinks`. out: TensorBoard's
    folder, instead of one in each run's own.

    Raises:
        RunError: there is no such run, it made no step, or the place takes nothing.
        ConfigError: a package or login is missing, or `out` says nothing for this place.
    """
    if out is not None and to != "tensorboard":
        raise ConfigError(f"--out is TensorBoard's folder and says nothing to {to}; leave it out")
    check_needs([to], "--to")
    found = open_run(run, storage)
    trials = _trials(found)
    if out is None:
        _refuse_doubled(found, to)
    place = make_place(to, storage_of(found.path), out=out, patience_s=_PATIENCE_S)
    count = rows_progress(on_progress, to)
    exports: list[Export] = []
    for number, trial in enumerate(trials, start=1):
        channel = Channel(source_of(found.path, found.run_id, trial), place)
        _send(channel, to, trial)
        if not channel.numbers + channel.texts:
            raise RunError(f"{found.path}: the journal of trial {trial} has no line to send yet")
        exports.append(
            Export(trial, channel.where, channel.numbers, channel.texts, channel.changed)
        )
        if len(trials) > 1:
            count(number, len(trials))
    return exports


def _trials(found: Run) -> list[str]:
    """The keys of the trials that have a journal.

    Raises:
        RunError: there are none.
    """
    folder = found.path
    if is_sweep(folder):
        trials = sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))
    else:
        trials = [MAIN_TRIAL] if (folder / FILE_NAME).is_file() else []
    if not trials:
        raise RunError(f"{folder} holds no {FILE_NAME}: it made no step yet, so nothing was told")
    return trials


def _refuse_doubled(found: Run, to: str) -> None:
    """A driver that trains now may send the same."""
    drivers = [path for path in (found.path, found.path.parent) if is_held(path) is not False]
    if drivers and to in found.config.telemetry.sinks:
        raise RunError(
            f"{drivers[0]} is being trained and goes to {to} by itself (telemetry.sinks); wait for "
            "its end" + (", or give --out" if to == "tensorboard" else "")
        )


def _send(channel: Channel, to: str, trial: str) -> None:
    try:
        channel.catch_up()
        channel.close()
    except Exception as error:
        where = f" at {channel.where}" if channel.where else ""
        raise RunError(
            f"{to} did not take trial {trial}{where}: {words(error)}. What was sent stays there; "
            "once it is well, the same command sends everything again"
        ) from error
