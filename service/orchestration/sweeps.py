"""Sweep folders: found again and refused when they cannot go on, or not as this sweep."""

import json
import shlex
from pathlib import Path

from service.config import Config
from service.errors import RunError
from service.orchestration.runs import CONFIG_FILE, Run, differences, open_run, resolved
from service.orchestration.summary import SUMMARY_FILE, read_summary
from service.orchestration.sweep_journal import FILE_NAME, Line, SweepJournal
from service.training.ending import STOPPED
from service.training.journal import FILE_NAME as RUN_JOURNAL

_COMPARING = (
    "samples",
    "search",
    "metric",
    "base",
    "base_grace_steps",
    "reduction_factor",
    "min_trials",
)
"""Settings of `tune` on which it depends what is tried and who is stopped."""


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
    run = found if config is None else Run(found.run_id, found.path, resolved(config))
    _refuse_ended(found, check_head(run))
    return run


def head_line(sweep: str, config: Config) -> Line:
    """The journal's first line: what makes a continued sweep the same sweep."""
    tune = config.tune.model_dump(mode="json")
    return {
        "event": "sweep",
        "sweep": sweep,
        "fingerprint": config.fingerprint(),
        "space": tune["space"],
        **{name: tune[name] for name in _COMPARING},
    }


def check_head(sweep: Run) -> list[Line]:
    """The lines of the sweep's journal after its head; none when nothing was written yet.

    sweep: with the config to continue it with; its folder holds the one it was started with.

    Raises:
        RunError: naming what differs; or the first line is lost.
    """
    path = sweep.path / FILE_NAME
    lines = SweepJournal(path).read()
    if not lines:
        return []
    found, wanted = lines[0], head_line(sweep.run_id, sweep.config)
    if found.get("event") != "sweep":
        raise RunError(
            f"{path} has lost its first line, which says what sweep it belongs to; put it back "
            f"({json.dumps(wanted)}), or start a new sweep"
        )
    told = _changes(sweep, found, wanted)
    if told:
        raise RunError(
            f"{path} belongs to another sweep: {'; '.join(told)}. Continue a sweep with the config "
            "and in the folder it was started with, or start a new one; nothing was changed"
        )
    return lines[1:]


def _changes(sweep: Run, found: Line, wanted: Line) -> list[str]:
    """What differs between the two heads, setting by setting."""
    told: list[str] = []
    # An older version's head lacks what it did not compare.
    for name in (name for name in wanted if name in found and found[name] != wanted[name]):
        if name == "fingerprint":
            told += differences(open_run(str(sweep.path)).config, sweep.config) or [
                f"its {CONFIG_FILE} was changed after its start"
            ]
            continue
        setting = name if name == "sweep" else f"tune.{name}"
        told.append(f"{setting} was {found[name]} and is {wanted[name]}")
    return told


def _refuse_ended(sweep: Run, lines: list[Line]) -> None:
    """A sweep has ended when it was not interrupted and every trial in its journal has."""
    summary = read_summary(sweep.path)
    if summary is None or summary.get("verdict") == STOPPED:
        return
    ended = {line.get("trial") for line in lines if line.get("event") == "end"}
    if any(line.get("trial") not in ended for line in lines):
        return
    raise RunError(
        f"sweep {sweep.run_id} has ended: {summary.get('verdict')} after {summary.get('steps')} "
        f"steps, all trials are in {sweep.path / SUMMARY_FILE}; start a new sweep instead"
    )
