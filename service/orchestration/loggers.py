"""Ray Tune's own loggers, which write every report of a sweep down elsewhere too."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.telemetry.sinks.needs import check_needs


def check_loggers(names: Iterable[str]) -> None:
    """Refuses a logger whose package or login is missing, before anything is started.

    Raises:
        ConfigError: naming the package; or Weights & Biases has nobody to log in as.
    """
    check_needs(names, "tune.loggers")


def make_loggers(names: Iterable[str], sweep: str, path: Path) -> list[Any]:
    """Ray Tune's callbacks for `names`. sweep: its id. path: its folder.

    TensorBoard, CSV and JSON files come to lie in `<path>/tune/<trial>/`. MLflow writes where
    MLFLOW_TRACKING_URI says, else into `<path>/mlflow.db`; Weights & Biases obeys its WANDB_
    variables, so WANDB_MODE=offline sends nothing.
    """
    check_loggers(names)
    return [_make(name, sweep, path) for name in dict.fromkeys(names)]


def _make(name: str, sweep: str, path: Path) -> Any:
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

    match name:
        case "tensorboard":
            return TBXLoggerCallback()
        case "csv":
            return CSVLoggerCallback()
        case "json":
            return JsonLoggerCallback()
        case "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            here = None if "MLFLOW_TRACKING_URI" in os.environ else f"sqlite:///{path}/mlflow.db"
            return MLflowLoggerCallback(tracking_uri=here, experiment_name=sweep)
        case _:
            from ray.air.integrations.wandb import WandbLoggerCallback

            return WandbLoggerCallback(
                project=os.environ.get("WANDB_PROJECT", "crossreid"),
                group=sweep,
                mode=os.environ.get("WANDB_MODE"),
                dir=os.environ.get("WANDB_DIR", str(path)),
            )
