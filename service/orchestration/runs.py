"""Run folders: made once under a name of their own, found again, resumed, refused.

`<storage>/<run id>/` holds `config.yaml`, `journal.jsonl`, `checkpoint_*` (unless
`run.checkpoints` is elsewhere, which `owner.json` then marks as the run's) and `summary.json`; a
driver holds `.lock` while it trains, and `.driver.json` says which took the run last.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from service.config import Config
from service.decisions import Verdict
from service.errors import ExitCode, RunError
from service.orchestration.alone import LOCK_FILE as WRITER_LOCK_FILE
from service.orchestration.driver import FILE_NAME as DRIVER_FILE
from service.orchestration.driver import write_driver
from service.orchestration.passwords import refuse_passwords
from service.orchestration.summary import SUMMARY_FILE, read_summary
from service.orchestration.sweep_journal import FILE_NAME as SWEEP_JOURNAL
from service.settings import load_text, override
from service.training.files import write_text
from service.training.ports import Outcome

CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
_OURS = {CONFIG_FILE, LOCK_FILE, WRITER_LOCK_FILE, DRIVER_FILE}
_RESUMABLE = ("STOPPED", "PAUSE")
_EVALUATE = "its evaluation is missing: crossreid evaluate {path}"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    """A run id for this moment (UTC) with eight random hex digits."""
    return make_run_id(name, datetime.now(UTC), secrets.token_hex(4))


def resolved(config: Config) -> Config:
    """`config` with local folders made absolute, so that every process reads the same ones."""
    places = {"run.storage": config.run.storage, "data.records": config.data.records}
    if config.run.checkpoints is not None:
        places["run.checkpoints"] = config.run.checkpoints
    return override(
        config, [f"{name}={json.dumps(absolute(place))}" for name, place in places.items()]
    )


def of_sweep(config: Config, sweep_id: str) -> Config:
    """`config` for a trial: its checkpoints lie under the sweep's id where they lie elsewhere than
    in the run's folder, as the ids of trials are unique in their sweep only."""
    place = config.run.checkpoints
    if place is None:
        return config
    below = f"{place.rstrip('/')}/{sweep_id}"
    return override(config, [f"run.checkpoints={json.dumps(below)}"])


def plan_run(
    config: Config,
    run_id: str | None = None,
    parent: Path | None = None,
    *,
    can_resume: bool = True,
) -> Run:
    """A new run that is not made yet.

    run_id: made here when None. parent: the folder to make it in; `run.storage` when None.
    can_resume: whether the command can continue a run whose name is taken.

    Raises:
        RunError: the name is taken or not one, or the storage is no folder.
        ConfigError: there is a password in the config.
    """
    config = resolved(config)
    refuse_passwords(config.model_dump())
    run_id = check_run_id(run_id) if run_id is not None else new_run_id(config.run.name)
    path = (parent or _storage(config)) / run_id
    if is_seen(path):
        instead = f", or continue it with {resume_words(path)}" if can_resume else ""
        raise RunError(
            f"run {run_id} exists already in {path.parent}; take another name, or leave it out to "
            f"have one made{instead}"
        )
    return Run(run_id, path, config)


def check_run_id(run_id: str) -> str:
    """`run_id`, which becomes a folder's name.

    Raises:
        RunError: it would lead elsewhere, or other tools would stumble over it.
    """
    if _RUN_ID.fullmatch(run_id) is None:
        raise RunError(
            f"the run id {run_id!r} must be 1 to 64 letters, digits, - and _, and begin with a "
            "letter or digit"
        )
    return run_id


def is_run(path: Path) -> bool:
    """Whether `path` is a run's folder."""
    return (path / CONFIG_FILE).is_file()


def is_seen(path: Path) -> bool:
    """Whether this process sees a run in `path`; it sees none where it may not look."""
    try:
        return is_run(path)
    except OSError:
        return False


def resume_words(path: Path) -> str:
    """What to type to continue the run in `path`, from any folder and with any storage."""
    return f"--resume {shlex.quote(str(path))}"


def make_run(run: Run) -> Run:
    """Makes the folder of a planned run with its `config.yaml`, both at once.

    Raises:
        RunError: the storage cannot be written.
    """
    beside = run.path.with_name(f".{run.run_id}.{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir(parents=True)
        write_text(beside / CONFIG_FILE, run.config.to_yaml())
        beside.rename(run.path)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if run.path.exists() and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise RunError(
                f"{run.path} exists already and is left as it is; take another name"
            ) from error
        raise RunError(
            f"cannot create the run folder {run.path}: {error}; see run.storage"
        ) from error
    return run


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Keeps every other driver out of the run's folder; given up when this process ends.

    Raises:
        RunError: another process trains this run.
    """
    lock = FileLock(run.path / LOCK_FILE, fallback_to_soft=False)
    try:
        # Not at once: `is_held` shares it for a moment.
        lock.acquire(timeout=0.5)
    except Timeout as error:
        raise RunError(
            f"run {run.run_id} is being trained by another process, which holds "
            f"{run.path / LOCK_FILE}; wait for its end or stop it, then {resume_words(run.path)}"
        ) from error
    except OSError as error:
        raise RunError(f"cannot lock the run folder {run.path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def taken(run: Run, *, new: bool) -> Iterator[None]:
    """Makes the run's folder if it is new, and holds it; it goes again when nothing was begun, also
    at an interrupt.

    Raises:
        RunError: it cannot be made, or another process trains this run.
    """
    if new:
        make_run(run)
    with held(run):
        if not new:
            _keep_config(run)
        try:
            write_driver(run.path)
            yield
        except BaseException:
            if new and _is_untouched(run.path):
                # While it is held, so that nobody else begins there meanwhile.
                shutil.rmtree(run.path, ignore_errors=True)
            raise


def _keep_config(run: Run) -> None:
    """Writes down where a continued run lives now, so that who looks later looks there."""
    file, text = run.path / CONFIG_FILE, run.config.to_yaml()
    try:
        if file.read_text("utf-8") != text:
            write_text(file, text)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error}; free space or check its rights") from error


def _is_untouched(path: Path) -> bool:
    try:
        return {file.name for file in path.iterdir()} <= _OURS
    except OSError:
        return False


def is_held(path: Path) -> bool | None:
    """Whether a driver trains the run in `path` now; None where its lock may not be looked at, or
    the file system has no locks. Writes nothing."""
    try:
        with (path / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def create_run(config: Config, run_id: str | None = None, parent: Path | None = None) -> Run:
    """A new run, planned and made at once."""
    return make_run(plan_run(config, run_id, parent))


def open_run(run: str, storage: str = "runs") -> Run:
    """The run that `run` names: an id below `storage`, or a run's folder.

    Raises:
        RunError: there is no such run, or it may not be read.
    """
    tried = [Path(absolute(run))]
    if "/" not in run:
        tried.insert(0, Path(absolute(storage)) / run)
    for path in tried:
        file = path / CONFIG_FILE
        try:
            text = file.read_text("utf-8") if is_run(path) else None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error}; check its rights") from error
        if text is not None:
            return Run(path.name, path, load_text(text, name=str(file)))
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
        ConfigError: there is a password in a config that is not the run's own.
    """
    found = open_run(run, config.run.storage if config else "runs")
    if (found.path / SWEEP_JOURNAL).exists():
        raise RunError(
            f"{found.path} is a sweep; continue it with crossreid tune {resume_words(found.path)}, "
            f"or one of its trials with crossreid train --resume {found.path}/<trial>"
        )
    _refuse_ended(found)
    if config is None:
        return found
    config = resolved(config)
    if config != found.config:
        refuse_passwords(config.model_dump())
    if config.fingerprint() != found.config.fingerprint():
        names = "; ".join(differences(found.config, config))
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
    """How a run ends that its user stopped; one that was judged before lacks its evaluation only.

    Raises:
        RunError: its summary is damaged.
    """
    is_judged = _final_verdict(read_summary(run.path) or {}) is not None
    return Outcome(
        verdict="INTERRUPTED",
        cause="interrupted",
        words="stopped by the user",
        remedy=_EVALUATE.format(path=shlex.quote(str(run.path)))
        if is_judged
        else f"continue it with {resume_words(run.path)}",
        exit_code=int(ExitCode.INTERRUPTED),
        summary={},
    )


def absolute(folder: str) -> str:
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
    """A summary without a verdict is that of an evaluation on the way."""
    summary = read_summary(run.path) or {}
    verdict = _final_verdict(summary)
    if verdict is None:
        return
    cause = f" ({summary['cause']})" if summary.get("cause") else ""
    lacks_evaluation = verdict != Verdict.NO_GO and "mAP" not in summary
    remedy = (
        _EVALUATE.format(path=shlex.quote(str(run.path)))
        if lacks_evaluation
        else "start a new run instead"
    )
    raise RunError(
        f"run {run.run_id} has ended: {verdict}{cause} after {summary.get('steps', '?')} steps, "
        f"see {run.path / SUMMARY_FILE}; {remedy}"
    )


def _final_verdict(summary: dict[str, Any]) -> str | None:
    """The verdict after which a run does not go on; None while it may."""
    verdict = summary.get("verdict")
    return None if verdict in _RESUMABLE else verdict


def differences(old: Config, new: Config) -> list[str]:
    """The settings that determine the weights and differ."""
    there, here = _flat(old.fingerprint_values()), _flat(new.fingerprint_values())
    return [
        f"{name} was {there.get(name)} and is {here.get(name)}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result
