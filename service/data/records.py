"""A split of an ingested data set: columns in memory, images and captions in a memory map.

    records = Records.open("runs/data/records", "train")
    jpeg = records.jpeg(7)                 # uint8 view of the map, nothing copied

A `Records` pickles as its address, so that each process maps the files itself.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from service.data.manifest import Manifest, Split
from service.data.shards import QuerySet, Shard, file_sha256, read_queries
from service.data.store import local_files, read_manifest
from service.errors import DataError
from service.modality import Modality


class Records:
    """One split, read-only; safe to read from several threads.

    num_rows: N.
    class_index: int32 [N], 0..C-1; -1 in the test split.
    label: int32 [N], as the data set numbers people.
    modality: int8 [N], `Modality` values.
    gallery: int64 [G], test split: the VIS rows in the official order; train split: empty.
    queries: test split: one set a query kind, in the official order; train split: empty.
    """

    def __init__(self, url: str, split: Split, cache: Path | None, manifest: Manifest):
        self.url = url
        self.split: Split = split
        self.manifest = manifest
        self._cache = cache
        self._paths = local_files(url, manifest.files(split), cache)
        shards = manifest.shards[split]
        self._shards = [Shard(path) for path in self._paths[: len(shards)]]
        for shard, file in zip(self._shards, shards, strict=True):
            if shard.num_rows != file.rows:
                raise DataError(
                    f"{url}/{file.file} has {shard.num_rows} rows, the manifest says {file.rows}; "
                    "ingest the data set again"
                )
        self._starts = np.cumsum([0] + [file.rows for file in shards]).tolist()
        self.num_rows: int = self._starts[-1]
        self.class_index = self._column("class_index", np.int32)
        self.label = self._column("label", np.int32)
        self.modality = self._column("modality", np.int8)
        test = split == "test"
        self.gallery = np.flatnonzero(self.modality == Modality.VIS) if test else np.empty(0, int)
        self.queries: list[QuerySet] = read_queries(self._paths[-1]) if test else []

    @classmethod
    def open(cls, url: str, split: Split, cache: str | Path | None = None) -> "Records":
        """Opens one split of the records folder at `url`, a path or any fsspec URL.

        cache: where this node keeps files of a remote URL; None takes the user's cache folder.

        Raises:
            DataError: when the folder or a file is missing, of another schema or size, or the
                store cannot be reached.
        """
        return cls(url, split, Path(cache) if cache else None, read_manifest(url))

    def __reduce__(self):
        return Records.open, (self.url, self.split, self._cache)

    @property
    def num_classes(self) -> int:
        """C, the persons of the train split."""
        return self.manifest.num_classes

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.manifest.image_size

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the content of both splits."""
        return self.manifest.fingerprint

    def jpeg(self, row: int) -> np.ndarray:
        """uint8 view of an image's JPEG bytes; empty for a caption."""
        shard, at = self._locate(row)
        return shard.payload(at)

    def tokens(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32 [m, L], zero-padded; rows that are images are all zero."""
        tokens = np.zeros((len(rows), self.manifest.context_length), np.int32)
        for i, row in enumerate(rows):
            shard, at = self._locate(int(row))
            found = shard.tokens(at)
            tokens[i, : len(found)] = found
        return tokens

    def caption(self, row: int) -> str:
        """The caption's text; empty for an image."""
        return self._value("caption", row)

    def source(self, row: int) -> str:
        """Where the row came from: a file, or a JSON entry, relative to the source folder."""
        return self._value("source", row)

    def dir_id(self, row: int) -> str:
        """The name of the person's directory."""
        return self._value("dir_id", row)

    def camera(self, row: int) -> int:
        """The camera's number; -1 when the file name does not say."""
        return self._value("camera", row)

    def view(self, row: int) -> str:
        """front, back or side for a drawing, else empty."""
        return self._value("view", row)

    def sha256(self, row: int) -> bytes:
        """32 bytes, the hash of the source file or of the caption in UTF-8."""
        return self._value("sha256", row)

    def verify(self) -> None:
        """Reads every file of this split and compares its hash with the manifest.

        Raises:
            DataError: naming each damaged file.
        """
        files = self.manifest.files(self.split)
        damaged = [
            str(path)
            for path, file in zip(self._paths, files, strict=True)
            if file_sha256(path) != file.sha256
        ]
        if damaged:
            raise DataError(
                f"{self.url}: the content of {', '.join(damaged)} is not what the manifest's "
                "hashes say; delete and copy it again, or ingest the data set again"
            )

    def _locate(self, row: int) -> tuple[Shard, int]:
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of the {self.split} split; it has {self.num_rows} rows")
        shard = bisect_right(self._starts, row) - 1
        return self._shards[shard], row - self._starts[shard]

    def _value(self, column: str, row: int):
        shard, at = self._locate(row)
        return shard.value(column, at)

    def _column(self, name: str, dtype: type) -> np.ndarray:
        parts = [shard.numbers(name) for shard in self._shards]
        column = np.concatenate(parts) if parts else np.empty(0, dtype)
        column.setflags(write=False)
        return column
