import dataclasses
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import open_clip
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.data.ingest import ingest
from service.data.manifest import MANIFEST_FILE, parse_manifest
from service.data.records import Records
from service.errors import DataError
from service.modality import Modality
from tests.orbench import OrbenchFolder, write_orbench

SIZE = (24, 12)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OrbenchFolder:
    return write_orbench(tmp_path_factory.mktemp("source") / "data", size=SIZE)


@pytest.fixture(scope="module")
def folder(source: OrbenchFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records in shards of 7 rows, so that several exist."""
    out = tmp_path_factory.mktemp("records") / "out"
    ingest(source.root, str(out), image_size=SIZE, shard_rows=7)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def remote(folder: Path):
    """The same records in fsspec's in-memory store."""
    fs: MemoryFileSystem = fsspec.filesystem("memory")
    fs.store.clear()
    for path in folder.iterdir():
        fs.pipe_file(f"/bucket/records/{path.name}", path.read_bytes())
    yield "memory://bucket/records"
    fs.store.clear()


def read_all(records: Records) -> list[tuple]:
    return [
        (records.jpeg(row).tobytes(), records.caption(row), records.source(row))
        for row in range(records.num_rows)
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_image_is_its_source_file_and_the_columns_fit_it(source, folder, split):
    records = Records.open(str(folder), split)
    dirs = source.train_dirs + source.test_dirs
    for row in range(records.num_rows):
        modality = Modality(records.modality[row])
        assert records.dir_id(row) == dirs[records.label[row] - 1]
        expected = records.label[row] - 1 if split == "train" else -1
        assert records.class_index[row] == expected
        if modality == Modality.TEXT:
            assert records.jpeg(row).size == 0
            assert records.caption(row)
            assert records.source(row).endswith("]")
        else:
            path = source.root / records.source(row)
            assert path.parts[-3:-1] == (modality.label, records.dir_id(row))
            assert records.jpeg(row).tobytes() == path.read_bytes()
            assert records.caption(row) == ""
            assert records.camera(row) == {Modality.VIS: 5, Modality.NIR: 3}.get(modality, -1)
            assert records.view(row) == {Modality.CP: "front", Modality.SK: "back"}.get(
                modality, ""
            )


def test_the_train_split_holds_every_image_and_caption_once(source, folder):
    records = Records.open(str(folder), "train")
    images = {
        path.relative_to(source.root).as_posix()
        for modality in ("vis", "nir", "cp", "sk")
        for dir_id in source.train_dirs
        for path in source.images(modality, dir_id)
    }
    sources = [records.source(row) for row in range(records.num_rows)]
    texts = [f"train_annos.json[{i}]" for i in range(len(source.train))]
    assert sorted(sources) == sorted([*images, *texts])
    for row in np.flatnonzero(records.modality == Modality.TEXT):
        entry = source.train[texts.index(sources[row])]
        assert (records.caption(row), records.label[row]) == (entry["caption"], entry["id"])


def test_queries_and_gallery_name_the_rows_of_the_official_file(source, folder):
    records = Records.open(str(folder), "test")

    def of(rows):
        return [records.caption(r) or records.source(r) for r in np.atleast_1d(rows).tolist()]

    gallery = [[int(records.label[r]), *of(r)] for r in records.gallery]
    assert gallery == source.test["RGB_GALLERY"]
    assert [query.key for query in records.queries] == list(source.test)[1:]
    for query in records.queries:
        assert query.members.dtype == np.int64
        pairs = zip(query.label.tolist(), query.members, strict=True)
        assert [[label, *of(members)] for label, members in pairs] == source.test[query.key]


def test_tokens_are_those_of_the_tokenizer_and_zero_for_images(folder):
    records = Records.open(str(folder), "train")
    rows = np.arange(records.num_rows)
    tokens = records.tokens(rows)
    assert tokens.dtype == np.int32
    expected = open_clip.get_tokenizer("ViT-B-16")([records.caption(r) for r in rows]).numpy()
    expected[records.modality != Modality.TEXT] = 0
    assert (tokens == expected).all()
    assert records.tokens([]).shape == (0, 77)


def test_views_are_read_only_and_point_into_the_map(folder):
    records = Records.open(str(folder), "train")
    first, again = records.jpeg(0), records.jpeg(0)
    assert first.dtype == np.uint8
    assert first.ctypes.data == again.ctypes.data
    assert not first.flags.owndata
    assert not first.flags.writeable
    assert not records.label.flags.writeable


def test_a_view_outlives_its_records(folder):
    view = Records.open(str(folder), "train").jpeg(3)
    assert view.tobytes() == Records.open(str(folder), "train").jpeg(3).tobytes()


def test_records_pickle_as_their_address(folder):
    records = Records.open(str(folder), "test")
    spelled = pickle.dumps(records)
    assert len(spelled) < 500
    again = pickle.loads(spelled)
    assert read_all(again) == read_all(records)
    assert again.fingerprint == records.fingerprint


def test_reading_imports_neither_torch_nor_pandas(folder):
    """Either would cost every process that reads tens of megabytes."""
    code = (
        "import sys; from service.data.records import Records\n"
        f"records = Records.open({str(folder)!r}, 'test')\n"
        "records.jpeg(0), records.caption(0), records.tokens([0]), records.queries\n"
        "sys.exit(bool({'torch', 'pandas', 'open_clip'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_read_the_same_as_one(folder):
    records = Records.open(str(folder), "train")
    expected = read_all(records)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(read_all, records) for _ in range(16)]:
            assert future.result() == expected


@pytest.mark.parametrize("row", [-1, 30])
def test_a_row_out_of_range_is_refused(folder, row):
    records = Records.open(str(folder), "train")
    assert records.num_rows == 30
    with pytest.raises(IndexError, match="30 rows"):
        records.jpeg(row)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no manifest\.json.*crossreid data ingest"):
        Records.open(str(tmp_path), "train")


def test_missing_and_cut_shards_are_named_together(copy):
    (copy / "train-00001.arrow").unlink()
    (copy / "train-00002.arrow").write_bytes(b"short")
    with pytest.raises(DataError) as error:
        Records.open(str(copy), "train")
    assert "train-00001.arrow is missing" in str(error.value)
    assert "train-00002.arrow has 5 bytes" in str(error.value)
    Records.open(str(copy), "test")


def test_a_shard_of_the_right_size_but_no_arrow_file_is_refused(copy):
    shard = copy / "test-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"test-00000\.arrow is not a records file"):
        Records.open(str(copy), "test")


def test_verify_names_the_file_in_which_one_bit_changed(copy):
    shard = copy / "train-00003.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    Records.open(str(copy), "test").verify()
    with pytest.raises(DataError, match=r"train-00003\.arrow"):
        Records.open(str(copy), "train").verify()


def edit_manifest(copy: Path, **values) -> None:
    path = copy / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema_version": 99}, "schema version 99, this program reads 1"),
        ({"image_size": "large"}, "damaged at `image_size`"),
        ({"queries": {"file": "../x", "rows": 1, "bytes": 1, "sha256": "0"}}, r"queries\.file"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(copy, values, message):
    edit_manifest(copy, **values)
    with pytest.raises(DataError, match=message):
        Records.open(str(copy), "train")


def test_a_manifest_that_is_not_json_is_refused(copy):
    (copy / MANIFEST_FILE).write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        Records.open(str(copy), "train")


def test_rows_must_be_as_many_as_the_manifest_says(copy):
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    manifest["shards"]["train"][0]["rows"] = 6
    edit_manifest(copy, **manifest)
    with pytest.raises(DataError, match="has 7 rows, the manifest says 6"):
        Records.open(str(copy), "train")


def test_manifests_survive_their_spelling(folder):
    manifest = Records.open(str(folder), "train").manifest
    again = parse_manifest(manifest.to_json(), "here")
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint
    assert dataclasses.replace(manifest, context_length=9).fingerprint != manifest.fingerprint


def count_gets(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every call of the store's `get`, as the list of remote paths."""
    calls, get = [], MemoryFileSystem.get

    def counted(self, remote, local, **settings):
        calls.append(remote)
        return get(self, remote, local, **settings)

    monkeypatch.setattr(MemoryFileSystem, "get", counted)
    return calls


@pytest.mark.parametrize("split", ["train", "test"])
def test_remote_records_equal_local_ones_and_are_fetched_once(
    folder, remote, split, tmp_path, monkeypatch
):
    calls = count_gets(monkeypatch)
    records = Records.open(remote, split, cache=tmp_path / "cache")
    assert read_all(records) == read_all(Records.open(str(folder), split))
    records.verify()
    assert len(calls) == 1
    again = pickle.loads(pickle.dumps(records))
    assert read_all(again) == read_all(records)
    assert len(calls) == 1
    left = {path.suffix for path in (tmp_path / "cache").iterdir() if path.name != ".lock"}
    assert left == {".arrow"}


def test_openers_at_the_same_time_fetch_once(remote, tmp_path, monkeypatch):
    calls = count_gets(monkeypatch)
    barrier = threading.Barrier(6)

    def open_together() -> int:
        barrier.wait()
        return Records.open(remote, "train", cache=tmp_path / "cache").num_rows

    with ThreadPoolExecutor(6) as pool:
        rows = [pool.submit(open_together) for _ in range(6)]
        assert {future.result() for future in rows} == {30}
    assert len(calls) == 1


def test_processes_of_a_node_fetch_each_file_once_between_them(folder, tmp_path):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            if self.command == "GET":
                fetched.append(self.path)

    fetched: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        code = (
            "from service.data.records import Records\n"
            f"records = Records.open({url!r}, 'train', cache={str(tmp_path)!r})\n"
            "records.verify()\n"
            "print(records.num_rows)"
        )
        command = [sys.executable, "-c", code]
        openers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        found = [opener.communicate(timeout=120)[0] for opener in openers]
        server.shutdown()
    assert found == [b"30\n"] * 3
    shards = [path for path in fetched if path.endswith(".arrow")]
    assert sorted(shards) == [f"/train-{i:05d}.arrow" for i in range(5)]


def test_a_cached_file_that_was_cut_is_fetched_again(remote, tmp_path, monkeypatch):
    records = Records.open(remote, "train", cache=tmp_path / "cache")
    expected = read_all(records)
    file = records.manifest.shards["train"][2]
    del records
    (tmp_path / "cache" / f"{file.sha256}.arrow").write_bytes(b"cut")
    (tmp_path / "cache" / "left-behind.partial").write_bytes(b"of a process that was killed")
    calls = count_gets(monkeypatch)
    assert read_all(Records.open(remote, "train", cache=tmp_path / "cache")) == expected
    assert calls == [["/bucket/records/train-00002.arrow"]]
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_damaged_remote_shard_is_named_and_never_cached(remote, tmp_path):
    fs = fsspec.filesystem("memory")
    content = bytearray(fs.cat_file("/bucket/records/train-00001.arrow"))
    content[len(content) // 2] ^= 1
    fs.pipe_file("/bucket/records/train-00001.arrow", bytes(content))
    file = Records.open(remote, "test", cache=tmp_path).manifest.shards["train"][1]
    with pytest.raises(DataError, match=r"train-00001\.arrow is damaged"):
        Records.open(remote, "train", cache=tmp_path)
    assert not (tmp_path / f"{file.sha256}.arrow").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_store_that_fails_half_way_leaves_nothing_half_in_the_cache(
    remote, tmp_path, monkeypatch
):
    def fail(self, remote, local, **settings):
        Path(local[0]).write_bytes(b"half")
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(MemoryFileSystem, "get", fail)
    with pytest.raises(DataError, match=r"cannot reach memory.*the line is dead"):
        Records.open(remote, "train", cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_unknown_protocol_is_refused():
    with pytest.raises(DataError, match="cannot reach nowhere://x"):
        Records.open("nowhere://x", "train")


def test_a_remote_folder_without_a_manifest_is_refused(remote):
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        Records.open(f"{remote}/deeper", "train")


def test_the_cache_is_by_default_in_the_users_cache_folder(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    records = Records.open(remote, "test")
    names = {file.sha256 for file in records.manifest.files("test")}
    assert {path.stem for path in (tmp_path / "crossreid").glob("*.arrow")} == names
