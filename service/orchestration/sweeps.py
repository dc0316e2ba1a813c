"""Sweep folders: found again and refused when they cannot go on."""

import shlex
from pathlib import Path

from service.config import Config
from service.errors import RunError
from service.orchestration.runs import SUMMARY_FILE, Run, open_run, read_summary, resolved
from service.orchestration.sweep_journal import FILE_NAME, SweepJournal, check_head
from service.training.journal import FILE_NAME as RUN_JOURNAL


def is_sweep(path: Path) -> bool:
    """Whether the run folder `path` is a sweep's."""
    return (path / FILE_NAME).is_file()


def resume_sweep(sweep: str, config: Config | None = None) -> Run:
    """The sweep to continue; nothing in its folder is touched.

    sweep: an id below the storage, or the sweep's folder. config: when given, the settings that
        make it this sweep must equal its own; where it runs, on how many workers and how many
        trials at a time may differ, and are taken from `config`.

    Raises:
        RunError: no such sweep, another one, or one that has ended.
    """
    found = open_run(sweep, config.run.storage if config else "runs")
    if not found.config.tune.space or (found.path / RUN_JOURNAL).exists():
        raise RunError(
            f"{found.path} is a run, not a sweep; continue it with crossreid train --resume "
            f"{shlex.quote(str(found.path))}"
        )
    _refuse_ended(found)
    run = found if config is None else Run(found.run_id, found.path, resolved(config))
    check_head(SweepJournal(run.path / FILE_NAME), run.run_id, run.config)
    return run


def _refuse_ended(sweep: Run) -> None:
    summary = read_summary(sweep.path)
    if summary is None or summary.get("verdict") == "STOPPED":
        return
    raise RunError(
        f"sweep {sweep.run_id} has ended: {summary.get('verdict')} after {summary.get('steps')} "
        f"steps, all trials are in {sweep.path / SUMMARY_FILE}; start a new sweep instead"
    )
