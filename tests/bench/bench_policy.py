"""What watching a run costs: a decision over a full history, and all health calls in a real run.

    OMP_NUM_THREADS=1 python tests/bench/bench_policy.py

Prints JSON lines; those with `bar` say the most a value may be. Exits with 1 if a bar is missed.
About a minute on one core.

- `decide`: CPU time of single decisions on reports of real runs, and per report of a fold over a
  long journal.
- `health`: time spent in everything that is there for health lines and verdicts, over the time of
  the steps, in a plain run of the demo's config (its model, batch, periods and SDM) on one core. It
  is CPU time of the thread that trains, since a busy machine stretches wall time; `wall_share` is
  the same in wall time.
  The sums of a step's losses are taken inside the loss, beside the loss itself: `in_loss` says what
  they cost. Checkpoints are not health.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.bounds import Rules, crossed
from service.decisions import Decision, PolicyState, Verdict
from service.distributed import Distributed
from service.gonogo import decide
from service.health import Health, HealthReport
from service.losses.memory import CrossBatchMemory
from service.training import gauges, loop
from service.training.journal import Journal
from service.training.loop import Trainer
from service.training.meters import StepMeter
from service.training.ports import Ports
from tests.bench.timing import Clock, call_name, demo_config, run_folder, run_timed, timed
from tests.small import make_records, small_config

STEPS = 200
"""Of the demo's run, after WARM_UP steps that are not counted."""
WARM_UP = 20
LONG = 2000
"""Reports of the long journal."""

HEALTH_CALLS: tuple[tuple[Any, str], ...] = (
    (StepMeter, "add"),
    (StepMeter, "flush"),
    (Health, "add"),
    (Health, "report"),
    (HealthReport, "to_dict"),
    (Decision, "to_dict"),
    (loop, "read_share"),
    (loop, "read_before"),
    (loop, "read_gauges"),
    (loop, "decide"),
    (Journal, "append"),
)
"""All that a step does for health lines, verdicts and the journal; none calls another."""
INSIDE = ((CrossBatchMemory, "fingerprint"), (gauges, "_body_moved"))
"""Shown, but part of the calls above."""


# -- decide ------------------------------------------------------------------------------------


def real_reports(folder: Path) -> tuple[list[HealthReport], Rules]:
    """A small run that reports every step: GO, SDM notches that are too large, and rollbacks."""
    records = make_records(folder)
    found: list[HealthReport] = []
    settings = [
        "train.max_steps=400",
        "log.health_every=1",
        "loss.sdm.weights=[30,100]",
        "policy.rise_patience=20",
    ]
    config = small_config(records, settings)
    ports = Ports(report=lambda values: found.append(HealthReport.from_dict(values["health"])))
    loop.train(config, run_folder(folder, "small"), Distributed.single(), ports)
    return found, Rules.of(config)


def long_journal(reports: Sequence[HealthReport]) -> list[HealthReport]:
    """LONG reports: the real ones, then those of their second half again at rising steps."""
    journal, later = list(reports), reports[len(reports) // 2 :]
    while len(journal) < LONG:
        base = journal[-1].step - later[0].step + 1
        journal += [replace(r, step=r.step + base) for r in later]
    return [replace(r, total_steps=10 * LONG) for r in journal[:LONG]]


def crowded(reports: Sequence[HealthReport], rules: Rules) -> tuple[PolicyState, HealthReport]:
    """A run after GO with many bounds crossed, and nothing that ends it at once."""
    wrong = replace(
        reports[-1],
        total_steps=10 * LONG,
        ce_fraction=0.97,
        ce_slope=0.1,
        ce_swing=0.5,
        pair_coverage=0.5,
        rows_without_positive=0.5,
        feature_norm=99.0,
        head_norm=99.0,
        data_wait_share=0.9,
        throughput_ratio=0.1,
    )
    state = PolicyState(verdict=Verdict.GO, best=0.5, notch=1, notch_step=1, head_limit=1.0)
    known = crossed(state, wrong, rules)
    return replace(state, since=dict.fromkeys(known, wrong.step - 1)), wrong


def cpu_us(work: Callable[[], object]) -> float:
    begin = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - begin) / 1e3


def bench_decide(folder: Path) -> list[bool]:
    reports, rules = real_reports(folder)
    journal = long_journal(reports)
    state, micros, verdicts = PolicyState(), [], set[str]()
    for report in journal:
        begin = time.thread_time_ns()
        state, decision = decide(state, report, rules)
        micros.append((time.thread_time_ns() - begin) / 1e3)
        verdicts.add(str(decision.verdict))
    p99 = statistics.quantiles(micros, n=100)[98]
    emit(
        part="decide",
        reports=len(journal),
        verdicts=sorted(verdicts),
        median_us=round(statistics.median(micros), 1),
        max_us=round(max(micros), 1),
    )
    full, wrong = crowded(reports, rules)
    slow = [cpu_us(lambda: decide(full, wrong, rules)) for _ in range(LONG)]
    emit(part="decide", crossed=len(full.since), median_us=round(statistics.median(slow), 1))

    def fold() -> None:
        state = PolicyState()
        for report in journal:
            state, _ = decide(state, HealthReport.from_dict(report.to_dict()), rules)

    each = cpu_us(fold) / len(journal)
    slow_p99 = statistics.quantiles(slow, n=100)[98]
    return [
        bar("decide, p99 of single decisions", p99, 1000.0, "us"),
        bar("decide, p99 with most bounds crossed", slow_p99, 1000.0, "us"),
        bar(f"fold over a journal of {LONG}, read from dicts, per report", each, 1000.0, "us"),
    ]


# -- health in a run ---------------------------------------------------------------------------


def bench_health(folder: Path) -> list[bool]:
    config = demo_config(folder, STEPS + WARM_UP)
    clocks: dict[str, Clock] = {}
    with timed((*HEALTH_CALLS, *INSIDE), clocks):
        trainer = Trainer(config, run_folder(folder, "demo"), Distributed.single(), Ports())
        whole = run_timed(trainer, clocks, warm_up=WARM_UP, steps=STEPS)
    counted = [clocks[call_name(*call)] for call in HEALTH_CALLS]
    cpu_s, wall_s = sum(c.cpu_s for c in counted), sum(c.wall_s for c in counted)
    for name, clock in sorted(clocks.items(), key=lambda item: -item[1].cpu_s):
        emit(
            part="health",
            call=name,
            calls=clock.calls,
            us_a_call=round(1e6 * clock.cpu_s / max(clock.calls, 1), 1),
            share=round(clock.cpu_s / whole.cpu_s, 6),
        )
    report = trainer.newest
    assert report is not None
    assert report.sdm_weight > 0
    emit(
        part="health",
        step_cpu_ms=round(1e3 * whole.cpu_s / STEPS, 2),
        step_wall_ms=round(1e3 * whole.wall_s / STEPS, 2),
        wall_share=round(wall_s / whole.wall_s, 5),
        reports=clocks["Health.report"].calls,
        rows=trainer.parts.plan.ids_per_batch * config.sampler.rows_per_id,
    )
    emit(part="in_loss", share=round(sums_seconds(trainer) * STEPS / whole.cpu_s, 6))
    return [bar("health calls / step time", cpu_s / whole.cpu_s, 0.01, "share")]


def sums_seconds(trainer: Trainer) -> float:
    """Of the sums that only health reads, as `objective` takes them, for one batch's rows."""
    model = trainer.parts.model
    rows, classes = 100, model.classifier.out_features
    after_neck, labels = torch.randn(rows, model.backbone.dim), torch.arange(rows) % classes
    logits = torch.randn(rows, classes)

    def sums() -> None:
        ce = F.cross_entropy(logits, labels, reduction="none")
        top1 = (logits.argmax(dim=1) == labels).sum()
        values = [ce.sum(), top1, after_neck.norm(dim=1).sum()]
        by_kind = [part.sum() for part in ce.split(20)]
        torch.stack([v.detach().to(torch.float64) for v in (*values, *by_kind)])

    times: list[float] = []
    for _ in range(200):
        begin = time.thread_time()
        sums()
        times.append(time.thread_time() - begin)
    return statistics.median(times)


# -- lines -------------------------------------------------------------------------------------


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "policy", **line}), flush=True)


def bar(name: str, value: float, bound: float, unit: str) -> bool:
    emit(bar=bound, what=name, value=round(value, 5), unit=unit, ok=value <= bound)
    return value <= bound


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        met = [*bench_decide(Path(folder) / "small"), *bench_health(Path(folder) / "demo")]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
