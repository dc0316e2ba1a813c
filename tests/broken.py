"""Records folders with faults put into them, for those who must find the faults."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from service.data.manifest import MANIFEST_FILE, DataFile, Manifest, Split
from service.data.records import Records
from service.data.shards import Record, write_shard
from service.modality import Modality

Change = Callable[[int, Record], Record | None]
"""From a train row and its record to the record in its place, or None to leave it out."""


def broken_copy(
    url: Path, folder: Path, change: Change, manifest: Callable[[Manifest], Manifest] = lambda m: m
) -> Path:
    """A copy of the records at `url` whose train split and manifest have been changed."""
    shutil.copytree(url, folder)
    train = Records.open(str(url), "train")
    changed = [change(row, as_record(train, row)) for row in range(train.num_rows)]
    for file in train.manifest.shards["train"]:
        (folder / file.file).unlink()
    written = write_shard(folder / "train-00000.arrow", [r for r in changed if r is not None])
    shards: dict[Split, tuple[DataFile, ...]] = {**train.manifest.shards, "train": (written,)}
    whole = manifest(replace(train.manifest, shards=shards))
    (folder / MANIFEST_FILE).write_bytes(whole.to_json())
    return folder


def as_record(records: Records, row: int) -> Record:
    """A row of a split as it was written."""
    return Record(
        modality=Modality(int(records.modality[row])),
        class_index=int(records.class_index[row]),
        label=int(records.label[row]),
        dir_id=records.dir_id(row),
        payload=records.jpeg(row).tobytes(),
        caption=records.caption(row),
        tokens=np.trim_zeros(records.tokens([row])[0], "b"),
        source=records.source(row),
        camera=records.camera(row),
        view=records.view(row),
        sha256=records.sha256(row),
    )
