"""Checkpoints: the whole train state of one step, as two files that prove each other.

    checkpoint_00000200/state.pt, manifest.json

The manifest carries size and sha256 of the state, the fingerprints of what made it, and its score.
Loading is weights-only: a checkpoint cannot run code.
"""

import contextlib
import copy
import hashlib
import io
import itertools
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from service.errors import CheckpointError, DamagedCheckpointError
from service.training.store import MANIFEST_FILE, STATE_FILE, Store

SCHEMA = 2

State = dict[str, Any]
Identity = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says of itself.

    made_with: fingerprints by name. score: CE over ln C at the last report before it, less is
    better; None before the first report. size, sha256: of the state, in bytes.
    """

    step: int
    made_with: dict[str, str]
    score: float | None
    size: int
    sha256: str

    def to_json(self) -> bytes:
        file = {"bytes": self.size, "sha256": self.sha256}
        values = {
            "schema": SCHEMA,
            "step": self.step,
            "made_with": self.made_with,
            "score": self.score,
            "files": {STATE_FILE: file},
        }
        return json.dumps(values, indent=1).encode()


def snapshot(value: Any, spare: Any = None) -> Any:
    """A copy of nested containers whose tensors lie on the CPU and share nothing with training.

    spare: an earlier copy that nobody needs any more. The memory of its tensors is taken again
    where they fit, since the first touch of fresh memory takes longer than the copy.
    """
    sources: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    made = _like(value, spare, sources, copies)
    # In one call: each gives the interpreter to whatever thread waits for it.
    if copies:
        with torch.no_grad():
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]
    return made


def _like(value: Any, spare: Any, sources: list[torch.Tensor], copies: list[torch.Tensor]) -> Any:
    """`value` with other tensors, whose contents are still to be copied."""
    if isinstance(value, torch.Tensor):
        sources.append(value)
        copies.append(spare if _fits(value, spare) else torch.empty_like(value, device="cpu"))
        return copies[-1]
    if isinstance(value, dict):
        old = spare if isinstance(spare, dict) else {}
        return {key: _like(item, old.get(key), sources, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        olds = itertools.chain(
            spare if isinstance(spare, list | tuple) else (), itertools.repeat(None)
        )
        pairs = zip(value, olds, strict=False)
        return type(value)(_like(item, old, sources, copies) for item, old in pairs)
    return copy.copy(value)


def _fits(tensor: torch.Tensor, spare: Any) -> bool:
    return (
        isinstance(spare, torch.Tensor)
        and spare.shape == tensor.shape
        and spare.dtype == tensor.dtype
    )


def save(
    store: Store, state: State, *, step: int, made_with: Identity, score: float | None = None
) -> None:
    """Writes `state` as the checkpoint of `step`; it appears whole or not at all.

    made_with: fingerprints by name (config, records) that a continued run must share.

    Raises:
        CheckpointError: if the store refuses the write.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    store.put(step, data, Manifest(step, dict(made_with), score, len(data), digest).to_json())


def load(store: Store, step: int, *, made_with: Identity | None = None) -> State:
    """The state of `step` in `store`, after checking schema, origin, size and hash.

    Raises:
        DamagedCheckpointError: something of it is missing or not as it was written.
        CheckpointError: it is another's, or the store cannot be reached.
    """
    manifest, place = read_manifest(store, step), store.place(step)
    if manifest.step != step:
        raise DamagedCheckpointError(f"{place} holds the state of step {manifest.step}")
    for name, wanted in (made_with or {}).items():
        found = manifest.made_with.get(name)
        if found != wanted:
            raise CheckpointError(
                f"{place} was written with other {name}: fingerprint {found}, this run has "
                f"{wanted}; use its own {name}, or start a new run"
            )
    data = store.read(step, STATE_FILE)
    if data is None:
        raise DamagedCheckpointError(f"{place} lacks {STATE_FILE}")
    if len(data) != manifest.size or hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise DamagedCheckpointError(
            f"{place}/{STATE_FILE} is damaged: {len(data)} bytes, expected {manifest.size} with "
            "the sha256 of its manifest"
        )
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{place} holds more than tensors and numbers: {error}") from error


def read_manifest(store: Store, step: int) -> Manifest:
    """The manifest of `step` in `store`.

    Raises:
        DamagedCheckpointError: it is missing or unreadable.
        CheckpointError: it is of another schema, or the store cannot be reached.
    """
    place, text = store.place(step), store.read(step, MANIFEST_FILE)
    if text is None:
        raise DamagedCheckpointError(f"{place} lacks {MANIFEST_FILE}")
    try:
        values = json.loads(text)
        schema = values["schema"]
        if schema == SCHEMA:
            file = values["files"][STATE_FILE]
            return Manifest(
                int(values["step"]),
                dict(values["made_with"]),
                None if values["score"] is None else float(values["score"]),
                int(file["bytes"]),
                str(file["sha256"]),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(
            f"{place} has no readable {MANIFEST_FILE}: {type(error).__name__}: {error}"
        ) from error
    raise CheckpointError(
        f"{place} has schema {schema}, this version reads {SCHEMA}; continue the run with the "
        "version that wrote it, or start a new run"
    )


def best_of(store: Store, steps: list[int]) -> int | None:
    """The one of `steps` with the lowest score, the earliest of equals: it is the one nearest to
    the report that measured it. None when none has a score; a damaged one has none.

    Raises:
        CheckpointError: the store cannot be reached, so the best is not known.
    """
    scores: dict[int, float] = {}
    for step in steps:
        with contextlib.suppress(DamagedCheckpointError):
            score = read_manifest(store, step).score
            if score is not None:
                scores[step] = score
    return min(scores, key=lambda step: (scores[step], step), default=None)
