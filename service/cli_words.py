"""What the files of the command line share."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.errors import ExitCode

Run = Callable[[argparse.Namespace], int]
Command = Callable[[Any, str, Run, str], argparse.ArgumentParser]
"""Adds a command with the options that every command has: commands, name, run, help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found: values for machines, text for people, and its exit code."""

    values: dict[str, Any]
    text: str
    exit_code: int = ExitCode.OK


def add_checkpoint(evaluate: argparse.ArgumentParser) -> None:
    """Which checkpoint an evaluation takes."""
    evaluate.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last (default), best (lowest cross-entropy), or a step",
    )
