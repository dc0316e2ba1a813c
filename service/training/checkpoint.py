"""Checkpoints: the whole train state in one folder, complete or not there.

    <run dir>/checkpoint_00000200/state.pt, manifest.json

The manifest is written last and carries size and sha256, so a folder without a fitting one is an
unfinished write. Loading is weights-only: a checkpoint cannot run code.
"""

import copy
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from service.errors import CheckpointError

SCHEMA = 1
PREFIX = "checkpoint_"

State = dict[str, Any]
Identity = dict[str, str]


def snapshot(value: Any) -> Any:
    """A copy of nested containers whose tensors lie on the CPU and share nothing with training."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return copy.copy(value)


def write_checkpoint(run_dir: Path, state: State, *, step: int, made_with: Identity) -> Path:
    """Writes `state` as the checkpoint of `step`; the folder appears whole or not at all.

    made_with: fingerprints by name (config, records) that a continued run must share.

    Raises:
        CheckpointError: if the store refuses the write.
    """
    target = run_dir / f"{PREFIX}{step:08d}"
    partial = run_dir / f".{target.name}.partial"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "made_with": made_with,
        "files": {"state.pt": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial / "state.pt", data)
        _write(partial / "manifest.json", json.dumps(manifest, indent=1).encode())
        if target.is_dir():
            replaced = run_dir / f".{target.name}.replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            target.rename(replaced)
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
    except OSError as error:
        raise CheckpointError(
            f"cannot write checkpoint {target}: {error}; free space or change run.storage, then "
            "resume the run"
        ) from error
    return target


def read_checkpoint(folder: Path, *, made_with: Identity | None = None) -> State:
    """The state in `folder`, after checking schema, origin, size and hash.

    Raises:
        CheckpointError: naming what is missing, damaged or different.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} has no readable manifest.json: {error}") from error
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{folder} has schema {manifest.get('schema')}, this version reads {SCHEMA}"
        )
    for name, wanted in (made_with or {}).items():
        found = manifest["made_with"].get(name)
        if found != wanted:
            raise CheckpointError(
                f"{folder} was written with other {name}: fingerprint {found}, this run has "
                f"{wanted}; continue it with its own {name}, or start a new run"
            )
    expected = manifest["files"]["state.pt"]
    try:
        data = (folder / "state.pt").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} lacks state.pt: {error}") from error
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(
            f"{folder}/state.pt is damaged: {len(data)} bytes, expected {expected['bytes']} with "
            "the sha256 of its manifest; delete the folder to resume from an older one"
        )
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    found = run_dir.glob(f"{PREFIX}*/manifest.json")
    return sorted(path.parent for path in found)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time, and keeps the newest `keep`.

    An error of the thread is raised by the next `write` or by `close`. written: called from the
    thread with the step of each checkpoint that is on disk.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        made_with: Identity,
        keep: int,
        written: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._run_dir = run_dir
        self._made_with = made_with
        self._keep = keep
        self._written = written
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def write(self, state: State, step: int) -> None:
        """Takes a snapshot now, waits for the last write, and writes in the background."""
        taken = snapshot(state)
        self._wait()
        self._thread = threading.Thread(target=self._run, args=(taken, step), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Waits until the last checkpoint is on disk."""
        self._wait()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, state: State, step: int) -> None:
        try:
            write_checkpoint(self._run_dir, state, step=step, made_with=self._made_with)
            self._written(step)
            for old in checkpoints(self._run_dir)[: -self._keep]:
                shutil.rmtree(old)
        except CheckpointError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  raised again, by the next write or close
            self._error = CheckpointError(
                f"checkpoint of step {step} failed: {type(error).__name__}: {error}"
            )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
