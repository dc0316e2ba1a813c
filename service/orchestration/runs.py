"""Run folders: made once under a name of their own, found again, resumed, refused.

`<storage>/<run id>/` holds `config.yaml`, `journal.jsonl`, `checkpoint_*` and `summary.json`.
"""

import json
import os
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.config import Config
from service.errors import ExitCode, RunError
from service.settings import load_text, override
from service.training.ports import Outcome

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
_RESUMABLE = ("STOPPED", "PAUSE")
_ELSEWHERE = ("run.name", "run.storage", "data.", "loader.", "log.", "cluster.", "telemetry.")
_AFTERWARDS = ("eval.", "tune.")


@dataclass(frozen=True, slots=True)
class Run:
    """A run's id, its folder, and its resolved config."""

    run_id: str
    path: Path
    config: Config


def make_run_id(name: str, now: datetime, token: str) -> str:
    """`<name>-<yyyymmdd>-<hhmmss>-<token>`; `now` is told in its own time zone."""
    return f"{name}-{now:%Y%m%d-%H%M%S}-{token}"


def new_run_id(name: str) -> str:
    """A run id for this moment (UTC) with four random hex digits."""
    return make_run_id(name, datetime.now(UTC), secrets.token_hex(2))


def resolved(config: Config) -> Config:
    """`config` with local folders made absolute, so that every process reads the same ones."""
    return override(
        config,
        [
            f"run.storage={json.dumps(_absolute(config.run.storage))}",
            f"data.records={json.dumps(_absolute(config.data.records))}",
        ],
    )


def plan_run(config: Config, run_id: str | None = None, parent: Path | None = None) -> Run:
    """A new run that is not made yet.

    run_id: made here when None. parent: the folder to make it in; `run.storage` when None.

    Raises:
        RunError: the name is taken, or the storage is no folder.
    """
    config = resolved(config)
    run_id = run_id or new_run_id(config.run.name)
    path = (parent or _storage(config)) / run_id
    if path.is_dir():
        raise RunError(
            f"run {run_id} exists already in {path.parent}; leave the name out to start a new run, "
            f"or continue it with --resume {run_id}"
        )
    return Run(run_id, path, config)


def make_run(run: Run) -> Run:
    """Makes the folder of a planned run and writes its `config.yaml`.

    Raises:
        RunError: the storage cannot be written.
    """
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        run.path.mkdir()
        write_text(run.path / CONFIG_FILE, run.config.to_yaml())
    except OSError as error:
        raise RunError(
            f"cannot create the run folder {run.path}: {error}; see run.storage"
        ) from error
    return run


def create_run(config: Config, run_id: str | None = None, parent: Path | None = None) -> Run:
    """A new run, planned and made at once."""
    return make_run(plan_run(config, run_id, parent))


def open_run(run: str, storage: str = "runs") -> Run:
    """The run that `run` names: an id below `storage`, or a run's folder.

    Raises:
        RunError: there is no such run.
    """
    tried = [Path(_absolute(run))]
    if "/" not in run:
        tried.insert(0, Path(_absolute(storage)) / run)
    for path in tried:
        file = path / CONFIG_FILE
        if file.is_file():
            return Run(path.name, path, load_text(file.read_text("utf-8"), name=str(file)))
    places = " or ".join(str(path) for path in tried)
    raise RunError(
        f"no run {run!r}: no {CONFIG_FILE} in {places}; give an id below run.storage, or the run's "
        "folder"
    )


def resume_run(run: str, config: Config | None = None) -> Run:
    """The run to continue.

    config: when given, its settings that determine the weights must equal the run's own; where and
        on how many workers it runs may differ, and are taken from `config`.

    Raises:
        RunError: no such run, another config, or a run that has ended.
    """
    found = open_run(run, config.run.storage if config else "runs")
    _refuse_ended(found)
    if config is None:
        return found
    config = resolved(config)
    if config.fingerprint() != found.config.fingerprint():
        names = "; ".join(_differences(found.config, config))
        raise RunError(
            f"run {found.run_id} was started with another config: {names}. Leave the overrides out "
            "to continue it as it was, or start a new run"
        )
    return Run(found.run_id, found.path, config)


def resume_or_plan(config: Config | None, run_id: str | None, resume: str | None) -> Run:
    """The run to train: the one to resume, or a new one, which is still to be made."""
    if resume is not None:
        return resume_run(resume, config)
    if config is None:
        raise ValueError("a new run needs a config")
    return plan_run(config, run_id)


def interrupted(run: Run) -> Outcome:
    """How a run ends that its user stopped."""
    return Outcome(
        verdict="INTERRUPTED",
        cause="interrupted",
        words="stopped by the user",
        remedy=f"continue it with --resume {run.run_id}",
        exit_code=int(ExitCode.INTERRUPTED),
        summary={},
    )


def read_summary(path: Path) -> dict[str, Any] | None:
    """The `summary.json` of the run in `path`; None before there is one."""
    file = path / SUMMARY_FILE
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json` into `path`, whole or not at all."""
    write_text(path / SUMMARY_FILE, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by writing beside `path` and renaming."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _absolute(folder: str) -> str:
    """`folder` as an absolute path; a URL as it is."""
    return folder if "://" in folder else os.path.abspath(os.path.expanduser(folder))


def _storage(config: Config) -> Path:
    if "://" in config.run.storage:
        raise RunError(
            f"run.storage is the URL {config.run.storage}, but runs need a folder that all workers "
            "share; mount the store and give its folder"
        )
    return Path(config.run.storage)


def _refuse_ended(run: Run) -> None:
    summary = read_summary(run.path)
    if summary is None or summary["verdict"] in _RESUMABLE:
        return
    cause = f" ({summary['cause']})" if summary.get("cause") else ""
    raise RunError(
        f"run {run.run_id} has ended: {summary['verdict']}{cause} after {summary['steps']} steps, "
        f"see {run.path / SUMMARY_FILE}; start a new run instead"
    )


def _differences(old: Config, new: Config) -> list[str]:
    """The settings that determine the weights and differ."""
    there, here = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{name} was {there.get(name)} and is {here.get(name)}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not name.startswith((*_ELSEWHERE, *_AFTERWARDS))
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
