"""The words of `crossreid export`, and what it shows."""

import argparse
import os
from pathlib import Path
from typing import Any

from service.cli_words import Answer, Command, Run

_EPILOG = """\
MLflow writes where MLFLOW_TRACKING_URI says, else into mlflow.db next to the runs. Weights & Biases
obeys its WANDB_ variables; WANDB_MODE=offline keeps its files in the run's folder. Every call makes
new runs there; in MLflow the older ones are then marked as superseded.
"""


def add_export(commands: Any, command: Command, run: Run) -> None:
    """The subparser of `export`; it calls `run`, which asks `exported`."""
    text = "send a run's journal to TensorBoard, MLflow or W&B"
    parser = command(commands, "export", run, text)
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run_name", metavar="RUN", help="its id or folder, a sweep's or a trial's")
    parser.add_argument("--to", required=True, choices=("tensorboard", "mlflow", "wandb"))
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="TensorBoard's files go into a folder of the run's name there (RUN/tensorboard)",
    )
    parser.add_argument("--storage", default="runs", help="where ids are looked for")


def exported(args: argparse.Namespace) -> Answer:
    """Does it.

    Raises:
        CrossReidError: nothing to send, or nothing that takes it.
    """
    from service import views
    from service.orchestration.export import export

    with views.progress() as show:
        found = export(args.run_name, args.to, out=args.out, storage=args.storage, on_progress=show)
    values = {"to": args.to, "trials": [each.to_dict() for each in found]}
    lines = [f"{args.to}: {_amount(each.numbers, each.texts)} in {each.where}" for each in found]
    lines += [
        f"{each.trial}: {times} {what}" for each in found for what, times in each.changed.items()
    ]
    if args.to == "tensorboard":
        lines.append(f"look at it: tensorboard --logdir {_above([each.where for each in found])}")
    return Answer(values, "".join(f"{line}\n" for line in lines))


def _amount(numbers: int, texts: int) -> str:
    return f"{numbers:,} numbers and {texts:,} texts"


def _above(folders: list[str]) -> str:
    """The folder that all of them are in."""
    return os.path.commonpath(folders)
