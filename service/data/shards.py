"""The one file layout of records: Arrow IPC files of one record batch, read through a memory map.

Rows are sliced out of the mapped buffers by the Arrow offsets themselves, as NumPy views. Arrow's
own `take` on a binary column copies whole chunks: 7 to 20 times slower than separate files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from service.data.manifest import DataFile
from service.errors import DataError
from service.modality import Modality

SCHEMA = pa.schema(
    [
        pa.field("modality", pa.int8(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("dir_id", pa.string(), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("camera", pa.int16(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
QUERY_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.list_(pa.int32()), nullable=False),
        pa.field("members", pa.list_(pa.int64()), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Record:
    """One observation of one modality.

    class_index: 0..C-1, or -1 in the test split.
    payload: a JPEG at the training size; empty for a caption.
    tokens: int32, from the first to the end-of-text token, without padding; empty for an image.
    source: where it came from, relative to the source folder.
    camera: the camera's number, -1 when the file name does not say.
    view: front, back or side of a drawing, else empty.
    sha256: 32 bytes, the hash of the source file or of the caption in UTF-8.
    """

    modality: Modality
    class_index: int
    label: int
    dir_id: str
    payload: bytes
    caption: str
    tokens: np.ndarray
    source: str
    camera: int
    view: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class QuerySet:
    """The queries of one kind.

    key: the official name of the kind, such as "TEXT+NIR"; the first modality is the anchor.
    label: int32 [Q], whom each query looks for.
    members: int64 [Q, m], row ids in the order of the key.
    """

    key: str
    label: np.ndarray
    members: np.ndarray


def write_shard(path: Path, records: Sequence[Record]) -> DataFile:
    """Writes one shard and says what was written.

    Raises:
        OSError: when the disk is full or refuses.
    """
    columns = [[getattr(record, field.name) for record in records] for field in SCHEMA]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return _write(path, pa.record_batch(arrays, schema=SCHEMA))


def write_queries(path: Path, queries: Sequence[QuerySet]) -> DataFile:
    """Writes every query set into one file, in the given order."""
    arrays = [
        pa.array([query.key for query in queries], pa.string()),
        pa.array([query.label for query in queries], pa.list_(pa.int32())),
        pa.array([query.members.reshape(-1) for query in queries], pa.list_(pa.int64())),
    ]
    return _write(path, pa.record_batch(arrays, schema=QUERY_SCHEMA))


def read_queries(path: Path) -> list[QuerySet]:
    """The query sets in the order in which they were written.

    Raises:
        DataError: when the file is not one that `write_queries` made.
    """
    batch = _read(path, QUERY_SCHEMA)
    labels, label_at = _ragged(batch.column("label"), np.int32, np.int32)
    members, member_at = _ragged(batch.column("members"), np.int32, np.int64)
    queries = []
    for i, key in enumerate(batch.column("key").to_pylist()):
        label = labels[label_at[i] : label_at[i + 1]]
        flat = members[member_at[i] : member_at[i + 1]]
        queries.append(QuerySet(key, label, flat.reshape(len(label), key.count("+") + 1)))
    return queries


def file_sha256(path: Path) -> str:
    """The hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shard:
    """One mapped shard. Views handed out keep the map alive; nothing is copied on opening.

    Raises:
        DataError: when the file is not a shard of this layout.
    """

    def __init__(self, path: Path):
        self._batch = _read(path, SCHEMA)
        self._payload, self._payload_at = _ragged(self._batch.column("payload"), np.int64, np.uint8)
        self._tokens, self._tokens_at = _ragged(self._batch.column("tokens"), np.int32, np.int32)

    @property
    def num_rows(self) -> int:
        return self._batch.num_rows

    def numbers(self, column: str) -> np.ndarray:
        """An integer column as a read-only view of the map, in the column's own type."""
        # Arrow's to_numpy would do, but it imports pandas: 28 MiB in every process.
        cells = self._batch.column(column)
        return np.frombuffer(cells.buffers()[1], np.dtype(str(cells.type)))[: self.num_rows]

    def value(self, column: str, row: int):
        """One cell as a Python value."""
        return self._batch.column(column)[row].as_py()

    def payload(self, row: int) -> np.ndarray:
        """uint8 view of the stored bytes."""
        return self._payload[self._payload_at[row] : self._payload_at[row + 1]]

    def tokens(self, row: int) -> np.ndarray:
        """int32 view of the tokens, without padding."""
        return self._tokens[self._tokens_at[row] : self._tokens_at[row + 1]]


def _write(path: Path, batch: pa.RecordBatch) -> DataFile:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return DataFile(path.name, batch.num_rows, path.stat().st_size, file_sha256(path))


def _read(path: Path, schema: pa.Schema) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1 or not reader.schema.equals(schema):
            raise pa.ArrowInvalid(f"{reader.num_record_batches} batches of {reader.schema.names}")
        return reader.get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a records file of this layout ({error}); "
            "copy it again, or ingest the data set again"
        ) from error


def _ragged(column: pa.Array, offset_type, value_type) -> tuple[np.ndarray, np.ndarray]:
    """The values and the offsets [rows + 1] of a column of variable-length cells, as views."""
    buffers = column.buffers()
    values = np.frombuffer(buffers[-1], value_type) if buffers[-1] else np.empty(0, value_type)
    return values, np.frombuffer(buffers[1], offset_type)[: len(column) + 1]
