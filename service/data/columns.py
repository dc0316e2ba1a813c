"""Who is in a split, without its images: of each shard only the ends that hold small columns.

A driver plans a run on a machine that trains nothing. It has no need of the images, and no room.
"""

import errno
import io
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa

from service.data.manifest import DataFile
from service.data.shards import SCHEMA
from service.errors import DataError
from service.stores import open_store, reaching

_NAMES = ("modality", "class_index")
"""The first columns of the layout, so that they lie at a shard's beginning."""
_ROW_BYTES = 5
_HEAD, _TAIL = 64 << 10, 64 << 10
"""Bytes around them that hold whatever else Arrow reads: at most some thousand."""
_FILES_AT_ONCE = 16
_NO_SUCH_PART = 416
"""HTTP's answer where a file does not reach so far (RFC 9110 section 15.5.17)."""


def read_numbers(url: str, files: Sequence[DataFile]) -> tuple[np.ndarray, np.ndarray]:
    """Modality (int8) and class index (int32) of every row of the shards `files`, [N] each.

    A store that serves no parts of files sends each one whole; nothing is kept on disk.

    Raises:
        DataError: a shard is missing or of another layout or size, or the store cannot be reached.
    """
    at_once = _FILES_AT_ONCE if _serves_parts(url, files) else 1
    parts: list[pa.RecordBatch] = []
    for start in range(0, len(files), at_once):
        some = files[start : start + at_once]
        heads, tails = _ask(url, some, _head), _ask(url, some, _tail)
        for file, head, tail in zip(some, heads, tails, strict=True):
            parts.append(_parsed(f"{url}/{file.file}", file, head, tail))
    modality, class_index = (
        np.concatenate([_numbers(part, name) for part in parts] or [np.empty(0, np.int32)])
        for name in _NAMES
    )
    return modality, class_index


Span = tuple[int, int]
"""The first byte, and the one after the last."""


def _head(file: DataFile) -> Span:
    return 0, min(file.bytes, _HEAD + _ROW_BYTES * file.rows)


def _tail(file: DataFile) -> Span:
    """One byte too many: a file that has it is longer than it should be."""
    return max(0, file.bytes - _TAIL), file.bytes + 1


def _serves_parts(url: str, files: Sequence[DataFile]) -> bool:
    """As the largest file tells; a store that does not may send hundreds of megabytes a file."""
    if not files:
        return True
    largest = max(files, key=lambda file: file.bytes)
    start, end = _tail(largest)
    fs, root = open_store(url)
    with reaching(url):
        (found,) = fs.cat_ranges([f"{root}/{largest.file}"], [start], [end], on_error="return")
    return isinstance(found, Exception) or len(found) <= end - start


def _ask(url: str, files: Sequence[DataFile], part: Callable[[DataFile], Span]) -> list[bytes]:
    """That part of each file, in one call: stores then work in parallel."""
    fs, root = open_store(url)
    spans = [part(file) for file in files]
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    with reaching(url):
        paths = [f"{root}/{file.file}" for file in files]
        found = fs.cat_ranges(paths, starts, ends, on_error="return")
    for file, answer in zip(files, found, strict=True):
        if isinstance(answer, Exception):
            _refuse(f"{url}/{file.file}", file, answer)
    return [
        data[start:end] if len(data) == file.bytes else data
        for data, file, (start, end) in zip(found, files, spans, strict=True)
    ]


def _refuse(where: str, file: DataFile, error: Exception) -> NoReturn:
    """Stores answer with an error where a file is too short to have a part."""
    is_short = getattr(error, "status", None) == _NO_SUCH_PART
    if is_short or (isinstance(error, OSError) and error.errno == errno.EINVAL):
        raise DataError(_other(where, file, "it is shorter")) from error
    with reaching(where):
        raise error


def _other(where: str, file: DataFile, how: object) -> str:
    return (
        f"{where} is not the shard of {file.rows} rows and {file.bytes} bytes that the manifest "
        f"says ({how}); upload it again, or ingest the data set again"
    )


class _Ends(io.RawIOBase):
    """A file of which only the beginning and the end are there."""

    def __init__(self, size: int, head: bytes, tail: bytes) -> None:
        self._size, self._head, self._tail = size, head, tail
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        from_end = self._size - len(self._tail)
        if end <= len(self._head):
            found = self._head[self._at : end]
        elif self._at >= from_end:
            found = self._tail[self._at - from_end : end - from_end]
        else:
            raise OSError(f"bytes {self._at} to {end} of {self._size} were not asked for")
        self._at = end
        return found


def _parsed(where: str, file: DataFile, head: bytes, tail: bytes) -> pa.RecordBatch:
    wanted = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(n) for n in _NAMES])
    try:
        if len(tail) != min(file.bytes, _TAIL):
            raise pa.ArrowInvalid("it has another size")
        source = pa.PythonFile(_Ends(file.bytes, head, tail), "r")
        reader = pa.ipc.open_file(source, options=wanted)
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if batch.num_rows != file.rows or tuple(batch.schema.names) != _NAMES:
            raise pa.ArrowInvalid(f"{batch.num_rows} rows of {batch.schema.names}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(_other(where, file, error)) from error
    return batch


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    # Arrow's to_numpy would do, but it imports pandas: 28 MiB in every process.
    cells = batch.column(name)
    return np.frombuffer(cells.buffers()[1], np.dtype(str(cells.type)))[: batch.num_rows]
