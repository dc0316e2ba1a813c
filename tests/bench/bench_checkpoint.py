"""What a checkpoint takes from training, which hands a copy over and goes on.

    OMP_NUM_THREADS=1 python tests/bench/bench_checkpoint.py

Trains the demo's model and saves after every step, so that a write is nearly always on its way.
Prints JSON lines for each store: milliseconds that the loop is held for a save (`whole`: asking for
the last measurements, packing the state, copying it and handing it over), of the copy in it, and of
all the rest, as p50 and p99 over the saves after the warm-up. Lines with `bar` say the most that a
p99 may be; exits with 1 if one is missed. `step_ms` are the steps' own medians without and with a
save after each. BENCH_STEPS makes it shorter, to see that it works.
"""

import json
import os
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
from service.training.saving import Saving
from tests.bench.timing import demo_config, run_folder
from tests.faulty import FaultyFileSystem, register

STEPS = int(os.environ.get("BENCH_STEPS", "100"))
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


def shares(values: list[float]) -> dict[str, float]:
    return {"p50": at(values, 0.5), "p99": at(values, 0.99)}


def at(values: list[float], share: float) -> float:
    return round(sorted(values)[min(int(share * len(values)), len(values) - 1)], 2)


def held_ms(
    flushed: list[float], taken: list[float], copied: list[float]
) -> dict[str, list[float]]:
    """Milliseconds of each save after the warm-up.

    A save comes after every step, which asks for the measurements once, and the copy is a part of
    the save: one for one, but for a last question when there is no step left.
    """
    whole = [ask + save for ask, save in zip(flushed, taken, strict=False)]
    rest = [held - copy for held, copy in zip(whole, copied, strict=True)]
    parts = {"whole": whole, "copy": copied, "rest": rest}
    return {name: values[WARM_UP:] for name, values in parts.items()}


def bench(config: Config, folder: Path, store: str, alone_ms: float) -> bool:
    run = run_folder(folder, store)
    place = {"folder": "null", "slow": "faulty://bucket/at"}[store]
    saving = override(config, ["train.checkpoint_every=1", f"run.checkpoints={place}"])
    with (
        durations(Trainer, "_flush") as flushed,
        durations(Saving, "take") as taken,
        durations(writer_module, "snapshot") as copied,
    ):
        train(saving, run)
    held = held_ms(flushed, taken, copied)
    emit(
        store=store,
        unit="ms",
        saves=len(held["whole"]),
        **{name: shares(values) for name, values in held.items()},
        step_ms={"without": round(alone_ms, 1), "with": round(steps_ms(run), 1)},
        skipped=sum(e["event"] == "checkpoint_skipped" for e in read_journal(run)),
    )
    return all(
        [
            most(f"{store}: p99 of what a save takes from training", at(held["whole"], 0.99)),
            most(f"{store}: p99 of that beyond the copy", at(held["rest"], 0.99)),
        ]
    )


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "checkpoint", **line}), flush=True)


def most(name: str, value: float) -> bool:
    emit(bar=BAR_MS, what=name, value=value, ok=value <= BAR_MS)
    return value <= BAR_MS


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
