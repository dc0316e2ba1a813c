"""Reads a run's folder and says where the run stands."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from service.errors import RunError
from service.orchestration.driver import Driver, read_driver
from service.orchestration.runs import Run, is_held, is_run, is_seen, open_run
from service.orchestration.space import num_trials
from service.orchestration.standing import Life, Standing, standing
from service.orchestration.summary import read_summary
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal
from service.orchestration.sweep_standing import sweep_standing
from service.redaction import shown_url
from service.training.journal import read_journal
from service.training.store import folder_name

ANSWER = "crossreid-standing "
"""How the line begins on which a job says where a run stands."""


def is_there(folder: Path) -> bool:
    """Whether there is a run in `folder`.

    Raises:
        RunError: this process may not look.
    """
    with _readable(folder):
        return is_run(folder)


def find_standing(folder: Path, life: Life) -> Standing | None:
    """As `read_standing`; None when the folder is not seen from here, or may not be searched."""
    return read_standing(folder, life) if is_seen(folder) else None


def read_standing(folder: Path, life: Life | None = None) -> Standing:
    """Where the run or sweep in `folder` stands now; changes nothing there.

    life: what is known of its job; what the folder tells of its driver is found out here.

    Raises:
        RunError: `folder` is no run's, may not be read, or does not say whether it is trained.
        ConfigError: its config is damaged.
    """
    with _readable(folder):
        return _read(folder, life or Life())


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the run's folder {folder} cannot be read: {error}; look as the user who trains it, "
            "or have its rights changed"
        ) from error


def _read(folder: Path, known: Life) -> Standing:
    run = open_run(str(folder))
    held, driver = is_held(run.path), read_driver(run.path)
    life = _life(run, known, held, driver)
    try:
        summary = read_summary(run.path)
    except RunError as error:
        raise RunError(
            f"{error}; where run {run.run_id} stands cannot be told without it"
        ) from error
    now = time.time()
    # Not by `tune.space`, which a plain run may have as well. Before its first line a sweep has no
    # more to tell than a run.
    if (run.path / FILE_NAME).is_file():
        lines = SweepJournal(run.path / FILE_NAME).read()
        total = num_trials(run.config)
        found = sweep_standing(run.run_id, lines, total=total, now=now, life=life, summary=summary)
        found = replace(found, begun=bool(found.trials))
    else:
        found = standing(
            run.run_id,
            read_journal(run.path),
            now=now,
            life=life,
            summary=summary,
            place=lambda step: _place(run, step),
        )
    # A job that never took the folder has trained nothing, whatever stands there.
    is_its = driver is None or known.job_id in ("", driver.job)
    return replace(found.at(str(run.path)), begun=found.begun and is_its)


def _life(run: Run, known: Life, held: bool | None, driver: Driver | None) -> Life:
    """What is known of the run's job, with what its folder tells of the driver that took it last.

    Raises:
        RunError: nobody says whether a driver trains it now.
    """
    if held is None and known.job is None:
        raise RunError(
            f"whether run {run.run_id} is being trained cannot be told: the lock in {run.path} may "
            "not be looked at; --address URL asks its cluster"
        )
    if driver is None:
        return replace(known, held=bool(held))
    # A job that has ended is not waited for, whoever drives the run now.
    is_taken = not known.is_alive or known.job_id == driver.job
    return replace(known, held=bool(held), is_taken=is_taken, attempts=driver.attempts)


def _place(run: Run, step: int) -> str:
    stored = run.config.run.checkpoints
    base = f"{shown_url(stored).rstrip('/')}/{run.run_id}" if stored else str(run.path)
    return f"{base}/{folder_name(step)}"
