"""The `summary.json` of a run's or a sweep's folder."""

import json
from pathlib import Path
from typing import Any

from service.errors import RunError
from service.training.files import write_text

SUMMARY_FILE = "summary.json"
_DAMAGED = "{file} is damaged: {found}; move it away, the journal and the checkpoints are whole"


def read_summary(path: Path) -> dict[str, Any] | None:
    """The `summary.json` of the run in `path`; None before there is one.

    Raises:
        RunError: it is damaged.
    """
    file = path / SUMMARY_FILE
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(_DAMAGED.format(file=file, found=error)) from error
    if not isinstance(summary, dict):
        raise RunError(_DAMAGED.format(file=file, found=f"it holds a {type(summary).__name__}"))
    return summary


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json` into `path`, whole or not at all."""
    write_text(path / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
