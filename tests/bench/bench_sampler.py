"""The PK plan against pytorch-metric-learning's MPerClassSampler and a plain identity sampler.

    python tests/bench/bench_sampler.py

One JSON line a sampler and size, then one a bar; under a minute on one core, and exit status 1 if
a bar is missed. Times are CPU time, medians of three rounds. Quality is counted over one epoch.
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from pytorch_metric_learning.samplers import MPerClassSampler

from service.config import SamplerConfig
from service.data.index import IdentityIndex
from service.data.sampler import PKPlan

ROUNDS = 3
SIZES = {"30k": (30_000, 400, 16, None), "1M": (1_000_000, 10_000, 64, 300)}
"""Records, ids, P and how many batches are timed (None: the epoch)."""
K = 4
MIX = np.array([45, 26, 18, 18, 45]) / 152


def columns(num_rows: int, num_ids: int) -> tuple[np.ndarray, np.ndarray]:
    """Gamma-tailed ids, the modality mix of the benchmark data set, one id in twenty VIS only."""
    rng = np.random.default_rng(0)
    weight = rng.gamma(2.0, 1.0, num_ids)
    drawn = rng.choice(num_ids, num_rows - num_ids, p=weight / weight.sum())
    classes = np.concatenate((np.arange(num_ids), drawn)).astype(np.int32)
    modality = rng.choice(5, num_rows, p=MIX).astype(np.int8)
    modality[np.isin(classes, rng.choice(num_ids, num_ids // 20, replace=False))] = 0
    return classes, modality


class Ours:
    def __init__(self, classes: np.ndarray, modality: np.ndarray, num_ids: int) -> None:
        index = IdentityIndex.build(classes, modality, int(classes.max()) + 1)
        config = SamplerConfig(ids_per_batch=num_ids, rows_per_id=K, mix="natural")
        self.plan = PKPlan(index, config, 0)
        self.epoch = 0

    def begin(self) -> None:
        self.epoch += 1
        self.plan.batch(self.epoch, 0)

    def batches(self) -> Iterator[np.ndarray]:
        for step in range(self.plan.steps_per_epoch):
            yield self.plan.batch(self.epoch, step).rows


class PyTorchMetricLearning:
    def __init__(self, classes: np.ndarray, modality: np.ndarray, num_ids: int) -> None:
        self.size = num_ids * K
        self.sampler = MPerClassSampler(classes, K, self.size, len(classes))

    def begin(self) -> None:
        """Its epoch list is made by iterating."""

    def batches(self) -> Iterator[np.ndarray]:
        yield from grouped(iter(self.sampler), self.size)


class IdentityChunks:
    """Each id's rows cut into K; P random ids with chunks left give one each, until too few are."""

    def __init__(self, classes: np.ndarray, modality: np.ndarray, num_ids: int) -> None:
        self.rng = np.random.default_rng(0)
        self.num_ids = num_ids
        self.rows_of: dict[int, list[int]] = {}
        for row, c in enumerate(classes.tolist()):
            self.rows_of.setdefault(c, []).append(row)

    def begin(self) -> None:
        self.chunks: dict[int, list[np.ndarray]] = {}
        for c, rows in self.rows_of.items():
            mixed = self.rng.permutation(rows if len(rows) >= K else np.resize(rows, K))
            self.chunks[c] = np.split(mixed[: len(mixed) // K * K], len(mixed) // K)

    def batches(self) -> Iterator[np.ndarray]:
        left = list(self.chunks)
        while len(left) >= self.num_ids:
            chosen = self.rng.choice(len(left), self.num_ids, replace=False)
            yield np.concatenate([self.chunks[left[i]].pop() for i in chosen])
            for i in sorted(chosen.tolist(), reverse=True):
                if not self.chunks[left[i]]:
                    left[i] = left[-1]
                    left.pop()


def grouped(rows: Iterator[int], size: int) -> Iterator[np.ndarray]:
    while len(batch := list(islice(rows, size))) == size:
        yield np.array(batch)


SAMPLERS = {
    "crossreid": Ours,
    "pytorch-metric-learning": PyTorchMetricLearning,
    "identity-chunks": IdentityChunks,
}


def timed(act: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = act()
    return time.process_time() - start, result


def speed(make: Callable, data: tuple, num_ids: int, limit: int | None) -> dict[str, float]:
    build, sampler = timed(lambda: make(*data, num_ids))
    plan, _ = timed(sampler.begin)
    draw, count = timed(lambda: sum(1 for _ in islice(sampler.batches(), limit)))
    return {"build_ms": build * 1e3, "plan_ms": plan * 1e3, "batches_per_s": count / draw}


def quality(make: Callable, data: tuple, num_ids: int) -> dict[str, float]:
    """Shares over one epoch: rows without a partner, records seen; and the worst repeats."""
    classes, modality = data
    sampler = make(*data, num_ids)
    sampler.begin()
    seen = np.zeros(len(classes), np.int64)
    lonely, total, steps, least_ids, repeated = np.zeros(2), np.zeros(2), 0, num_ids, 0
    for rows in sampler.batches():
        owner, is_vis = classes[rows], modality[rows] == 0
        for k, (mine, other) in enumerate(((~is_vis, is_vis), (is_vis, ~is_vis))):
            lonely[k] += (~np.isin(owner[mine], owner[other])).sum()
            total[k] += mine.sum()
        np.add.at(seen, rows, 1)
        steps += 1
        least_ids = min(least_ids, len(np.unique(owner)))
        repeated += len(rows) - len(np.unique(rows))
    pairable = IdentityIndex.build(classes, modality, int(classes.max()) + 1).pairable[classes]
    return {
        "steps": steps,
        "non_vis_rows_without_vis": lonely[0] / total[0],
        "vis_rows_without_non_vis": lonely[1] / total[1],
        "records_seen": float((seen > 0).mean()),
        "pairable_records_seen": float((seen[pairable] > 0).mean()),
        "ids_seen": len(np.unique(classes[seen > 0])) / len(np.unique(classes)),
        "least_ids_in_a_batch": least_ids,
        "rows_twice_in_a_batch": repeated,
        "most_repeats": int(seen.max()),
    }


def bars(lines: dict[tuple[str, str], dict]) -> dict[str, bool]:
    ours, peer = lines["30k", "crossreid"], lines["30k", "pytorch-metric-learning"]
    big, big_peer = lines["1M", "crossreid"], lines["1M", "pytorch-metric-learning"]
    return {
        "no row without a partner": ours["non_vis_rows_without_vis"] == 0
        and ours["vis_rows_without_non_vis"] == 0,
        "every pairable record seen": ours["pairable_records_seen"] == 1,
        "no row twice in a batch": ours["rows_twice_in_a_batch"] == 0,
        "build within 1.3x a stable argsort of the keys": big["build_over_stable_argsort"] < 1.3,
        "draws faster than pytorch-metric-learning": ours["batches_per_s"] > peer["batches_per_s"]
        and big["batches_per_s"] > big_peer["batches_per_s"],
    }


def main() -> None:
    lines = {}
    for size, (num_rows, num_classes, num_ids, limit) in SIZES.items():
        data = columns(num_rows, num_classes)
        key = data[0] * np.int32(5) + data[1]
        peer = statistics.median(
            timed(functools.partial(np.argsort, key, kind="stable"))[0] for _ in range(ROUNDS)
        )
        rounds = {
            name: [speed(make, data, num_ids, limit) for _ in range(ROUNDS)]
            for name, make in SAMPLERS.items()
            if not (size == "1M" and name == "identity-chunks")
        }
        for name, runs in rounds.items():
            line = {"bench": "sampler", "size": size, "sampler": name, "P": num_ids, "K": K}
            line |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            line["build_over_stable_argsort"] = line["build_ms"] / (peer * 1e3)
            if size == "30k":
                line |= quality(SAMPLERS[name], data, num_ids)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
            print(json.dumps(shown), flush=True)
            lines[size, name] = line
    results = bars(lines)
    for bar, met in results.items():
        print(json.dumps({"bench": "sampler", "bar": bar, "met": bool(met)}))
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
