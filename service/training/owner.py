"""Whose a place of checkpoints is: two runs of one name, in two storages, would share it.

`owner.json` lies in the run's folder and, the same, beside checkpoints that are elsewhere. Its
token is drawn once: another run is not taken for this one, nor a moved folder for another's.
"""

import json
import secrets
from pathlib import Path

from service.errors import CheckpointError
from service.training.files import write_text
from service.training.history import unwritable
from service.training.store import OWNER_FILE, Store


def claim(store: Store, run_dir: Path, *, is_new: bool) -> None:
    """Makes sure that `store` is the place of the run in `run_dir`, and of no other.

    is_new: the run has not begun, so that checkpoints that name no owner are not its own.

    Raises:
        CheckpointError: it is another run's, or cannot be asked or marked.
    """
    own, found = _own(run_dir), store.owner()
    if found is None:
        if is_new and (steps := store.steps()):
            raise _refusal(
                store.place(steps[-1]), "another run of this name, since this one is new"
            )
        store.own(own)
        # Of two that come at once the later one stays.
        found = store.owner()
    if found != own:
        raise _refusal(store.where, _whose(found))


def _own(run_dir: Path) -> str:
    """What marks a place as the run's; made when it is asked for first."""
    file = run_dir / OWNER_FILE
    try:
        if not file.exists():
            write_text(file, json.dumps({"run": str(run_dir), "token": secrets.token_hex(8)}))
        return file.read_text("utf-8")
    except OSError as error:
        raise unwritable(error) from error


def _whose(owner: str | None) -> str:
    try:
        return f"the run in {json.loads(owner or '')['run']}"
    except (ValueError, KeyError, TypeError):
        return f"nobody: its {OWNER_FILE} is damaged"


def _refusal(place: str, whose: str) -> CheckpointError:
    return CheckpointError(
        f"{place} belongs to {whose}; take another --run-id or run.checkpoints, or move what is "
        "there away"
    )
