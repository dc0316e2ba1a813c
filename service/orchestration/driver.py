"""Who took a run's folder last. It is written down there, so that who looks can tell that driver's
work from what earlier ones left, whatever the machines' clocks say."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from service.errors import RunError
from service.training.files import write_text
from service.training.journal import last_attempt, read_journal

FILE_NAME = ".driver.json"
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray tells the process of a job by it who it is."""


@dataclass(frozen=True, slots=True)
class Driver:
    """job: the job on the cluster that it is, empty for one that is none. attempts: how often the
    run's workers had been started before it took the run."""

    job: str = ""
    attempts: int = 0


def write_driver(folder: Path) -> None:
    """Writes down that this process has taken the run in `folder`.

    Raises:
        RunError: it cannot be written.
    """
    try:
        driver = Driver(
            submission_of(os.environ.get(JOB_VARIABLE, "")), last_attempt(read_journal(folder))
        )
        write_text(folder / FILE_NAME, json.dumps(asdict(driver)) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot write {folder / FILE_NAME}: {error}; free space or check its rights"
        ) from error


def read_driver(folder: Path) -> Driver | None:
    """The last driver that took the run in `folder`; None where none has said so."""
    try:
        values = json.loads((folder / FILE_NAME).read_text("utf-8"))
        return Driver(str(values["job"]), int(values["attempts"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def submission_of(text: str) -> str:
    """The job's name in what Ray tells a job's process; empty where it tells none."""
    try:
        return str(json.loads(text)["metadata"]["job_submission_id"])
    except (ValueError, KeyError, TypeError):
        return ""
