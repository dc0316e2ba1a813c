"""Checkpoints in S3: a real client against a real S3 API on loopback."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.config import Config
from service.data.fitting import plan_for_all
from service.distributed import Distributed
from service.errors import CheckpointError, DataError
from service.orchestration.evaluate import evaluate_run
from service.orchestration.runs import create_run
from service.settings import override
from service.training import saving
from service.training import store as store_module
from service.training import writer as writer_module
from service.training.checkpoint import best_of, load
from service.training.journal import read_journal
from service.training.loop import train
from service.training.ports import Ports
from service.training.store import Store, open_checkpoints
from tests.small import dies_after, small_config
from tests.states import same, without_clock

server = pytest.importorskip("moto.server", reason="needs moto and s3fs: make setup installs them")
s3fs = pytest.importorskip("s3fs", reason="needs moto and s3fs: make setup installs them")


BUCKET = "checkpoints"
SECRET = "not-to-be-told"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client with an empty bucket; whoever opens s3:// in this test gets here."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(writer_module, "PAUSES_S", (0.01, 0.02))
    s3fs.S3FileSystem.clear_instance_cache()
    client = s3fs.S3FileSystem()
    client.mkdir(BUCKET)
    yield client
    client.invalidate_cache()
    client.rm(BUCKET, recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def config(records: Path, folder: Path) -> Config:
    overrides = [
        *("train.max_steps=40", "train.checkpoint_every=10", "log.health_every=10"),
        *(f"run.storage={folder}", f"run.checkpoints=s3://{BUCKET}/team/"),
    ]
    return small_config(records, overrides)


def test_a_run_with_its_checkpoints_in_s3_survives_and_keeps_the_best_and_the_last(
    records: Path, tmp_path: Path, s3: Any
):
    run = create_run(config(records, tmp_path), "r")
    with pytest.raises(KeyboardInterrupt):
        train(run.config, run.path, Distributed.single(), Ports(poll=dies_after(23)))
    store = open_checkpoints(run.config.run.checkpoints, run.path)
    assert store.steps() == [10, 20]
    s3.pipe_file(f"{BUCKET}/team/r/checkpoint_00000020/state.pt", b"damaged")
    train(run.config, run.path, Distributed.single(), Ports())
    starts = [e["step"] for e in read_journal(run.path) if e["event"] == "start"]
    assert starts == [0, 10]
    assert not list(run.path.glob("checkpoint_*"))
    kept = store.steps()
    best = best_of(store, kept)
    assert kept == sorted({30, 40, best})
    files = s3.find(f"{BUCKET}/team/r")
    assert len(files) == 2 * len(kept) + len(["owner.json"])
    assert evaluate_run(str(run.path), checkpoint="best")[1]["evaluated_step"] == best

    plain = create_run(override(run.config, ["run.checkpoints=null"]), "plain")
    train(plain.config, plain.path, Distributed.single(), Ports())
    straight = without_clock(load(open_checkpoints(None, plain.path), 40))
    again = without_clock(load(store, 40))
    assert all(same(straight[part], again[part]) for part in straight)


def test_uploads_that_fail_once_and_then_are_slow_lose_no_checkpoint_in_silence(
    records: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
):
    """Every file fails at first. The first of a checkpoint's that then goes up takes until others
    wait behind it."""
    tried, is_late = set[str](), threading.Event()
    upload = s3fs.S3FileSystem._pipe_file

    async def fail_then_wait(fs: Any, path: str, data: bytes, **words: Any) -> Any:
        if path not in tried:
            tried.add(path)
            raise OSError("connection reset")
        assert not path.endswith(".pt") or await asyncio.to_thread(is_late.wait, 60)
        await asyncio.sleep(0.05)
        return await upload(fs, path, data, **words)

    def progress(step: int, total: int, line: dict[str, Any]) -> None:
        if step >= 35:
            is_late.set()

    monkeypatch.setattr(saving, "FIRST_PAUSES_S", (0.01,))
    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", fail_then_wait)
    s3fs.S3FileSystem.clear_instance_cache()
    keeping = override(config(records, tmp_path), ["train.keep_checkpoints=99"])
    run = create_run(keeping, "slow")
    train(run.config, run.path, Distributed.single(), Ports(progress=progress))

    kinds = ("checkpoint", "checkpoint_skipped", "checkpoint_failed")
    told = {
        kind: [e["step"] for e in read_journal(run.path) if e["event"] == kind] for kind in kinds
    }
    assert sorted(step for steps in told.values() for step in steps) == [10, 20, 30, 40]
    store = open_checkpoints(run.config.run.checkpoints, run.path)
    assert told["checkpoint"] == store.steps()
    assert {10, 40} <= set(store.steps())
    assert 20 in told["checkpoint_skipped"]
    assert all(load(store, step)["progress"]["step"] == step for step in store.steps())


def put_and_read(store: Store, step: int, size: int) -> None:
    state = bytes(range(256)) * (size // 256)
    store.put(step, state, b"{}")
    assert store.read(step, "state.pt") == state


def test_large_files_go_up_and_are_verified_in_parts(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
):
    """Above 100 MiB the client uploads in parts."""
    monkeypatch.setattr(store_module, "_BLOCK", 7 << 20)
    store = open_checkpoints(f"s3://{BUCKET}", tmp_path)
    put_and_read(store, 1, 101 << 20)
    store.delete(1)
    assert (store.steps(), store.read(1, "state.pt")) == ([], None)


def test_what_another_client_wrote_and_deleted_is_seen_at_once(tmp_path: Path, s3: Any):
    store = open_checkpoints(f"s3://{BUCKET}", tmp_path)
    put_and_read(store, 1, 256)
    assert store.steps() == [1]
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    root = f"{BUCKET}/{tmp_path.name}"
    other.pipe_file(f"{root}/checkpoint_00000002/manifest.json", b"{}")
    assert store.steps() == [1, 2]
    other.rm(f"{root}/checkpoint_00000001", recursive=True)
    assert store.steps() == [2]
    assert store.read(1, "manifest.json") is None


def test_a_wrong_bucket_is_told_and_not_made(tmp_path: Path, s3: Any):
    store = open_checkpoints("s3://another-bucket", tmp_path)
    with pytest.raises(CheckpointError, match="there is no another-bucket"):
        store.put(1, b"x", b"{}")
    assert s3.ls("") == [BUCKET]


def test_no_server_is_told_without_the_secret(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = open_checkpoints(f"s3://{BUCKET}", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"cannot reach s3://checkpoints.*127\.0\.0\.1:9"
    ) as e:
        store.steps()
    assert SECRET not in str(e.value)


def test_a_plan_of_records_in_s3_reads_no_image(
    s3: Any, records: Path, tmp_path: Path, monkeypatch
):
    """Against a client that fetches its parts at the same time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    s3.put(f"{records}/", f"{BUCKET}/records/", recursive=True)
    there = plan_for_all(small_config(records, [f"data.records=s3://{BUCKET}/records"]))
    here = plan_for_all(small_config(records))
    assert there.stats == here.stats
    assert (there.drawn == here.drawn).all()
    assert list(tmp_path.iterdir()) == []

    (shard,) = [path for path in s3.ls(f"{BUCKET}/records") if "train" in path]
    s3.pipe_file(shard, s3.cat_file(shard)[:1000])
    with pytest.raises(DataError, match=r"train-00000\.arrow is not the shard of .*it is shorter"):
        plan_for_all(small_config(records, [f"data.records=s3://{BUCKET}/records"]))
