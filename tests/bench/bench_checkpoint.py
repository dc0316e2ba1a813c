"""What a checkpoint takes from training, which hands a copy over and goes on.

    OMP_NUM_THREADS=1 python tests/bench/bench_checkpoint.py

Trains the demo's model and saves after every step, so that a write is nearly always on its way.
Prints one JSON line for each store: milliseconds of `write`, of the copy inside it, and of all the
rest, as p50 and p99 over the saves; `bar` is the most that the rest's p99 may be. Exits with 1 if
it is missed. `step_ms` are the steps' own medians without and with a save after each.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.config import Config
from service.distributed import Distributed
from service.settings import override
from service.training import writer as writer_module
from service.training.journal import read_journal
from service.training.loop import Trainer
from service.training.ports import Ports
from service.training.writer import CheckpointWriter
from tests.bench.timing import demo_config, run_folder
from tests.faulty import FaultyFileSystem, register

STEPS = 100
WARM_UP = 10
BAR_MS = 20.0
SLOW_S = 0.5
"""Seconds that a write to the slow store takes at least."""


@contextmanager
def durations(owner: Any, name: str) -> Iterator[list[float]]:
    """Milliseconds of every call while it is open."""
    found: list[float] = []
    real: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return real(*args, **named)
        finally:
            found.append((time.perf_counter() - begin) * 1000)

    with patch.object(owner, name, call):
        yield found


def steps_ms(folder: Path) -> float:
    seconds = [e["seconds"] for e in read_journal(folder) if e["event"] == "steps"]
    return statistics.median(seconds[WARM_UP:]) * 1000


def train(config: Config, folder: Path) -> None:
    trainer = Trainer(config, folder, Distributed.single(), Ports())
    try:
        trainer.run()
    finally:
        trainer.close()


def at(values: list[float], share: float) -> float:
    return round(sorted(values)[min(int(share * len(values)), len(values) - 1)], 2)


def bench(config: Config, folder: Path, store: str, alone_ms: float) -> bool:
    run = run_folder(folder, store)
    place = {"folder": "null", "slow": "faulty://bucket/at"}[store]
    saving = override(config, ["train.checkpoint_every=1", f"run.checkpoints={place}"])
    with (
        durations(writer_module, "snapshot") as copied,
        durations(CheckpointWriter, "write") as written,
    ):
        train(saving, run)
    # The copy of a state is made inside `write`, one for one.
    rest = [whole - part for whole, part in zip(written, copied, strict=True)][WARM_UP:]
    line = {
        "bench": "checkpoint",
        "store": store,
        "unit": "ms",
        "saves": len(rest),
        "write": {"p50": at(written, 0.5), "p99": at(written, 0.99)},
        "copy": {"p50": at(copied, 0.5), "p99": at(copied, 0.99)},
        "rest": {"p50": at(rest, 0.5), "p99": at(rest, 0.99)},
        "step_ms": {"without": round(alone_ms, 1), "with": round(steps_ms(run), 1)},
        "skipped": sum(e["event"] == "checkpoint_skipped" for e in read_journal(run)),
        "bar": BAR_MS,
        "ok": at(rest, 0.99) <= BAR_MS,
    }
    print(json.dumps(line), flush=True)
    return bool(line["ok"])


def main() -> int:
    register()
    FaultyFileSystem.fresh().slow_s = SLOW_S
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = override(
            demo_config(folder, STEPS + WARM_UP), ["log.every=1", "train.checkpoint_every=100000"]
        )
        alone = run_folder(folder, "alone")
        train(base, alone)
        alone_ms = steps_ms(alone)
        met = [bench(base, folder, store, alone_ms) for store in ("folder", "slow")]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
