"""Reading and decoding records, against individual files, LMDB and the usual DataLoader.

    OMP_NUM_THREADS=1 python tests/bench/bench_records.py

Prints one JSON line per comparison: `ratio` is ours / peer, `bar` the most it may be; a peer that
is not installed gives a line with `skipped`. Exits with 1 if a bar is missed. Wall time, medians of
interleaved rounds on a warm page cache; memory is what processes hold beside the page cache.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from service.config import LoaderConfig, SamplerConfig
from service.data.index import IdentityIndex
from service.data.loader import Loader
from service.data.manifest import MANIFEST_FILE, Manifest, TrainPerson
from service.data.records import Records
from service.data.sampler import PKPlan
from service.data.shards import Record, write_queries, write_shard
from service.modality import Modality

SIZE = (384, 128)
PEOPLE, EACH, SHARD_ROWS = 50, 40, 500
NUM = PEOPLE * EACH
MEAN, STD = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2757)
THREADS = 2


def emit(name: str, unit: str, ours: float, peer: float, bar: float) -> bool:
    """Print one comparison; whether it meets its bar."""
    ratio = ours / peer
    line = {"bench": name, "unit": unit, "ours": round(ours, 4), "peer": round(peer, 4)}
    line |= {"ratio": round(ratio, 3), "bar": round(bar, 3), "ok": ratio <= bar}
    print(json.dumps(line), flush=True)
    return ratio <= bar


def interleaved(
    ours: Callable[[], float], peer: Callable[[], float], num_rounds: int
) -> tuple[float, float]:
    """Medians of two timings that take turns, after one round that does not count."""
    ours(), peer()
    rounds = [(ours(), peer()) for _ in range(num_rounds)]
    return statistics.median(r[0] for r in rounds), statistics.median(r[1] for r in rounds)


def make_jpegs() -> list[bytes]:
    """Blurred noise at the training size, about 13 KiB each, like a photo of a person."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(NUM):
        coarse = rng.normal(128, 60, (48, 16, 3)).astype(np.float32)
        pixels = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        pixels += rng.normal(0, 7, pixels.shape)
        jpegs.append(simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=88))
    return jpegs


def write_records(jpegs: list[bytes], folder: Path) -> Records:
    """Two thirds VIS, one third NIR of each person, as a records folder."""
    folder.mkdir()
    records = [
        Record(
            modality=Modality.NIR if i % 3 == 2 else Modality.VIS,
            class_index=i // EACH,
            label=i // EACH + 1,
            dir_id=f"{i // EACH:04d}",
            payload=jpeg,
            caption="",
            tokens=np.empty(0, np.int32),
            source=f"{i}.jpg",
            camera=-1,
            view="",
            sha256=bytes(32),
        )
        for i, jpeg in enumerate(jpegs)
    ]
    shards = tuple(
        write_shard(folder / f"train-{start:05d}.arrow", records[start : start + SHARD_ROWS])
        for start in range(0, NUM, SHARD_ROWS)
    )
    manifest = Manifest(
        image_size=SIZE,
        context_length=77,
        tokenizer="none",
        vocab_size=0,
        shards={"train": shards, "test": ()},
        queries=write_queries(folder / "queries.arrow", []),
        counts={"train": {}, "test": {}},
        classes=tuple(TrainPerson(f"{i:04d}", i + 1, i) for i in range(PEOPLE)),
        query_counts={},
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.to_json())
    return Records.open(str(folder), "train")


def per_record(read: Callable[[int], object]) -> Callable[[], float]:
    """Microseconds a record for `read`, every row once in a random order, one byte a cache line."""
    order = np.random.default_rng(1).permutation(NUM).tolist()

    def run() -> float:
        start = time.perf_counter()
        for row in order:
            np.frombuffer(read(row), np.uint8)[::64].sum()  # type: ignore[call-overload]
        return (time.perf_counter() - start) / NUM * 1e6

    return run


def bench_reading(records: Records, folder: Path, jpegs: list[bytes]) -> bool:
    paths = [folder / "files" / f"{i}.jpg" for i in range(NUM)]
    ours, peer = interleaved(
        per_record(records.jpeg), per_record(lambda i: paths[i].read_bytes()), 7
    )
    good = emit("record read / individual file", "us", ours, peer, 1 / 3)
    if importlib.util.find_spec("lmdb") is None:
        line = {"bench": "record read / LMDB", "skipped": "pip install lmdb"}
        print(json.dumps(line), flush=True)
        return good
    import lmdb

    with lmdb.open(str(folder / "lmdb"), map_size=2**31, readahead=False) as store:
        with store.begin(write=True) as write:
            for i, jpeg in enumerate(jpegs):
                write.put(b"%08d" % i, jpeg)
        with store.begin(buffers=True) as read:
            get = per_record(lambda i: read.get(b"%08d" % i))
            ours, peer = interleaved(per_record(records.jpeg), get, 7)
    return emit("record read / LMDB", "us", ours, peer, 1 / 0.9) and good


MEMORY_PROBE = """
import re, sys
import numpy as np
from service.data.records import Records
if sys.argv[1]:
    records = Records.open(sys.argv[1], "train")
    for row in np.random.default_rng(2).permutation(records.num_rows):
        records.jpeg(int(row))[::64].sum()
print(re.search(r"Anonymous: +(\\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


def bench_memory(folder: Path) -> bool:
    """Anonymous memory of 4 processes that read every record, against 4 that only import."""

    def total(url: str) -> float:
        command = [sys.executable, "-c", MEMORY_PROBE, url]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        return sum(int(run.communicate()[0]) for run in runs) / 1024

    return emit("memory of 4 readers / 4 importers", "MiB", total(str(folder)), total(""), 1.05)


class FileDataset(Dataset):
    """One file an item: Pillow, torchvision transforms, float32."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._transform = T.Compose(
            [
                T.Resize(SIZE),
                T.RandomHorizontalFlip(),
                T.Pad(10),
                T.RandomCrop(SIZE),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, i: int) -> torch.Tensor:
        return self._transform(Image.open(self._folder / f"{i}.jpg").convert("RGB"))


def bench_loader(records: Records, folder: Path) -> bool:
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    plan = PKPlan(index, SamplerConfig(ids_per_batch=16, rows_per_id=4), 0)
    loader = Loader(records, plan, 0, 0, 1, LoaderConfig(threads=THREADS))
    usual = DataLoader(
        FileDataset(folder),
        batch_size=64,
        shuffle=True,
        num_workers=THREADS,
        persistent_workers=True,
    )

    def run_usual() -> float:
        start = time.perf_counter()
        num = sum(len(images) for images in usual)
        return (time.perf_counter() - start) / num * 1e6

    def run_ours() -> float:
        start = time.perf_counter()
        num = sum(len(batch.images) for batch in loader.epoch(1))
        return (time.perf_counter() - start) / num * 1e6

    ours, peer = interleaved(run_ours, run_usual, 3)
    return emit("loader threads / Pillow float32 DataLoader", "us", ours, peer, 1 / 3)


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = make_jpegs()
        (folder / "files").mkdir()
        for i, jpeg in enumerate(jpegs):
            (folder / "files" / f"{i}.jpg").write_bytes(jpeg)
        records = write_records(jpegs, folder / "records")
        results = [
            bench_reading(records, folder, jpegs),
            bench_memory(folder / "records"),
            bench_loader(records, folder / "files"),
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
