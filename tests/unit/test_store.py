"""Checkpoint stores: whole or not there, in a local folder as under any URL."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import CheckpointError, StoreError
from service.training import store as store_module
from service.training.store import FolderStore, Store, UrlStore, open_checkpoints
from tests.faulty import Faults, FaultyFileSystem, register

LOGIN = "faulty://somebody:hush-hush@store/here"
KINDS = ("folder", "url")


@pytest.fixture
def faults() -> Iterator[Faults]:
    register()
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()


def store_of(kind: str, folder: Path) -> Store:
    return open_checkpoints({"folder": None, "url": "faulty://bucket/at"}[kind], folder)


def test_the_place_decides_the_kind_of_store(tmp_path: Path, faults: Faults):
    run = tmp_path / "run-1"
    own = open_checkpoints(None, run)
    assert isinstance(own, FolderStore)
    assert own.place(7) == str(run / "checkpoint_00000007")
    for place in (str(tmp_path / "far"), f"file://{tmp_path}/far/"):
        far = open_checkpoints(place, run)
        assert isinstance(far, FolderStore)
        assert far.place(7) == str(tmp_path / "far" / "run-1" / "checkpoint_00000007")
    remote = open_checkpoints("faulty://bucket/at/", run)
    assert isinstance(remote, UrlStore)
    assert remote.place(7) == "faulty://bucket/at/run-1/checkpoint_00000007"


def test_an_unknown_protocol_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"cannot reach nowhere://x.*client for this proto"):
        open_checkpoints("nowhere://x", tmp_path)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 4), st.binary(max_size=40)),
        st.tuples(st.just("delete"), st.integers(1, 4), st.just(b"")),
        st.tuples(st.just("sweep"), st.just(0), st.just(b"")),
    ),
    max_size=12,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(done=operations)
def test_a_store_holds_what_was_put_and_not_deleted(
    done: list[tuple[str, int, bytes]],
    kind: str,
    faults: Faults,
    tmp_path_factory: pytest.TempPathFactory,
):
    FaultyFileSystem.fresh()
    folder = tmp_path_factory.mktemp("store")
    store, model = store_of(kind, folder), dict[int, bytes]()
    for what, step, data in done:
        if what == "put":
            store.put(step, data, b"manifest of " + data)
            model[step] = data
        elif what == "delete" and step in model:
            store.delete(step)
            del model[step]
        elif what == "sweep":
            store.sweep()
        assert store.steps() == sorted(model)
        for step in range(1, 5):
            data = model.get(step)
            assert store.read(step, "state.pt") == data
            manifest = None if data is None else b"manifest of " + data
            assert store.read(step, "manifest.json") == manifest
    left = list(folder.rglob("*.*")) if kind == "folder" else FaultyFileSystem.files()
    assert len(left) == 2 * len(model)


def test_the_manifest_is_written_last_and_removed_first(tmp_path: Path, faults: Faults):
    store = store_of("url", tmp_path)
    store.put(5, b"old", b"old manifest")
    assert [path.rpartition("/")[2] for path in faults.writes] == ["state.pt", "manifest.json"]
    faults.fails_at = frozenset({3})
    with pytest.raises(CheckpointError, match=r"cannot reach faulty://bucket/at.*write failed"):
        store.put(5, b"new", b"new manifest")
    assert store.steps() == []


def test_a_writer_that_dies_leaves_nothing_that_counts(tmp_path: Path, faults: Faults):
    """Also where an older one was there: its manifest does not vouch for another's state."""
    store = store_of("url", tmp_path)
    store.put(5, b"old", b"old manifest")
    faults.dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        store.put(5, b"new state", b"new manifest")
    assert len(FaultyFileSystem.files()) == 1
    assert store.steps() == []
    store.sweep()
    assert FaultyFileSystem.files() == []


@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_store_that_loses_what_it_takes_is_caught(tmp_path: Path, faults: Faults, file: str):
    faults.truncates = file
    store = store_of("url", tmp_path)
    with pytest.raises(
        StoreError, match=rf"{file} was written with 10 bytes and read back with 5, not the same"
    ):
        store.put(5, b"0123456789", b"manifest!!")
    assert (store.steps(), FaultyFileSystem.files()) == ([], [])


def spoiled(handle: int) -> None:
    """A disk that says that it has a file, and has something else of the same size."""
    if stat.S_ISREG(os.fstat(handle).st_mode):
        os.pwrite(handle, b"?", 5)


def test_a_disk_that_loses_what_it_takes_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", spoiled)
    store = FolderStore(tmp_path)
    with pytest.raises(StoreError, match=r"with 10 bytes and read back with 10, not the same"):
        store.put(5, b"0123456789", b"manifest!!")
    assert (store.steps(), list(tmp_path.iterdir())) == ([], [])


def test_a_folder_appears_once_all_in_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    FolderStore(tmp_path).put(5, b"x", b"m")
    names = [Path(path).name.rpartition(".")[0] for path in synced]
    assert names == ["state", "manifest", ".checkpoint_00000005", ""]
    assert synced[-1] == str(tmp_path)


def test_a_checkpoint_that_lost_its_state_can_be_cleared_away(tmp_path: Path, faults: Faults):
    store = store_of("url", tmp_path)
    store.put(5, b"x", b"m")
    FaultyFileSystem().rm_file(f"/bucket/at/{tmp_path.name}/checkpoint_00000005/state.pt")
    store.delete(5)
    assert (store.steps(), FaultyFileSystem.files()) == ([], [])


def test_a_checkpoint_in_the_way_that_cannot_be_removed_leaves_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = FolderStore(tmp_path)
    store.put(5, b"old", b"m")

    def refuse(step: int) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(store, "delete", refuse)
    with pytest.raises(StoreError, match="read-only"):
        store.put(5, b"new", b"m")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000005"]
    assert store.read(5, "state.pt") == b"old"


def test_what_cannot_be_swept_is_told(tmp_path: Path):
    (tmp_path / ".checkpoint_00000001.x").write_text("no folder")
    with pytest.raises(StoreError, match=r"cannot remove .*checkpoint_00000001\.x: "):
        FolderStore(tmp_path).sweep()


def test_a_full_store_keeps_what_it_had_and_gets_its_room_back(tmp_path: Path, faults: Faults):
    store = store_of("url", tmp_path)
    store.put(1, b"x" * 100, b"m")
    faults.room = 150
    with pytest.raises(CheckpointError, match="free disk space"):
        store.put(2, b"y" * 100, b"m")
    assert store.steps() == [1]
    assert len(FaultyFileSystem.files()) == 2
    faults.room = 300
    store.put(2, b"y" * 100, b"m")
    assert store.steps() == [1, 2]


def test_leftovers_that_could_not_be_removed_at_once_are_swept(tmp_path: Path, faults: Faults):
    store = store_of("url", tmp_path)
    faults.fails_at, faults.refuses_deletes = frozenset({1}), True
    with pytest.raises(CheckpointError):
        store.put(1, b"x" * 10, b"m")
    assert len(FaultyFileSystem.files()) == 1
    assert store.steps() == []
    faults.refuses_deletes = False
    store.put(2, b"x", b"m")
    store.sweep()
    assert [path.split("/")[-2] for path in FaultyFileSystem.files()] == ["checkpoint_00000002"] * 2


def test_no_message_gives_the_login_away(tmp_path: Path, faults: Faults):
    store = open_checkpoints(LOGIN + "?signature=sealed", tmp_path)
    faults.refuses = True
    with pytest.raises(CheckpointError) as refused:
        store.put(1, b"x", b"m")
    faults.down = True
    with pytest.raises(CheckpointError) as unreachable:
        store.steps()
    told = [str(refused.value), str(unreachable.value), store.place(1)]
    assert all("store/here" in message for message in told)
    for secret in ("somebody", "hush", "sealed"):
        assert not any(secret in message for message in told)


def test_a_store_that_is_down_is_not_an_empty_one(tmp_path: Path, faults: Faults):
    store = store_of("url", tmp_path)
    store.put(1, b"x", b"m")
    faults.down = True
    for call in (store.steps, store.sweep, lambda: store.read(1, "state.pt")):
        with pytest.raises(CheckpointError, match="no route"):
            call()


def test_a_wrong_bucket_is_refused_and_not_made(tmp_path: Path):
    """A file system with folders stands for the stores that want them made."""
    fs = LocalFileSystem()
    wrong = UrlStore(fs, f"{tmp_path}/x/run", "dir://x/run")
    wrong.put(1, b"x", b"m")
    assert wrong.steps() == [1]

    class Buckets(LocalFileSystem):
        def exists(self, path: str, **kwargs: object) -> bool:
            return super().exists(f"{tmp_path}/{path}")

    no_bucket = UrlStore(Buckets(), f"{tmp_path}/y/run".lstrip("/"), "dir://y/run")
    with pytest.raises(CheckpointError, match="there is no"):
        no_bucket.put(1, b"x", b"m")


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path):
    store = FolderStore(tmp_path)
    values = [bytes([65 + i]) * 200_000 for i in range(4)]

    def write(data: bytes) -> None:
        for _ in range(5):
            try:
                store.put(1, data, data[:1])
            except CheckpointError:
                continue

    threads = [threading.Thread(target=write, args=(data,)) for data in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = store.read(1, "state.pt")
    assert state in values
    assert store.read(1, "manifest.json") == state[:1]
    store.put(1, values[0], values[0][:1])
    assert store.read(1, "state.pt") == values[0]
    store.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000001"]


@pytest.mark.parametrize("step", [5, 6])
@pytest.mark.parametrize("full_at", ["state.pt", "manifest.json"])
def test_a_disk_that_fills_up_half_way_keeps_the_older_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str, step: int
):
    """Also where the older one is of the same step, whose place the new one takes."""
    store, write = FolderStore(tmp_path), store_module._write
    store.put(5, b"old state", b"old manifest")

    def fill_up(path: Path, data: bytes) -> None:
        if path.name != full_at:
            return write(path, data)
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(store_module, "_write", fill_up)
    with pytest.raises(StoreError, match=r"checkpoint_0+\d: .*No space left.*; free space"):
        store.put(step, b"new state", b"new manifest")
    assert store.steps() == [5]
    assert (store.read(5, "state.pt"), store.read(5, "manifest.json")) == (
        b"old state",
        b"old manifest",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000005"]


def test_a_folder_that_cannot_be_written_is_told_and_left_clean(tmp_path: Path):
    store = FolderStore(tmp_path)
    (tmp_path / "checkpoint_00000001").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*_00000001.*free space"):
        store.put(1, b"x", b"m")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_00000001"]
