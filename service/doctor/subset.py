"""A small fixed part of a data set as records of its own, so that the real loop can train on it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.data.index import IdentityIndex
from service.data.manifest import MANIFEST_FILE, Manifest, TrainPerson
from service.data.records import Records
from service.data.shards import Record, write_queries, write_shard
from service.errors import DataError
from service.modality import Modality

LEAST_PEOPLE = 8
"""People that share the rows, where the data has as many who can pair."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The chosen rows, person after person, each person's sorted by modality.

    people: class numbers in the whole data set, rising; in the subset they are 0..n-1.
    """

    rows: tuple[tuple[int, ...], ...]
    people: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for rows in self.rows)


def choose(index: IdentityIndex, samples: int) -> Subset:
    """People who can pair, in the order of their class numbers, until `samples` rows are together.

    A person gives at most `samples / LEAST_PEOPLE` rows: the first of each modality in turn.

    Raises:
        DataError: fewer than two people can pair, or `samples` leaves no room for two.
    """
    share = samples // LEAST_PEOPLE
    rows: list[tuple[int, ...]] = []
    people: list[int] = []
    left = samples
    for person in np.flatnonzero(index.pairable).tolist():
        mine = _in_turn(index, person)[: min(share, left)]
        if len(mine) < 2:
            break
        rows.append(tuple(mine))
        people.append(person)
        left -= len(mine)
    if len(people) < 2:
        raise DataError(
            f"{len(people)} people with {samples} rows; learning by heart needs at least 2 people "
            f"who can pair and 16 rows: raise --samples, or see `crossreid doctor data`"
        )
    return Subset(tuple(rows), tuple(people))


@contextmanager
def written(records: Records, subset: Subset) -> Iterator[Path]:
    """A temporary records folder with the subset as its train split and no test split.

    Raises:
        DataError: the temporary folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="crossreid-doctor-") as name:
        folder = Path(name)
        try:
            _write(records, subset, folder)
        except OSError as error:
            raise DataError(f"cannot write {folder}: {error}; set TMPDIR to a free disk") from error
        yield folder


def _in_turn(index: IdentityIndex, person: int) -> list[int]:
    """A person's rows, one of each modality in turn, VIS first."""
    queues = [index.rows(person, modality).tolist() for modality in Modality]
    longest = max(len(queue) for queue in queues)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def _write(records: Records, subset: Subset, folder: Path) -> None:
    whole = records.manifest
    shard = [
        _record(records, row, number)
        for number, rows in enumerate(subset.rows)
        for row in sorted(rows)
    ]
    counts = {m.label: sum(r.modality is m for r in shard) for m in Modality}
    classes = tuple(
        TrainPerson(whole.classes[person].dir_id, whole.classes[person].label, number)
        for number, person in enumerate(subset.people)
    )
    manifest = Manifest(
        image_size=whole.image_size,
        context_length=whole.context_length,
        tokenizer=whole.tokenizer,
        vocab_size=whole.vocab_size,
        shards={"train": (write_shard(folder / "train-00000.arrow", shard),), "test": ()},
        queries=write_queries(folder / "queries.arrow", []),
        counts={"train": counts, "test": {m.label: 0 for m in Modality}},
        classes=classes,
        query_counts={},
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.to_json())


def _record(records: Records, row: int, class_index: int) -> Record:
    tokens = records.tokens([row])[0]
    return Record(
        modality=Modality(int(records.modality[row])),
        class_index=class_index,
        label=int(records.label[row]),
        dir_id=records.dir_id(row),
        payload=records.jpeg(row).tobytes(),
        caption=records.caption(row),
        tokens=np.trim_zeros(tokens, "b"),
        source=records.source(row),
        camera=records.camera(row),
        view=records.view(row),
        sha256=records.sha256(row),
    )
