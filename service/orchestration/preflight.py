"""What a job makes sure of before it starts anything: its storage holds what is written to it.

It runs in the job's own process, which is on the cluster's head. That records can be read, a launch
makes sure of itself.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from service.config import Config
from service.errors import (
    CheckpointError,
    ConfigError,
    CrossReidError,
    DataError,
    RunError,
    StoreError,
)
from service.redaction import redacted, shown_url
from service.stores import open_store
from service.training.store import STATE_FILE, Store, open_checkpoints

_PACKAGES = "working_dir_files"
"""Ray unpacks the packages of jobs in a folder of this name."""
_LOCAL = ("file://", "local://")
"""How URLs begin that name a folder of this machine."""


Say = Callable[[str], None]


def preflight(config: Config, storage: str, say: Say) -> None:
    """Refuses a config whose folders this machine cannot use; leaves nothing behind, unless a store
    takes nothing away again.

    storage: the folder that the run lies in, which for one that goes on need not be run.storage.
    say: takes what a run can live with.

    Raises:
        ConfigError: a folder lies in the job's own package, which Ray deletes.
        RunError, CheckpointError: what was written could not be read again.
    """

    def stays(told: str) -> None:
        say(f"{told}, and so will every checkpoint, whatever train.keep_checkpoints says")

    _outlives_job("run.storage", storage)
    _outlives_job("data.records", config.data.records)
    _holds("run.storage", storage, RunError, stays)
    checkpoints = config.run.checkpoints
    if checkpoints is not None:
        _outlives_job("run.checkpoints", checkpoints)
        _holds("run.checkpoints", checkpoints, CheckpointError, stays)


def preflight_records(records: str, say: Say) -> None:
    """Refuses a target that an ingest on this machine cannot write, or that would not last; leaves
    nothing behind, unless a store takes nothing away again.

    A folder is made beside its name, so that is where the probe goes.

    Raises:
        ConfigError: it lies in the job's own package, which Ray deletes.
        DataError: it cannot be written, or what was written could not be read again.
    """
    _outlives_job("RECORDS", records)
    folder = _folder_here(records)
    at = None if folder is None else str(folder.parent)
    _holds("RECORDS", records, DataError, say, at=at)


def _outlives_job(setting: str, place: str) -> None:
    package, folder = _package(), _folder_here(place)
    if package is None or folder is None:
        return
    if folder.resolve().is_relative_to(package):
        raise ConfigError(
            f"{setting}={place} lies in the job's own package, {package} on this machine, which "
            "Ray deletes after the job; give a folder by its whole path that all machines of the "
            f"cluster share, as in {setting}=/data/{setting.rpartition('.')[2].lower()}"
        )


def _folder_here(place: str) -> Path | None:
    """The folder that `place` names on this machine; None for one in a store elsewhere."""
    if "://" not in place:
        return Path(place).expanduser().absolute()
    return Path(open_store(place)[1]) if place.startswith(_LOCAL) else None


def _package() -> Path | None:
    """Where Ray has unpacked the job's package; None outside a job, or without one."""
    here = Path.cwd().resolve()
    found = [path for path in (here, *here.parents) if path.parent.name == _PACKAGES]
    return found[0] if found else None


def _holds(
    setting: str, place: str, kind: type[CrossReidError], say: Say, *, at: str | None = None
) -> None:
    """Writes a probe the way a checkpoint is, reads it back and takes it away.

    at: where to; None is `place` itself.
    """
    try:
        is_kept = _keeps_probe(setting, place if at is None else at, say)
    except (CrossReidError, OSError) as error:
        why = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise kind(
            f"{setting}={shown_url(place)} cannot be written on the head of the cluster: "
            f"{redacted(str(why))}; give one that all its machines share and may write"
        ) from error
    if not is_kept:
        raise kind(
            f"{setting}={shown_url(place)} loses what is written to it: a probe was not read back "
            "as it was written; use another store"
        )


def _keeps_probe(setting: str, at: str, say: Say) -> bool:
    """Whether a probe that was written at `at`, and taken away again, was read as it was."""
    name, data = f".crossreid-probe-{secrets.token_hex(4)}", secrets.token_bytes(64)
    with _cleared(at, name):
        store = open_checkpoints(at, Path(name))
        try:
            store.put(0, data, b"{}")
        except StoreError as error:
            # Without a cause nothing was refused: the store itself found something else there.
            if error.__cause__ is None:
                return False
            raise
        found = store.read(0, STATE_FILE)
        _delete(store, setting, say)
    return found == data


def _delete(store: Store, setting: str, say: Say) -> None:
    """Takes the probe away; a store that refuses that can still be used."""
    try:
        store.delete(0)
    except CheckpointError as error:
        say(
            f"{setting} lets nothing be deleted: {redacted(str(error))}. The probe in "
            f"{store.place(0)} stays"
        )


@contextlib.contextmanager
def _cleared(place: str, name: str) -> Iterator[None]:
    """Takes away the local folders that the probe made, and only those."""
    at = _folder_here(place)
    if at is None:
        yield
        return
    folder = at / name
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
