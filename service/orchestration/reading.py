"""Reads a run's folder and says where the run stands."""

import time
from pathlib import Path

from service.errors import RunError
from service.orchestration.runs import Run, is_held, is_run, open_run, read_summary
from service.orchestration.space import num_trials
from service.orchestration.standing import Life, Standing, standing
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal
from service.orchestration.sweep_standing import sweep_standing
from service.redaction import shown_url
from service.training.journal import read_journal
from service.training.store import folder_name

ANSWER = "crossreid-standing "
"""How the line begins on which a job says where a run stands."""


def find_standing(folder: Path, life: Life) -> Standing | None:
    """As `read_standing`; None when the folder is not seen from here."""
    return read_standing(folder, life) if is_run(folder) else None


def read_standing(folder: Path, life: Life | None = None) -> Standing:
    """Where the run or sweep in `folder` stands now; changes nothing there.

    life: what is known of its job; whether its lock is held is found out here.

    Raises:
        RunError: `folder` is no run's.
    """
    run = open_run(str(folder))
    known = life or Life()
    life = Life(is_held(run.path), known.job, known.since)
    try:
        summary = read_summary(run.path)
    except RunError as error:
        raise RunError(
            f"{error}; where run {run.run_id} stands cannot be told without it"
        ) from error
    now = time.time()
    if (run.path / FILE_NAME).is_file() or run.config.tune.space:
        lines = SweepJournal(run.path / FILE_NAME).read()
        total = num_trials(run.config)
        found = sweep_standing(run.run_id, lines, total=total, now=now, life=life, summary=summary)
    else:
        found = standing(
            run.run_id,
            read_journal(run.path),
            now=now,
            life=life,
            summary=summary,
            place=lambda step: _place(run, step),
        )
    return found.at(str(run.path))


def _place(run: Run, step: int) -> str:
    stored = run.config.run.checkpoints
    base = f"{shown_url(stored).rstrip('/')}/{run.run_id}" if stored else str(run.path)
    return f"{base}/{folder_name(step)}"
