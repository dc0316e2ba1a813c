"""Records folders that look right and are not: rows of a real one left out, or given to others."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.data.manifest import MANIFEST_FILE, parse_manifest
from service.data.records import Records
from service.data.shards import Record, write_shard
from service.modality import Modality

Ints = NDArray[np.integer]


def rewritten(
    source: Path,
    out: Path,
    classes: Callable[[Records], Ints],
    keep: Callable[[Records], NDArray[np.bool_]] | None = None,
) -> Path:
    """The records of `source` with other classes for the training rows, some rows left out.

    classes: the class index of every row, which may be one that nobody has. keep: which rows stay.
    """
    shutil.copytree(source, out)
    records = Records.open(str(source), "train")
    kept = np.flatnonzero(keep(records)) if keep else np.arange(records.num_rows)
    given = classes(records)
    people = records.manifest.classes
    rows: list[Record] = []
    for row in kept.tolist():
        wanted = int(given[row])
        person = people[min(max(wanted, 0), len(people) - 1)]
        rows.append(
            Record(
                modality=Modality(int(records.modality[row])),
                class_index=wanted,
                label=person.label,
                dir_id=person.dir_id,
                payload=records.jpeg(row).tobytes(),
                caption=records.caption(row),
                tokens=_tokens(records, row),
                source=records.source(row),
                camera=records.camera(row),
                view=records.view(row),
                sha256=records.sha256(row),
            )
        )
    (old,) = records.manifest.shards["train"]
    file = write_shard(out / old.file, rows)
    counts = {m.label: sum(r.modality is m for r in rows) for m in Modality}
    manifest = replace(
        records.manifest,
        shards={**records.manifest.shards, "train": (file,)},
        counts={**records.manifest.counts, "train": counts},
    )
    (out / MANIFEST_FILE).write_bytes(manifest.to_json())
    parse_manifest(manifest.to_json(), str(out))
    return out


def _tokens(records: Records, row: int) -> NDArray[np.int32]:
    """Without padding, as they are stored."""
    tokens = records.tokens([row])[0]
    return tokens[: int(np.flatnonzero(tokens)[-1]) + 1] if tokens.any() else tokens[:0]


def shuffled(source: Path, out: Path, seed: int = 0) -> Path:
    """Every row belongs to somebody at random; who has how many rows of what stays as it was."""

    def classes(records: Records) -> Ints:
        given, rng = records.class_index.copy(), np.random.default_rng(seed)
        for modality in Modality:
            rows = np.flatnonzero(records.modality == modality)
            given[rows] = given[rng.permutation(rows)]
        return given

    return rewritten(source, out, classes)


def moved(source: Path, out: Path, *, old: int, new: int) -> Path:
    """The rows of class `old` say `new`, so that `old` has none."""

    def classes(records: Records) -> Ints:
        return np.where(records.class_index == old, new, records.class_index)

    return rewritten(source, out, classes)


def vis_only(source: Path, out: Path, *, people: int) -> Path:
    """The first `people` classes have photos only, so that they cannot pair."""

    def keep(records: Records) -> NDArray[np.bool_]:
        return (records.class_index >= people) | (records.modality == Modality.VIS)

    return rewritten(source, out, lambda records: records.class_index, keep)
