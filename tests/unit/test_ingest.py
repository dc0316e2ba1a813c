"""From a whole ORBench-format folder to records: what is in them, left out, and left behind."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import service.data.ingest as ingest_module
from service.data.ingest import ingest
from service.data.records import Records
from service.errors import DataError
from service.modality import Modality
from tests.faulty import Faults, FaultyFileSystem, register
from tests.orbench import OrbenchFolder, jpeg, refuses, run, write_orbench

SIZE = (24, 12)


@pytest.fixture
def data(tmp_path: Path) -> OrbenchFolder:
    return write_orbench(tmp_path / "data", size=SIZE)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_folder_gives_the_same_bytes_for_any_number_of_threads(data):
    outs = [data.root.parent / f"out{threads}" for threads in (1, 3, 8)]
    for threads, out in zip((1, 3, 8), outs, strict=True):
        ingest(data.root, str(out), image_size=(20, 10), shard_rows=11, threads=threads)
    assert hashes(outs[0]) == hashes(outs[1]) == hashes(outs[2])


def test_counts_in_the_manifest_are_those_of_the_records(data):
    manifest = run(data)
    for split in ("train", "test"):
        records = Records.open(str(data.root.parent / "out"), split)
        counts = {m.label: int((records.modality == m).sum()) for m in Modality}
        assert manifest.counts[split] == counts
        assert records.num_rows == sum(counts.values())
    assert manifest.num_classes == 3
    assert [person.dir_id for person in manifest.classes] == data.train_dirs
    assert [(p.label, p.class_index) for p in manifest.classes] == [(1, 0), (2, 1), (3, 2)]
    assert set(manifest.query_counts.values()) == {4}
    assert not any(manifest.notes.values())


def test_progress_reports_each_row_in_the_callers_thread(data):
    seen = []

    def progress(done: int, total: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((done, total))

    run(data, progress=progress)
    assert seen == [(i, 50) for i in range(1, 51)]


def test_a_person_of_one_modality_is_kept_and_counted(tmp_path):
    without = [(2, "nir"), (2, "cp"), (2, "sk")]
    data = write_orbench(tmp_path / "data", size=SIZE, without=without)
    notes = run(data).notes
    assert (notes["persons_with_one_modality"], notes["unpairable_persons"]) == (0, 0)
    records = Records.open(str(tmp_path / "out"), "train")
    kept = set(records.modality[records.class_index == 1].tolist())
    assert kept == {Modality.VIS, Modality.TEXT}


def test_a_person_whose_photos_are_all_bad_is_counted_as_unpairable(data):
    for path in data.images("vis", data.train_dirs[0]):
        path.write_bytes(b"")
    notes = run(data, max_quarantine_share=0.1).notes
    assert (notes["persons_with_one_modality"], notes["unpairable_persons"]) == (0, 1)


def test_two_captions_of_one_image_are_two_records_and_the_image_is_one(data):
    data.train.append(data.train[0] | {"caption": "the same person, said otherwise"})
    data.save()
    counts = run(data).counts["train"]
    assert (counts["vis"], counts["text"]) == (6, 7)


def test_only_listed_vis_images_of_the_train_split_are_taken(data):
    unlisted = data.train.pop(0)["file_path"]
    data.save()
    run(data)
    records = Records.open(str(data.root.parent / "out"), "train")
    assert unlisted not in {records.source(row) for row in range(records.num_rows)}


def test_other_files_in_a_persons_directory_are_ignored_and_counted(data):
    folder = data.root / "nir" / data.train_dirs[0]
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "deeper.jpg").mkdir()
    assert run(data).notes["ignored_files"] == 2


def test_a_test_caption_shared_by_queries_is_one_record(data):
    assert run(data).counts["test"]["text"] == 4


def test_a_caption_longer_than_the_context_is_cut_and_counted(data):
    data.train[0]["caption"] = "red " * 100
    data.train[1]["caption"] = "red " * 75
    data.save()
    assert run(data).notes["truncated_captions"] == 1
    records = Records.open(str(data.root.parent / "out"), "train")
    texts = np.flatnonzero(records.modality == Modality.TEXT)[:2]
    assert (records.tokens(texts)[:, -1] == 49407).all()


def test_a_shorter_context_gives_shorter_tokens(data):
    manifest = run(data, context_length=8)
    records = Records.open(str(data.root.parent / "out"), "train")
    assert records.tokens([0]).shape == (1, 8)
    assert manifest.notes["truncated_captions"] == 6 + 4


# Quarantine


def test_bad_images_are_left_out_named_and_counted(data):
    zero, cut = data.images("nir", data.train_dirs[0])
    zero.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:200])
    gone = data.images("vis", data.train_dirs[1])[0]
    gone.unlink()
    manifest = run(data, max_quarantine_share=0.1)
    found = {(bad.split, bad.source, bad.reason.split(":")[0]) for bad in manifest.quarantined}

    def name(path: Path) -> str:
        return path.relative_to(data.root).as_posix()

    assert found == {
        ("train", name(zero), "zero bytes"),
        ("train", name(cut), "cut in its header"),
        ("train", name(gone), "missing"),
    }
    listed = json.loads((data.root.parent / "out" / "quarantine.json").read_text())
    assert {(bad["split"], bad["source"]) for bad in listed} == {bad[:2] for bad in found}
    assert manifest.counts["train"] == {"vis": 5, "nir": 4, "cp": 6, "sk": 6, "text": 6}


def test_an_image_cut_in_its_body_is_left_out_by_name(data):
    """The header says everything, the pixels end half way."""
    cut = data.images("vis", data.train_dirs[0])[0]
    cut.write_bytes(cut.read_bytes()[:-40])
    (bad,) = run(data, max_quarantine_share=0.1).quarantined
    assert bad.source == cut.relative_to(data.root).as_posix()
    assert "Premature end" in bad.reason


def test_an_image_of_another_size_cut_in_its_body_is_left_out_by_name(data):
    cut = data.images("sk", data.train_dirs[0])[0]
    whole = jpeg(np.random.default_rng(9), (96, 48))
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    (bad,) = run(data, max_quarantine_share=0.1).quarantined
    assert bad.source == cut.relative_to(data.root).as_posix()
    assert "Premature end" in bad.reason


@pytest.mark.parametrize("modality", ["vis", "nir"])
def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(data, modality):
    link, pipe = data.images(modality, data.train_dirs[0])
    outside = data.root.parent / "data" / "secret.jpg"
    outside.write_bytes(link.read_bytes())
    link.unlink()
    link.symlink_to(outside)
    pipe.unlink()
    os.mkfifo(pipe)
    manifest = run(data, max_quarantine_share=0.1)
    found = {(Path(bad.source).name, bad.reason) for bad in manifest.quarantined}
    assert found == {(link.name, "a symbolic link"), (pipe.name, "not a regular file")}


def test_a_linked_directory_is_not_followed(data):
    folder = data.root / "sk" / data.train_dirs[1]
    folder.rename(data.root / "elsewhere")
    folder.symlink_to(data.root / "elsewhere")
    manifest = run(data, max_quarantine_share=0.1)
    assert [bad.reason for bad in manifest.quarantined] == ["its directory is a symbolic link"] * 2
    assert manifest.counts["train"]["sk"] == 4


def test_too_many_bad_images_fail_the_ingest_and_are_named(data):
    bad = data.images("sk", data.train_dirs[2])[1]
    bad.write_bytes(b"")
    refuses(data, rf"1 of 40 images \(2\.50%\).*{bad.name} \(zero bytes\)")
    refuses(data, "1 of 40", max_quarantine_share=0.0249)
    run(data, max_quarantine_share=0.025)


def test_queries_of_a_bad_image_are_dropped_and_counted(data):
    bad = data.images("nir", data.test_dirs[0])[0]
    bad.unlink()
    manifest = run(data, max_quarantine_share=0.1)
    with_nir = {key for key in manifest.query_counts if "NIR" in key.split("+")}
    for key, count in manifest.query_counts.items():
        assert count == (3 if key in with_nir else 4)
    assert manifest.dropped_queries["member_quarantined"] == len(with_nir)
    records = Records.open(str(data.root.parent / "out"), "test")
    nir = records.queries[0]
    sources = [records.source(row) for row in nir.members[:, 0]]
    assert sources == [path for _, path in data.test["NIR"] if Path(path).name != bad.name]


def test_queries_for_somebody_who_is_not_in_the_gallery_are_dropped_and_counted(data):
    for path in data.images("vis", data.test_dirs[0]):
        path.unlink()
    manifest = run(data, max_quarantine_share=0.1)
    assert set(manifest.query_counts.values()) == {2}
    assert manifest.dropped_queries == {"member_quarantined": 0, "nobody_in_gallery": 64}


def test_a_query_kind_may_be_empty(data):
    data.test["CP+SK"] = []
    data.save()
    assert run(data).query_counts["CP+SK"] == 0
    records = Records.open(str(data.root.parent / "out"), "test")
    assert {q.key: q.members.shape for q in records.queries}["CP+SK"] == (0, 2)


def test_a_query_kind_that_was_empty_is_counted(data):
    data.test["CP+SK"] = []
    data.test["NIR"] = []
    data.save()
    assert run(data).notes["empty_query_kinds"] == 2


def test_a_query_kind_that_loses_all_its_queries_is_refused_by_name(data):
    data.test["NIR"] = data.test["NIR"][:1]
    data.save()
    (data.root / data.test["NIR"][0][1]).write_bytes(b"")
    refuses(data, r"no query of kind NIR can be used", max_quarantine_share=0.1)


def test_a_gallery_without_one_good_image_is_refused(data):
    for dir_id in data.test_dirs:
        for path in data.images("vis", dir_id):
            path.write_bytes(b"")
    refuses(data, "no gallery image", max_quarantine_share=1.0)


def test_a_file_with_the_same_content_in_both_splits_is_refused_and_both_are_named(data):
    train, test = data.images("cp", data.train_dirs[0])[0], data.images("sk", data.test_dirs[1])[1]
    test.write_bytes(train.read_bytes())
    refuses(data, f"{train.name} = .*{test.name}")


def test_a_file_repeated_in_one_split_is_counted(data):
    first, second = data.images("cp", data.train_dirs[0])
    second.write_bytes(first.read_bytes())
    assert run(data).notes["repeated_files"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": (0, 8)},
        {"context_length": 2},
        {"shard_rows": 0},
        {"max_quarantine_share": 1.5},
        {"threads": 0},
        {"threads": -1},
    ],
)
def test_senseless_settings_are_refused(data, settings):
    refuses(data, "ingest needs", **settings)


# The target


def test_a_target_that_holds_something_is_refused_and_left_alone(data):
    out = data.root.parent / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        run(data)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_an_empty_folder_is_a_free_target(data):
    (data.root.parent / "out").mkdir()
    run(data)
    assert (data.root.parent / "out" / "manifest.json").exists()


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(data, monkeypatch):
    written = []
    write_shard = ingest_module.write_shard

    def fill_up(path, records):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write_shard(path, records)

    monkeypatch.setattr(ingest_module, "write_shard", fill_up)
    refuses(data, "cannot write the records.*No space left on device", shard_rows=4)
    assert not any(thread.name.startswith("in-order") for thread in threading.enumerate())


def test_an_interruption_leaves_nothing(data):
    def interrupt(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, progress=interrupt)
    assert [path.name for path in data.root.parent.iterdir()] == ["data"]
    assert not any(thread.name.startswith("in-order") for thread in threading.enumerate())


def test_a_target_that_cannot_be_made_is_a_clear_error(data):
    with pytest.raises(DataError, match="cannot write beside"):
        ingest(data.root, str(data.root / "train_annos.json" / "out"), image_size=SIZE)


def test_a_remote_target_gets_the_manifest_last(data):
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    try:
        manifest = ingest(data.root, "memory://bucket/new", image_size=SIZE, shard_rows=9)
        cache = data.root.parent / "cache"
        records = Records.open("memory://bucket/new", "train", cache=cache)
        assert records.fingerprint == manifest.fingerprint
        created = {name: fs.created(f"/bucket/new/{name}") for name in names(fs)}
        assert max(created, key=lambda name: created[name]) == "manifest.json"
        with pytest.raises(DataError, match="exists and is not empty"):
            ingest(data.root, "memory://bucket/new", image_size=SIZE)
    finally:
        fs.store.clear()


def names(fs) -> list[str]:
    return [Path(path).name for path in fs.find("/bucket/new")]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The faults of a store whose uploads are writes like all others."""

    def put_file(fs: FaultyFileSystem, lpath: str, rpath: str, **_: Any) -> None:
        fs.pipe_file(rpath, Path(lpath).read_bytes())

    monkeypatch.setattr(FaultyFileSystem, "put_file", put_file)
    register()
    yield FaultyFileSystem.fresh()
    FaultyFileSystem.fresh()


def refused_by_the_store(data: OrbenchFolder, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest(data.root, "faulty://bucket/new", image_size=SIZE)


def test_a_store_that_refuses_is_told_and_left_empty(data: OrbenchFolder, faults: Faults):
    faults.refuses = True
    refused_by_the_store(data, "cannot reach faulty://bucket/new: .*access denied")
    assert FaultyFileSystem.files() == []


@pytest.mark.parametrize("file", ["train-00000.arrow", "queries.arrow", "quarantine.json"])
def test_a_store_that_cuts_a_file_gets_no_manifest(data: OrbenchFolder, faults: Faults, file: str):
    faults.truncates = file
    words = rf"^faulty://bucket/new/{file} was written with (\d+) bytes and has (\d+): the store .*"
    refused_by_the_store(data, words + "ingest into another one")
    assert not any(path.endswith("manifest.json") for path in faults.writes)
    assert FaultyFileSystem.files() == []


def test_a_store_that_has_lost_a_file_is_told(
    data: OrbenchFolder, faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    write = FaultyFileSystem.pipe_file

    def lose(fs: FaultyFileSystem, path: str, value: bytes) -> None:
        if not path.endswith("queries.arrow"):
            write(fs, path, value)

    monkeypatch.setattr(FaultyFileSystem, "pipe_file", lose)
    refused_by_the_store(data, r"queries\.arrow was written with \d+ bytes and is not there: the")
    assert FaultyFileSystem.files() == []


def test_a_manifest_that_is_not_read_back_as_written_does_not_count(
    data: OrbenchFolder, faults: Faults
):
    faults.truncates = "manifest.json"
    words = (
        r"new/manifest\.json was written with \d+ bytes and was read back with \d+, not the same"
    )
    refused_by_the_store(data, words)
    assert FaultyFileSystem.files() == []
    faults.truncates = ""
    manifest = ingest(data.root, "faulty://bucket/new", image_size=SIZE)
    assert Records.open("faulty://bucket/new", "train").fingerprint == manifest.fingerprint


@pytest.mark.parametrize("error", [ConnectionError("no route"), KeyboardInterrupt()])
def test_a_manifest_that_cannot_be_read_back_does_not_count(
    data: OrbenchFolder,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
):
    def fail(*_: Any, **__: Any) -> bytes:
        raise error

    monkeypatch.setattr(FaultyFileSystem, "cat_file", fail)
    with pytest.raises((DataError, KeyboardInterrupt)):
        ingest(data.root, "faulty://bucket/new", image_size=SIZE)
    assert faults.writes[-1].endswith("manifest.json")
    assert FaultyFileSystem.files() == []


def test_a_mount_point_is_refused_before_anything_is_read(
    data: OrbenchFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    refuses(data, "out is a mount point, .*name a folder in it, as in .*/out/records")
