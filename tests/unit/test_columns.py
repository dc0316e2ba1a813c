"""The small columns of remote shards are those of the shards, and no image is read for them."""

import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from service.data import columns
from service.data.columns import read_numbers
from service.data.fitting import plan_for_all
from service.data.manifest import DataFile
from service.data.records import Records
from service.data.shards import Record, write_shard
from service.errors import DataError
from service.modality import Modality
from tests.small import make_records, small_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("columns"))


@pytest.fixture
def store() -> Iterator[MemoryFileSystem]:
    fs: MemoryFileSystem = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@pytest.fixture
def remote(folder: Path, store: MemoryFileSystem) -> str:
    for path in folder.iterdir():
        store.pipe_file(f"/bucket/records/{path.name}", path.read_bytes())
    return "memory://bucket/records"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is asked of the store: file, first and last byte."""
    asked: list[tuple[str, int, int]] = []
    real = MemoryFileSystem.cat_ranges

    def noted(fs: Any, paths: Any, starts: Any, ends: Any, **more: Any) -> Any:
        asked.extend(zip(paths, starts, ends, strict=True))
        return real(fs, paths, starts, ends, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", noted)
    return asked


@pytest.fixture
def without_ranges(folder: Path) -> Iterator[str]:
    """Over HTTP, by a server that sends whole files whatever part it is asked for."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_columns_are_those_of_the_records(folder: Path, remote: str, split: Any):
    records = Records.open(str(folder), split)
    modality, class_index = read_numbers(remote, records.manifest.shards[split])
    np.testing.assert_array_equal(modality, records.modality)
    np.testing.assert_array_equal(class_index, records.class_index)


def test_a_store_that_serves_no_parts_gives_the_same(folder: Path, without_ranges: str):
    records = Records.open(str(folder), "train")
    found = read_numbers(without_ranges, records.manifest.shards["train"])
    np.testing.assert_array_equal(found[0], records.modality)
    np.testing.assert_array_equal(found[1], records.class_index)


def record(row: int, payload: bytes) -> Record:
    return Record(
        modality=Modality(row % 5),
        class_index=row,
        label=row,
        dir_id=str(row),
        payload=payload,
        caption="",
        tokens=np.arange(row % 3, dtype=np.int32),
        source="",
        camera=-1,
        view="",
        sha256=bytes(32),
    )


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 300), payload=st.sampled_from([0, 1, 700, 5000]))
def test_shards_of_any_size_are_read_by_their_ends(
    tmp_path_factory: pytest.TempPathFactory, rows: int, payload: int
):
    """The ends do not meet in the larger ones, so whatever lies between them is not needed."""
    path = tmp_path_factory.mktemp("shard") / "a.arrow"
    file = write_shard(path, [record(row, bytes(payload)) for row in range(rows)])
    fs: MemoryFileSystem = fsspec.filesystem("memory")
    fs.pipe_file("/shards/a.arrow", path.read_bytes())
    modality, class_index = read_numbers("memory://shards", [file])
    assert modality.tolist() == [row % 5 for row in range(rows)]
    assert class_index.tolist() == list(range(rows))


def test_of_a_large_shard_only_the_ends_are_asked_for(
    tmp_path: Path, store: MemoryFileSystem, parts: list[tuple[str, int, int]]
):
    path = tmp_path / "a.arrow"
    file = write_shard(path, [record(row, bytes(20_000)) for row in range(500)])
    store.pipe_file("/shards/a.arrow", path.read_bytes())
    read_numbers("memory://shards", [file])
    assert 2 <= len(parts) <= 3
    assert sum(end - start for _, start, end in parts) < file.bytes / 50


def test_a_plan_of_remote_records_is_that_of_local_ones_and_fetches_none(
    folder: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = plan_for_all(small_config(folder))
    there = plan_for_all(small_config(folder, [f"data.records={remote}"]))
    assert there.stats == here.stats
    np.testing.assert_array_equal(there.drawn, here.drawn)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_serves_no_parts_sends_one_shard_at_a_time(
    without_ranges: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its shards would not fit into memory all together."""
    sizes: list[int] = []
    real = columns._ask

    def noted(url: str, files: Any, part: Any) -> Any:
        sizes.append(len(files))
        return real(url, files, part)

    monkeypatch.setattr(columns, "_ask", noted)
    (file, *_) = Records.open(str(folder), "train").manifest.shards["train"]
    assert file.bytes > columns._TAIL
    read_numbers(without_ranges, [file] * 3)
    assert set(sizes) == {1}


def damaged(file: DataFile, data: bytes, kind: str) -> bytes | None:
    return {
        "missing": None,
        "cut": data[: file.bytes // 2],
        "longer": data + b"more",
        "another": bytes(file.bytes),
    }[kind]


@pytest.mark.parametrize("kind", ["missing", "cut", "longer", "another"])
def test_a_shard_that_is_not_the_manifests_is_named(
    folder: Path, remote: str, store: MemoryFileSystem, kind: str
):
    (file, *_) = Records.open(str(folder), "train").manifest.shards["train"]
    data = damaged(file, (folder / file.file).read_bytes(), kind)
    path = f"/bucket/records/{file.file}"
    store.rm_file(path)
    if data is not None:
        store.pipe_file(path, data)
    named = f"memory://bucket/records/{file.file}"
    told = f"cannot reach {named}" if data is None else f"{named} is not the shard of"
    with pytest.raises(DataError, match=re.escape(told)):
        read_numbers(remote, [file])


def test_many_shards_are_read_some_at_a_time(
    folder: Path, remote: str, parts: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(columns, "_FILES_AT_ONCE", 2)
    (file, *_) = Records.open(str(folder), "train").manifest.shards["train"]
    modality, _ = read_numbers(remote, [file] * 5)
    assert len(modality) == 5 * file.rows
    assert len(parts) == 10 + 1  # the first asks whether parts are served at all


def test_no_shards_are_no_rows():
    modality, class_index = read_numbers("memory://nowhere", [])
    assert len(modality) == len(class_index) == 0
