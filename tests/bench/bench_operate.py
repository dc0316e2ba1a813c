"""What Ray costs the loop, and how long a run is away when one of its processes is killed.

    OMP_NUM_THREADS=1 python tests/bench/bench_operate.py

Prints JSON lines; those with `bar` say the least or the most a value may be. Exits with 1 if a bar
is missed. About seven minutes on two cores.

- `rate`: steps a second of the demo's loop with one worker under Ray Train, over those of the same
  loop under torchrun with one process. Runs of both take turns; a step's seconds are the run's own,
  from its journal, without the first steps. `spread`: least and largest ratio of two that ran next
  to each other.
- `submit`: seconds from `crossreid submit`, on a cluster that is up, to the first step.
- `away`: seconds from the kill of a rank, and of the driver with `--resume` typed at once, to the
  next step; the driver's hold the start of Ray. As with `submit`, medians, of small runs with two
  workers.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.config import Config
from service.settings import override
from service.training.journal import Event, read_journal
from tests.bench.timing import demo_config
from tests.chaos.campaign import CHECKPOINT_EVERY, SETTINGS, Campaign
from tests.chaos.command import Command
from tests.chaos.kills import Kill, Moment, Victim
from tests.ray.head import head
from tests.small import make_records, small_config

BLOCKS = 5
STEPS = 110
WARM_UP = 20
LOG_EVERY = 10
LEAST_RATE = 0.95
"""Of torchrun's steps a second."""
TRIES = 3
TOTAL = 200
"""Steps of the run whose processes are killed."""
FEW = 20
"""Steps of the runs that are submitted."""


# -- rate --------------------------------------------------------------------------------------


def bench_rate(folder: Path) -> list[bool]:
    """Both sides train the same config; Ray tells its driver and its exporter on the way."""
    config = override(
        demo_config(folder, STEPS + WARM_UP),
        [
            "cluster.num_workers=1",
            f"log.every={LOG_EVERY}",
            f"run.storage={folder / 'runs'}",
            "telemetry.port=0",
            "telemetry.linger_s=0",
        ],
    )
    file = folder / "config.yaml"
    file.write_text(config.to_yaml())
    sides = {"ray": (), "torchrun": ("-m", "torch.distributed.run", "--nproc-per-node=1")}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(BLOCKS):
        # Each goes first in turn: a machine that slows down slows both.
        for side in list(sides)[:: 1 if block % 2 else -1]:
            run = trained(folder, file, config, f"{side}-{block}", sides[side])
            rates[side].append(steps_per_second(read_journal(run)))
        emit(part="rate", block=block, **{side: round(rates[side][-1], 2) for side in sides})
    pairs = [a / b for a, b in zip(rates["ray"], rates["torchrun"], strict=True)]
    ratio = statistics.median(rates["ray"]) / statistics.median(rates["torchrun"])
    spread = [round(min(pairs), 3), round(max(pairs), 3)]
    return [floor("steps/s under Ray / under torchrun", ratio, LEAST_RATE, spread)]


def trained(folder: Path, file: Path, config: Config, name: str, launcher: tuple[str, ...]) -> Path:
    """The folder of a run that has ended."""
    words = ("train", str(file), "--run-id", name, *(("--no-ray",) if launcher else ()))
    command = Command(folder, folder, *words, launcher=launcher)
    try:
        if code := command.wait():
            raise SystemExit(f"{name} ended with exit code {code}: {command.errors}")
    finally:
        command.end()
    return Path(config.run.storage) / name


def steps_per_second(journal: list[Event]) -> float:
    """Of the steps after the warm-up."""
    found = [e for e in journal if e["event"] == "steps" and e["step"] > WARM_UP]
    steps = sum(e["count"] for e in found)
    return steps / sum(e["seconds"] * e["count"] for e in found)


# -- away --------------------------------------------------------------------------------------


def bench_away(folder: Path) -> None:
    """One run, in which ranks and drivers are killed in turn."""
    campaign = Campaign(folder, folder, TOTAL)
    victims = [Victim.RANK, Victim.DRIVER] * TRIES
    stretch = TOTAL // (len(victims) + 1)
    kills = [
        Kill(victim, Moment.STEP, (i + 1) * stretch + CHECKPOINT_EVERY // 2, 0.5, 0.0)
        for i, victim in enumerate(victims)
    ]
    struck, wrong = campaign.chase("chased", kills)
    if wrong:
        raise SystemExit("\n".join(wrong))
    for victim in (Victim.RANK, Victim.DRIVER):
        seconds = [k.back_s for k in struck if k.kill.victim is victim and k.back_s is not None]
        emit(
            part="away",
            killed=victim,
            seconds_to_next_step=round(statistics.median(seconds), 1),
            of=[round(value, 1) for value in seconds],
        )


# -- submit ------------------------------------------------------------------------------------


def bench_submit(folder: Path) -> None:
    """Runs one after the other; the first one's code is packed and sent, as that of all is."""
    overrides = [*SETTINGS, f"train.max_steps={FEW}", f"run.storage={folder / 'runs'}"]
    file = folder / "config.yaml"
    file.write_text(small_config(make_records(folder), overrides).to_yaml())
    seconds = []
    with head(folder / "head") as cluster:
        for number in range(TRIES):
            began = time.time()
            cluster.run("submit", "train", str(file), "--run-id", f"sent-{number}")
            steps = [
                e for e in read_journal(folder / "runs" / f"sent-{number}") if e["event"] == "steps"
            ]
            seconds.append(steps[0]["time"] - began)
    emit(
        part="submit",
        seconds_to_first_step=round(statistics.median(seconds), 1),
        of=[round(value, 1) for value in seconds],
    )


# -- lines -------------------------------------------------------------------------------------


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "operate", **line}), flush=True)


def floor(name: str, value: float, bound: float, spread: list[float]) -> bool:
    emit(bar=bound, what=name, value=round(value, 3), spread=spread, ok=value >= bound)
    return value >= bound


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="operate-", ignore_cleanup_errors=True) as parent:
        rate, submit, away = (Path(parent) / name for name in ("rate", "submit", "away"))
        for folder in (rate, submit, away):
            folder.mkdir()
        met = bench_rate(rate)
        bench_submit(submit)
        bench_away(away)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
