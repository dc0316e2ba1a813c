"""TensorBoard, MLflow and Weights & Biases for a run or sweep: while it trains, or afterwards."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from service.config import Config
from service.orchestration.progress import MAIN_TRIAL, OnProgress, Update
from service.orchestration.runs import Run
from service.orchestration.sweep_journal import FILE_NAME
from service.orchestration.sweeps import is_sweep
from service.telemetry.sinks.feed import Sinks
from service.telemetry.sinks.needs import check_needs
from service.telemetry.sinks.reading import Source
from service.telemetry.sinks.sink import Place

PATIENCE_S = 20.0
"""Seconds that a driver gives to one trial's last upload; less than it waits at its end."""


def check_sinks(config: Config) -> None:
    """Refuses what `telemetry.sinks` asks for and this machine lacks; starts nothing.

    Raises:
        ConfigError: naming the package or the login.
    """
    check_needs(config.telemetry.sinks, "telemetry.sinks")


@contextlib.contextmanager
def open_sinks(config: Config, run_id: str, folder: Path) -> Iterator[Sinks]:
    """The sinks of the run or sweep in `folder`, which follow its journals from the first event
    that they hear of a trial; at the end they are closed.

    Raises:
        ConfigError: as `check_sinks`.
    """
    check_sinks(config)
    places = {name: make_place(name, storage_of(folder)) for name in config.telemetry.sinks}
    sinks = Sinks(places, lambda trial: source_of(folder, run_id, trial))
    try:
        yield sinks
    finally:
        sinks.close()


@contextlib.contextmanager
def followed(run: Run, on_progress: OnProgress, speaker: str) -> Iterator[Sinks]:
    """`open_sinks` of a run or sweep; what they have to say at the end, `speaker` says.

    Raises:
        ConfigError: as `check_sinks`.
    """
    with open_sinks(run.config, run.run_id, run.path) as sinks:
        try:
            yield sinks
        finally:
            sinks.close()
            lines = tuple(sinks.messages())
            if lines:
                on_progress(Update(trial=speaker, messages=lines))


def make_place(
    name: str, storage: Path, *, out: Path | None = None, patience_s: float = PATIENCE_S
) -> Place:
    """The place that a name of `telemetry.sinks` says; nothing is reached for yet.

    storage: where MLflow's file goes when it has no server. out: TensorBoard's folder, instead of
    one in each run's own. patience_s: how long a run's last upload may take.
    """
    match name:
        case "tensorboard":
            from service.telemetry.sinks.event_files import TensorBoard

            return TensorBoard(out)
        case "mlflow":
            from service.telemetry.sinks.mlflow_runs import Mlflow

            return Mlflow(storage)
        case _:
            from service.telemetry.sinks.wandb_runs import WeightsAndBiases

            return WeightsAndBiases(patience_s)


def source_of(folder: Path, run_id: str, trial: str) -> Source:
    """Where the lines of a trial of the run or sweep in `folder` are.

    A trial that goes on alone, as a run of its own, still belongs to its sweep.
    """
    path = folder if trial == MAIN_TRIAL else folder / trial
    if is_sweep(path.parent):
        return Source(path.parent.name, path.name, path, path.parent / FILE_NAME)
    return Source(run_id, "", path, None)


def storage_of(folder: Path) -> Path:
    """The folder in which the run or sweep in `folder` lies, or its sweep if it is a trial."""
    return folder.parent.parent if is_sweep(folder.parent) else folder.parent
