"""What Ray costs the loop, and how long a run is away when one of its processes is killed.

    OMP_NUM_THREADS=1 python tests/bench/bench_operate.py

Prints JSON lines; those with `bar` say the least or the most a value may be. Exits with 1 if a bar
is missed. About twenty minutes on two cores. Names of parts, as words, run only these;
BENCH_BLOCKS and BENCH_STEPS make `rate` shorter, to see that it works.

- `rate`: steps a second of the demo's loop with one worker under Ray Train, on a cluster that the
  run starts itself, over those of the same loop under torchrun with one process. A block is one
  run of each and a second one of torchrun's, in turns; a step's seconds are the run's own, from its
  journal, without the first steps. The value is the median of the blocks' ratios, `spread` the
  least and the largest; `control` is the same of torchrun's second runs over its first: what the
  machine does to a ratio of equals.
- `submit`: seconds from `crossreid submit`, on a cluster that is up, to the first step.
- `resume`: seconds from `crossreid train --resume`, typed when nothing of a killed run is left, to
  the next step: the start of Ray, the workers', and reading the checkpoint. Files are still in the
  page cache.
- `away`: seconds from the kill of a rank, and of the driver with `--resume` typed at once, to the
  next step; the driver's hold the start of Ray.

The last three are medians, of small runs with two workers.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.config import Config
from service.errors import ExitCode
from service.settings import override
from service.training.journal import Event, read_journal
from tests.bench.timing import demo_config
from tests.chaos.campaign import CHECKPOINT_EVERY, SETTINGS, Campaign
from tests.chaos.command import Command
from tests.chaos.kills import Kill, Moment, Victim
from tests.ray.head import head
from tests.small import make_records, small_config

BLOCKS = int(os.environ.get("BENCH_BLOCKS", "5"))
STEPS = int(os.environ.get("BENCH_STEPS", "320"))
WARM_UP = 20
LOG_EVERY = 10
LEAST_RATE = 0.95
"""Of torchrun's steps a second."""
TRIES = 3
TOTAL = 200
"""Steps of the runs whose processes are killed."""
FEW = 20
"""Steps of the runs that are submitted."""
LOOK_S = 0.05
STALL_S = 300.0
"""Seconds in which a run starts and comes to its first checkpoint, also on a busy machine."""
LONG_S = 1800.0
"""Seconds in which a run ends."""


# -- rate --------------------------------------------------------------------------------------


def bench_rate(folder: Path) -> bool:
    """All sides train the same config; Ray tells its driver and its exporter on the way."""
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
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=1")
    sides = {"ray": (), "torchrun": torchrun, "control": torchrun}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for block in range(BLOCKS):
        # Each comes first, second and last in turn: a machine that slows down slows all.
        first = block % len(sides)
        for side in [*sides][first:] + [*sides][:first]:
            run = trained(folder, file, config, f"{side}-{block}", sides[side])
            rates[side].append(steps_per_second(read_journal(run)))
        emit(part="rate", block=block, **{side: round(rates[side][-1], 2) for side in sides})
    control, spread = ratio(rates["control"], rates["torchrun"])
    emit(part="rate", what="torchrun / torchrun", value=control, spread=spread)
    value, spread = ratio(rates["ray"], rates["torchrun"])
    emit(
        bar=LEAST_RATE,
        what="steps/s under Ray / under torchrun",
        value=value,
        spread=spread,
        control=control,
        ok=value >= LEAST_RATE,
    )
    return value >= LEAST_RATE


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, list[float]]:
    """Median, least and largest of the ratios of runs that ran next to each other."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return round(statistics.median(pairs), 3), [round(min(pairs), 3), round(max(pairs), 3)]


def trained(folder: Path, file: Path, config: Config, name: str, launcher: tuple[str, ...]) -> Path:
    """The folder of a run that has made all its steps, whatever its verdict on so few is."""
    words = ("train", str(file), "--run-id", name, *(("--no-ray",) if launcher else ()))
    command = Command(folder, folder, *words, launcher=launcher)
    try:
        code = command.wait(LONG_S)
    finally:
        command.end()
    run = Path(config.run.storage) / name
    made = [e["step"] for e in read_journal(run) if e["event"] == "steps"] if run.exists() else []
    if max(made, default=0) != config.train.max_steps:
        raise SystemExit(f"{name} ended with exit code {code}: {command.errors}")
    return run


def steps_per_second(journal: list[Event]) -> float:
    """Of the steps after the warm-up."""
    found = [e for e in journal if e["event"] == "steps" and e["step"] > WARM_UP]
    steps = sum(e["count"] for e in found)
    return steps / sum(e["seconds"] * e["count"] for e in found)


# -- resume ------------------------------------------------------------------------------------


def bench_resume(folder: Path) -> None:
    """One run, which is killed with all its processes and continued."""
    overrides = [*SETTINGS, f"train.max_steps={TOTAL}", f"run.storage={folder / 'runs'}"]
    file = folder / "config.yaml"
    file.write_text(small_config(make_records(folder), overrides).to_yaml())
    run = folder / "runs" / "cut"
    command = Command(folder, folder, "train", str(file), "--run-id", run.name)
    seconds, known = [], 0
    try:
        for _ in range(TRIES):
            awaited(command, run, "checkpoint", known)
            command.end()
            if left := command.left():
                raise SystemExit(f"processes of the killed run are left: {left}")
            known, began = len(read_journal(run)), time.time()
            command = Command(folder, folder, "train", str(file), "--resume", run.name)
            seconds.append(awaited(command, run, "steps", known)["time"] - began)
    finally:
        command.end()
    emit_median("resume", "seconds_to_next_step", seconds)


def awaited(command: Command, run: Path, kind: str, known: int) -> Event:
    """The first event of its kind in the run's journal beyond the `known` ones."""
    until = time.monotonic() + STALL_S
    while time.monotonic() < until and command.exit_code is None:
        journal = read_journal(run) if run.exists() else []
        if found := [event for event in journal[known:] if event["event"] == kind]:
            return found[0]
        time.sleep(LOOK_S)
    raise SystemExit(f"{command.name} did not come so far: {command.errors}")


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
        emit_median("away", "seconds_to_next_step", seconds, killed=victim)


# -- submit ------------------------------------------------------------------------------------


def bench_submit(folder: Path) -> None:
    """Runs one after the other, whatever their verdict on so few steps is; the first one's code is
    packed and sent, as that of all is."""
    overrides = [*SETTINGS, f"train.max_steps={FEW}", f"run.storage={folder / 'runs'}"]
    file = folder / "config.yaml"
    file.write_text(small_config(make_records(folder), overrides).to_yaml())
    seconds = []
    with head(folder / "head") as cluster:
        for number in range(TRIES):
            began = time.time()
            said = cluster.run("submit", "train", str(file), "--run-id", f"sent-{number}")
            if said.returncode not in (ExitCode.OK, ExitCode.NO_GO):
                raise SystemExit(f"submit ended with exit code {said.returncode}: {said.stderr}")
            steps = [
                e for e in read_journal(folder / "runs" / f"sent-{number}") if e["event"] == "steps"
            ]
            seconds.append(steps[0]["time"] - began)
    emit_median("submit", "seconds_to_first_step", seconds)


# -- lines -------------------------------------------------------------------------------------


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "operate", **line}), flush=True)


def emit_median(part: str, name: str, seconds: list[float], **more: Any) -> None:
    middle = round(statistics.median(seconds), 1)
    emit(part=part, **more, **{name: middle}, of=[round(value, 1) for value in seconds])


PARTS = {"rate": bench_rate, "submit": bench_submit, "resume": bench_resume, "away": bench_away}


def main(names: list[str]) -> int:
    """names: of the parts to run; all of them where there is none."""
    met = []
    with tempfile.TemporaryDirectory(prefix="operate-", ignore_cleanup_errors=True) as parent:
        for name in names or PARTS:
            folder = Path(parent) / name
            folder.mkdir()
            met.append(PARTS[name](folder))
    # None where there is no bar.
    return 1 if False in met else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
