"""What Prometheus costs: telling in the loop, a scrape, and how many series there are.

    OMP_NUM_THREADS=1 python tests/bench/bench_export.py

Prints JSON lines; those with `bar` say the most a value may be. Exits with 1 if a bar is missed.
About a minute on two cores.

- `telling`: time inside the calls by which rank 0 tells the driver what happens (every step's
  progress, every journal event), over the time of the steps, in a plain run of the demo's config
  against a real control plane on Ray. `cpu` is that of the thread that trains; `wall` is what a
  busy machine makes of it.
- `hearing`: what the driver does with one run's news: its share of a core.
- `scrape`: `/metrics` over loopback with 8 trials and with 100, by a client in another process than
  the server, which is a real exporter's.
- `series`: of one trial with every line of the table, whatever the number of its workers, and of
  100 trials against `sample_limit` of deploy/prometheus/prometheus.yml.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import ray
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.distributed import Distributed
from service.orchestration.cluster import connected
from service.orchestration.control import ControlClient, ControlReader, start_control
from service.orchestration.monitor import Monitor
from service.telemetry.lines import LINES, PREFIX
from service.telemetry.series import Series, Server
from service.telemetry.trial import TrialSeries
from service.training.loop import Trainer
from service.training.ports import Ports
from tests.bench.timing import Clock, demo_config, run_folder, run_timed, timed
from tests.reports import CONFIG, HEALTHY, START, decision

STEPS = 200
WARM_UP = 20
SCRAPES = 50
ROOT = Path(__file__).parents[2]


# -- telling -----------------------------------------------------------------------------------


def bench_telling(folder: Path) -> list[bool]:
    """The loop tells in this process what a worker would tell in its own."""
    config = demo_config(folder, STEPS + WARM_UP)
    clocks: dict[str, Clock] = {}
    told = ((ControlClient, "tell"), (ControlClient, "report"))
    with connected(config.cluster), timed(told, clocks):
        control = start_control("bench")
        client = ControlClient(control, "main")
        client.report({"event": "workers", "world_size": 2})
        ports = Ports(
            poll=client.poll,
            event=client.report,
            progress=lambda step, total, line: client.tell(
                {"step": step, "total": total, "line": line}, at_once=step >= total
            ),
        )
        trainer = Trainer(config, run_folder(folder, "demo"), Distributed.single(), ports)
        whole = run_timed(trainer, clocks, warm_up=WARM_UP, steps=STEPS)
        hearing = heard_seconds(ControlReader(control))
    for name, clock in clocks.items():
        each = 1e6 * clock.cpu_s / max(clock.calls, 1)
        emit(part="telling", call=name, calls=clock.calls, us_a_call=round(each, 1))
    cpu, wall = (sum(getattr(c, kind) for c in clocks.values()) for kind in ("cpu_s", "wall_s"))
    emit(part="telling", step_ms=round(1e3 * whole.wall_s / STEPS, 2))
    emit(part="hearing", share_of_a_core=round(hearing / whole.wall_s, 6))
    return [
        bar("telling / step time, CPU", cpu / whole.cpu_s, 0.01, "share"),
        bar("telling / step time, wall", wall / whole.wall_s, 0.01, "share"),
    ]


def heard_seconds(reader: ControlReader) -> float:
    """CPU seconds in which the driver takes in a whole run's news, at once."""
    monitor = Monitor(CONFIG)
    begin = time.thread_time()
    monitor.look(reader)
    return time.thread_time() - begin


# -- scraping ----------------------------------------------------------------------------------


def full_series() -> TrialSeries:
    """A trial in whose snapshot every line of the table has a sample."""
    series = TrialSeries(CONFIG)
    series.start(START)
    series.step(200, 1000, now=1e9)
    kinds = dict.fromkeys(("vis", "nir", "cp", "sk", "text", "fused"), 5.0)
    series.health(type(HEALTHY)(**{**as_fields(HEALTHY), "ce_by_kind": kinds}))
    for verdict in ("WAIT", "GO", "RAISE", "HOLD", "ROLLBACK"):
        series.decision(decision(verdict, best=0.5, head_limit=21.0), now=1e9)
    series.steps({"count": 10, "images": 800.0, "seconds": 0.1, "data_wait_s": 0.0})
    series.checkpoint(200, now=1e9)
    series.error("non_finite", now=1e9)
    series.stopped(200)
    series.sink_failures({"tensorboard": 0, "mlflow": 0, "wandb": 0})
    return series


def as_fields(report: Any) -> dict[str, Any]:
    return {name: getattr(report, name) for name in type(report).__slots__}


CLIENT = """
import json, sys, time
from urllib.request import urlopen
times = []
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    with urlopen(sys.argv[1], timeout=30) as answer:
        answer.read()
    times.append(time.perf_counter() - begin)
print(json.dumps(times))
"""


def scrape_ms(trials: int) -> tuple[float, float, int]:
    """Median and largest time of a scrape, and how many samples it brings."""
    exported = Series()
    values = full_series().values
    for number in range(trials):
        exported.push("run-20260101-000000-abcd", f"trial_{number:05d}", values, 60)
    server = Server(exported, "127.0.0.1", 0)
    command = [sys.executable, "-c", CLIENT, server.address, str(SCRAPES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    with urlopen(server.address, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    server.close()
    times = [1e3 * t for t in json.loads(done.stdout)[5:]]
    return statistics.median(times), max(times), sum(line.startswith(PREFIX) for line in lines)


def bench_scrape() -> list[bool]:
    few, few_max, few_samples = scrape_ms(8)
    many, many_max, samples = scrape_ms(100)
    emit(part="scrape", trials=8, median_ms=round(few, 2), max_ms=round(few_max, 2))
    emit(part="scrape", trials=100, median_ms=round(many, 2), max_ms=round(many_max, 2))
    emit(part="series", lines=len(LINES), of_one_trial=few_samples / 8)
    settings = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    return [
        bar("scrape with 8 trials, median", few, 10.0, "ms"),
        bar("series of a trial", few_samples / 8, 128, "series"),
        bar("samples of 100 trials", samples, job["sample_limit"], "samples"),
    ]


# -- lines -------------------------------------------------------------------------------------


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "export", **line}), flush=True)


def bar(name: str, value: float, bound: float, unit: str) -> bool:
    emit(bar=bound, what=name, value=round(value, 5), unit=unit, ok=value <= bound)
    return value <= bound


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        met = [*bench_scrape(), *bench_telling(Path(folder))]
    ray.shutdown()
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
