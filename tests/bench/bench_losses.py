"""Time and memory of SDM and of the cross-batch memory, against the usual way to write them.

    OMP_NUM_THREADS=1 python tests/bench/bench_losses.py

Prints one JSON line per comparison: `ratio` is ours / peer, `bar` the most it may be. Exits with 1
if a bar is missed. CPU time of one thread, medians of interleaved rounds.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from service.losses.memory import CrossBatchMemory
from service.losses.sdm import CE_FORM, KL_FORM, SdmForm, sdm_rows

DIM = 512
RANKS, STEPS = 8, 8
CLASSES = 400
MIB = 2**20


def emit(name: str, unit: str, ours: float, peer: float, bar: float) -> bool:
    """Print one comparison; whether it meets its bar."""
    ratio = ours / peer
    line = {"bench": name, "unit": unit, "ours": round(ours, 4), "peer": round(peer, 4)}
    line |= {"ratio": round(ratio, 3), "bar": bar, "ok": ratio <= bar}
    print(json.dumps(line), flush=True)
    return ratio <= bar


def naive_kl(
    query: Tensor, gallery: Tensor, form: SdmForm, labels: tuple[Tensor, Tensor]
) -> Tensor:
    """The textbook way: normalise everything, then a label matrix and a log-softmax beside it."""
    cosine = F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T
    log_p = F.log_softmax(form.logit_scale * cosine, dim=1)
    same = (labels[0][:, None] == labels[1][None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    if form.name == "ce":
        return -(target * log_p).sum(dim=1).mean()
    return (log_p.exp() * (log_p - (target + form.eps).log())).sum(dim=1).mean()


class SdmCase:
    """B queries of one rank against the live rows of all ranks and the memory, as raw features."""

    def __init__(self, rows: int, form: SdmForm) -> None:
        torch.manual_seed(0)
        live = rows * RANKS
        self.form = form
        self.query = torch.randn(rows, DIM).requires_grad_()
        self.gallery = torch.randn(live, DIM).requires_grad_()
        self.memory = F.normalize(torch.randn(live * STEPS, DIM), dim=1)
        self.query_class = torch.arange(rows) % CLASSES
        self.gallery_class = torch.arange(live) % CLASSES
        self.memory_class = torch.arange(live * STEPS) % CLASSES

    def ours(self) -> float:
        result = sdm_rows(
            F.normalize(self.query, dim=1),
            F.normalize(self.gallery, dim=1),
            self.memory,
            self.query_class,
            self.gallery_class,
            self.memory_class,
            self.form,
        )
        return self._backward(result.loss.mean())

    def peer(self) -> float:
        gallery = torch.cat([self.gallery, self.memory])
        labels = self.query_class, torch.cat([self.gallery_class, self.memory_class])
        return self._backward(naive_kl(self.query, gallery, self.form, labels))

    def five_products(self) -> None:
        """The products that any implementation needs: similarities, and two gradients."""
        with torch.no_grad():
            live, past = self.query @ self.gallery.T, self.query @ self.memory.T
            live @ self.gallery, past @ self.memory, live.T @ self.query

    def _backward(self, loss: Tensor) -> float:
        self.query.grad = self.gallery.grad = None
        loss.backward()
        return loss.item()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> list[float]:
    """Median CPU seconds of both, taken turn by turn after one unmeasured round."""
    samples = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def peak_mib(work: Callable[[], object]) -> float:
    """Extra resident memory at the highest point of `work`."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    work()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def bench_sdm_time() -> list[bool]:
    met = []
    for rows, rounds in ((64, 9), (256, 5)):
        for form in (CE_FORM, KL_FORM):
            case = SdmCase(rows, form)
            assert abs(case.ours() - case.peer()) < 1e-3
            name = f"sdm {form.name}, B={rows}, gallery={72 * rows}, forward+backward"
            ours, peer = interleaved(case.ours, case.peer, rounds)
            met.append(emit(f"{name} vs naive on cat", "s", ours, peer, bar=0.75))
            ours, peer = interleaved(case.ours, case.five_products, rounds)
            met.append(emit(f"{name} vs its five matrix products", "s", ours, peer, bar=2.5))
    return met


def bench_sdm_memory() -> list[bool]:
    met = []
    for rows in (64, 256):
        for form in (CE_FORM, KL_FORM):
            case = SdmCase(rows, form)
            case.ours(), case.peer()
            ours, peer = peak_mib(case.ours), peak_mib(case.peer)
            name = f"sdm {form.name}, B={rows}, gallery={72 * rows}, peak memory vs naive on cat"
            met.append(emit(name, "MiB", ours, peer, bar=0.3))
    return met


def bench_memory() -> list[bool]:
    met = []
    for rows, bar in ((64, 1.0), (256, 0.5), (1024, 0.25)):
        features, classes = torch.randn(rows, DIM), torch.arange(rows)
        ring = CrossBatchMemory(STEPS, rows, DIM)
        queue: deque[tuple[Tensor, Tensor]] = deque(maxlen=STEPS)
        counter = iter(range(10**9))

        def ours(ring=ring, counter=counter, features=features, classes=classes) -> object:
            for _ in range(20):
                ring.push(features, classes, next(counter))
                ring.view()
            return ring

        def peer(queue=queue, features=features, classes=classes) -> object:
            for _ in range(20):
                queue.append((features.clone(), classes.clone()))
                torch.cat([entry[0] for entry in queue]), torch.cat([entry[1] for entry in queue])
            return queue

        a, b = interleaved(ours, peer, 9)
        met.append(emit(f"memory push+view, rows={rows}", "ms", a * 50, b * 50, bar))
    return met


def in_own_process(part: str) -> bool:
    """Run one part where every tensor has its own mapping (glibc), so that a peak is what lives."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    return subprocess.run([sys.executable, __file__, part], env=env, check=False).returncode == 0


def main() -> int:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["sdm-memory"]:
        return 0 if all(bench_sdm_memory()) else 1
    met = [*bench_sdm_time(), *bench_memory(), in_own_process("sdm-memory")]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
