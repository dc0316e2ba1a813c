import errno
import hashlib
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import simplejpeg
from PIL import Image

import service.data.ingest as ingest_module
from service.data.images import prepare_image
from service.data.ingest import ingest
from service.data.manifest import Manifest
from service.data.records import Records
from service.errors import DataError
from service.modality import Modality
from tests.orbench import OrbenchFolder, jpeg, write_orbench

SIZE = (24, 12)


@pytest.fixture
def data(tmp_path: Path) -> OrbenchFolder:
    return write_orbench(tmp_path / "data", size=SIZE)


def run(data: OrbenchFolder, **settings) -> Manifest:
    out = data.root.parent / "out"
    return ingest(data.root, str(out), **({"image_size": SIZE} | settings))


def refuses(data: OrbenchFolder, message: str, **settings) -> None:
    """The ingest fails with `message` and leaves nothing behind."""
    with pytest.raises(DataError, match=message):
        run(data, **settings)
    assert [path.name for path in data.root.parent.iterdir()] == ["data"]


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


# Images


def test_an_image_of_the_right_size_keeps_its_bytes():
    data = jpeg(np.random.default_rng(0), SIZE)
    assert prepare_image(data, SIZE) is data


def smooth_jpeg(size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A gradient, which survives JPEG and resizing with small errors."""
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    pixels = (np.stack([60 + 150 * y, 60 + 150 * x, 200 - 100 * y], axis=-1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=98)
    return file.getvalue()


@pytest.mark.parametrize("size", [(96, 48), (10, 5), (96, 6), (12, 60), (1, 1)])
def test_resized_images_look_like_the_source(size):
    data = smooth_jpeg(size)
    pixels = simplejpeg.decode_jpeg(prepare_image(data, SIZE))
    assert pixels.shape == (*SIZE, 3)
    source = simplejpeg.decode_jpeg(data)
    expected = cv2.resize(source, SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(pixels.astype(int) - expected).mean() < 6


def test_shrinking_averages_areas():
    fine = np.indices((SIZE[0] * 4, SIZE[1] * 4)).sum(0) % 2 * 200
    data = simplejpeg.encode_jpeg(np.repeat(fine[..., None], 3, 2).astype(np.uint8), quality=100)
    small = simplejpeg.decode_jpeg(prepare_image(data, SIZE))
    assert np.abs(small.astype(int) - 100).max() < 15


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("size", [SIZE, (48, 24)])
def test_grey_and_cmyk_images_become_decodable_rgb(mode, size):
    data = smooth_jpeg(size, mode)
    pixels = simplejpeg.decode_jpeg(prepare_image(data, SIZE), "RGB")
    expected = simplejpeg.decode_jpeg(smooth_jpeg(SIZE, "RGB" if mode == "CMYK" else "L"), "RGB")
    assert np.abs(pixels.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "zero bytes"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "not a JPEG"),
        (lambda data: b"plain words", "not a JPEG"),
        (lambda data: data[:1], "not a JPEG"),
        (lambda data: data[:200], "cut in its header"),
        (lambda data: data[: len(data) // 2], "Premature end"),
        (lambda data: data[:-2], "Premature end"),
    ],
)
def test_what_is_no_whole_jpeg_is_refused_with_the_reason(spoil, reason):
    data = jpeg(np.random.default_rng(0), SIZE)
    with pytest.raises(ValueError, match=reason):
        prepare_image(spoil(data), SIZE)


def test_a_cut_cmyk_image_is_refused():
    data = smooth_jpeg((48, 24), "CMYK")
    with pytest.raises(ValueError, match="truncated"):
        prepare_image(data[: len(data) // 2], SIZE)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded():
    data = bytearray(jpeg(np.random.default_rng(0), SIZE))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = b"\xff\x00\xff\x00"
    with pytest.raises(ValueError, match="65280x65280 pixels"):
        prepare_image(bytes(data), SIZE)


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


def test_a_gallery_without_one_good_image_is_refused(data):
    for dir_id in data.test_dirs:
        for path in data.images("vis", dir_id):
            path.write_bytes(b"")
    refuses(data, "no gallery image", max_quarantine_share=1.0)


# Data that does not hold together

EDITS: list[tuple[Callable[[OrbenchFolder], object], str]] = [
    (lambda d: [e.update(id=0) for e in d.train[:2]], r"must be 1\.\.3; found 0.*nobody has 1"),
    (lambda d: [e.update(id=7) for e in d.train if e["id"] == 3], r"1\.\.3; found 7.*nobody has 3"),
    (
        lambda d: [e.update(id=e["id"] + 1) for e in d.train],
        r"found 4 \(first at train_annos\.json\[4\].*nobody has 1: number the persons",
    ),
    (lambda d: d.train[2].update(id=1), r"label 1 has directories \d+, \d+"),
    (lambda d: d.train[2].update(id=4), r"directory \d+ has labels 2, 4"),
    (lambda d: d.train[1].update(id="one"), r"train_annos\.json\[1\]: the person's label is 'one'"),
    (lambda d: d.train[1].update(id=True), "label is True"),
    (lambda d: d.train[1].update(id=1.0), "label is 1.0"),
    (lambda d: d.train[1].update(id=-1), "label is -1"),
    (lambda d: d.train[3].pop("caption"), r"train_annos\.json\[3\] lacks caption"),
    (lambda d: d.train.insert(2, "row"), r"train_annos\.json\[2\] lacks caption, file_path, id"),
    (lambda d: d.train[3].update(caption=""), r"\[3\]: the caption is empty"),
    (lambda d: d.train[3].update(caption=" \n"), r"\[3\]: the caption is empty"),
    (lambda d: d.train[3].update(caption=None), r"\[3\]: the caption is None"),
    (lambda d: d.train[3].update(caption="\ud800"), r"\[3\].*not valid Unicode"),
    (
        lambda d: d.train[4].update(caption="see 12.JPG"),
        r"\[4\]: the caption 'see 12.JPG' contains",
    ),
    (lambda d: d.train[0].update(split="val"), r"\[0\] says split 'val'"),
    (lambda d: d.train[0].update(file_path="vis/../../x.jpg"), r"path is 'vis/\.\./\.\./x\.jpg'"),
    (lambda d: d.train[0].update(file_path="vis/../x.jpg"), r"inside it"),
    (lambda d: d.train[0].update(file_path="/etc/passwd"), r"path is '/etc/passwd'"),
    (lambda d: d.train[0].update(file_path="/vis/a.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path="vis\\1\\x.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path="nir/1/x.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path=["vis"]), r"the path is \['vis'\]; expected text"),
    (lambda d: d.train.clear(), "holds an empty list"),
    (lambda d: d.test.pop("SK+TEXT"), r"unknown or missing: SK\+TEXT"),
    (lambda d: d.test.update({"NIR+VIS": []}), r"unknown or missing: NIR\+VIS"),
    (lambda d: d.test.pop("RGB_GALLERY"), "unknown or missing: RGB_GALLERY"),
    (lambda d: d.test.update(RGB_GALLERY=[]), r"\[RGB_GALLERY\] is empty"),
    (lambda d: d.test.update(NIR={}), r"\[NIR\] is a dict"),
    (
        lambda d: d.test["RGB_GALLERY"].append(d.test["RGB_GALLERY"][0]),
        r"\[4\].*list an image once",
    ),
    (lambda d: d.test["NIR+CP"][1].pop(), r"\[NIR\+CP\]\[1\] is .*the label, then NIR, CP"),
    (
        lambda d: d.test["NIR"][0].__setitem__(0, 5),
        r"listed as NIR of label 4, elsewhere as NIR of label 5",
    ),
    (lambda d: d.test["TEXT"][2].__setitem__(1, "sk/1/2.jpg"), r"\[TEXT\]\[2\]: the caption"),
    (lambda d: d.test["TEXT"][2].__setitem__(1, ""), r"\[TEXT\]\[2\]: the caption is empty"),
    (
        lambda d: d.test["NIR"][2].__setitem__(1, "a man in red"),
        r"\[NIR\]\[2\]: the path is 'a man",
    ),
    (lambda d: d.test["TEXT+NIR"][2].reverse(), r"\[TEXT\+NIR\]\[2\]: the person's label is"),
    (lambda d: d.test["NIR"][2].__setitem__(1, "nir/../x/a.jpg"), r"\[NIR\]\[2\]: the path"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_data_that_does_not_hold_together_is_refused_at_its_place(data, edit, message):
    edit(data)
    data.save()
    refuses(data, message)


def test_permuted_directory_names_are_no_fault(data):
    assert data.train_dirs != sorted(data.train_dirs)
    run(data)


def test_labels_may_be_spelled_as_text(data):
    for entry in data.train:
        entry["id"] = str(entry["id"])
    data.save()
    assert run(data).num_classes == 3


def test_test_labels_may_start_again_from_one(data):
    for rows in data.test.values():
        for row in rows:
            row[0] -= 3
    data.save()
    run(data)


def test_a_person_in_both_splits_is_refused(data):
    dir_id = data.train_dirs[1]
    path = data.images("vis", dir_id)[0].relative_to(data.root).as_posix()
    data.test["RGB_GALLERY"].append([9, path])
    data.save()
    refuses(data, f"1 persons are in both splits, for example directory {dir_id}")


def test_a_file_with_the_same_content_in_both_splits_is_refused_and_both_are_named(data):
    train, test = data.images("cp", data.train_dirs[0])[0], data.images("sk", data.test_dirs[1])[1]
    test.write_bytes(train.read_bytes())
    refuses(data, f"{train.name} = .*{test.name}")


def test_a_file_repeated_in_one_split_is_counted(data):
    first, second = data.images("cp", data.train_dirs[0])
    second.write_bytes(first.read_bytes())
    assert run(data).notes["repeated_files"] == 1


@pytest.mark.parametrize("name", ["train_annos.json", "test_gallery_and_queries.json"])
def test_a_missing_or_broken_json_is_refused(data, name):
    (data.root / name).write_text("[{")
    refuses(data, f"{name} cannot be read as JSON")
    (data.root / name).write_text('"words"')
    refuses(data, f"{name} holds a str")
    (data.root / name).unlink()
    refuses(data, f"{name} is missing")


def test_a_folder_of_another_kind_is_refused(data):
    (data.root / "sk").rename(data.root / "sketch")
    refuses(data, "has no directory sk; expected an ORBench folder")


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": (0, 8)},
        {"context_length": 2},
        {"shard_rows": 0},
        {"max_quarantine_share": 1.5},
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
