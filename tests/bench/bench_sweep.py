"""What a sweep costs and finds under Go/No-Go, against schedulers that can only stop a trial.

    OMP_NUM_THREADS=1 python tests/bench/bench_sweep.py              one draw, a minute or two
    OMP_NUM_THREADS=1 python tests/bench/bench_sweep.py --seeds 3    the published figures
    OMP_NUM_THREADS=1 python tests/bench/bench_sweep.py --short      half the trials

Twelve trials are drawn by seed and mixed: four with a fault planted in the real code or config,
four that learn badly, four around good settings. Every trial trains twice in the plain loop:

- observed: nobody judges, and the SDM weight rises by the calendar (first at the step at which
  Go/No-Go may start it, then a notch at every later date). Over these trajectories Ray's own
  schedulers are replayed, several trials at a time.
- live: Go/No-Go decides, so it rescales the SDM weight, cuts the head's rate and stops. "over" a
  scheduler means that this scheduler is replayed over the live trajectories, as `tune.base` does.

`best` is the best mean mAP among trials that came to their end. `noise` is the standard deviation
of that of the best observed trial, trained again with other seeds. Prints JSON lines, a trial, a
scheduler and a bar each, and exits with 1 if a bar is missed.
"""

import argparse
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.config import Config
from service.data.fitting import open_plan
from service.decisions import Action, Directive
from service.distributed import Distributed
from service.training.loop import train
from service.training.ports import Ports
from service.training.schedule import Schedule
from tests.faults import FAULTS
from tests.plants import Clock
from tests.relabel import shuffled
from tests.small import make_records, small_config

PEOPLE = 48
STEPS = 300
FIRST_LOOK = 60
SETTINGS = (
    f"train.max_steps={STEPS}",
    "log.health_every=20",
    "eval.after_training=true",
    "policy.window=30",
    f"policy.first_look={FIRST_LOOK}",
    "policy.no_go_from=90",
    "policy.final_look=150",
    "policy.undecided_until=300",
    "policy.rise_patience=30",
    "policy.collapse_patience=90",
    "loss.sdm.min_steps=60",
)
"""The policy's default steps times 0.3, in a run that is as much shorter."""

REPEATS = 2
"""Times that the best trial of a draw is trained again, for the noise."""
SLOTS = (2, 4)
"""Trials at a time in the replays."""


# -- trials ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """sort: faulty, poor or healthy. what: the fault or the weakness. overrides: of the config."""

    name: str
    sort: str
    what: str
    overrides: tuple[str, ...] = ()
    seed: int = 0


def draw_trials(seed: int, each: int) -> list[Trial]:
    """`each` trials of every sort, mixed."""
    rng = random.Random(seed)
    weak = [LARGE_SDM, *rng.sample([what for what in POOR if what != LARGE_SDM], each - 1)]
    faulty = [("faulty", what, good(rng)) for what in rng.sample(FAULTY, each)]
    poor = [("poor", what, (*good(rng), *POOR[what](rng))) for what in weak]
    healthy = [("healthy", "", good(rng)) for _ in range(each)]
    drawn = [*faulty, *poor, *healthy]
    rng.shuffle(drawn)
    return [Trial(f"{seed}-{i:02}", *trial, seed=seed) for i, trial in enumerate(drawn)]


def good(rng: random.Random) -> tuple[str, ...]:
    """Settings within a factor of two of good ones."""
    body = log_uniform(rng, 6e-4, 2e-3)
    return (
        f"optim.head_lr={log_uniform(rng, 2e-3, 6e-3):.3g}",
        f"optim.backbone_lr={body:.3g}",
        f"optim.patch_lr={body:.3g}",
        f"loss.label_smoothing={rng.uniform(0.0, 0.15):.3g}",
        f"loss.memory.steps={rng.randint(4, 8)}",
    )


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return low * (high / low) ** rng.random()


def large_sdm(rng: random.Random) -> tuple[str, ...]:
    """Every notch of either form is far too large."""
    first = log_uniform(rng, 20.0, 60.0)
    weights = ", ".join(f"{first * factor:.3g}" for factor in (1, 3, 10))
    return (f"loss.sdm.form={rng.choice(('ce', 'kl'))}", f"loss.sdm.weights=[{weights}]")


def body_rate(low: float, high: float) -> Callable[[random.Random], tuple[str, ...]]:
    def draw(rng: random.Random) -> tuple[str, ...]:
        rate = log_uniform(rng, low, high)
        return (f"optim.backbone_lr={rate:.3g}", f"optim.patch_lr={rate:.3g}")

    return draw


def heavy_augmentation(rng: random.Random) -> tuple[str, ...]:
    return ("augment.erase=1.0", f"augment.token_mask={rng.uniform(0.5, 0.7):.3g}", "augment.pad=8")


def heavy_decay(rng: random.Random) -> tuple[str, ...]:
    return (f"optim.weight_decay={log_uniform(rng, 10.0, 30.0):.3g}",)


LARGE_SDM = "SDM weight too large"
POOR = {
    LARGE_SDM: large_sdm,
    "body learns too slowly": body_rate(2e-5, 6e-5),
    "body learns too fast": body_rate(6e-3, 1.2e-2),
    "augmentation too heavy": heavy_augmentation,
    "weights decay too fast": heavy_decay,
}


# -- faults ------------------------------------------------------------------------------------

SHUFFLED = "labels shuffled"
FAULTY = (
    SHUFFLED,
    "head LR too small",
    "head not in the optimiser",
    "no gradient at the head",
    "features detached",
    "optimiser step skipped",
)
"""Names in the fault library of what shows from the first step and keeps a run from learning."""


@contextlib.contextmanager
def planted(trial: Trial) -> Iterator[tuple[str, ...]]:
    """The overrides that go with the trial's fault, whose code is planted; nothing where there is
    none, and for shuffled labels, which are data."""
    has_code = trial.sort == "faulty" and trial.what != SHUFFLED
    found = next(f for f in FAULTS if f.name == trial.what) if has_code else None
    with pytest.MonkeyPatch.context() as change:
        if found is not None:
            found.plant(change, Clock())
        yield found.overrides if found is not None else ()


# -- trajectories ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a trial did. reports: what it was compared by, in order. mean_ap: None if it was stopped
    or never evaluated. acts: `name=value` of the actions that Go/No-Go took, with their step."""

    trial: Trial
    reports: tuple[dict[str, float], ...]
    verdict: str
    cause: str
    mean_ap: float | None
    acts: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return int(self.reports[-1]["step"])


def run_trial(records: Path, trial: Trial, live: bool) -> Trajectory:
    """Trains the trial to its end, or until Go/No-Go stops it."""
    torch.set_num_threads(1)
    reports: list[dict[str, float]] = []
    acts: list[str] = []

    def report(values: dict[str, Any]) -> None:
        health, decision = values["health"], values["decision"]
        reports.append({key: health[key] for key in ("step", "ce_fraction", "top1")})
        for action in decision["actions"] if decision else ():
            acts.append(f"{action['name']}={action['value']:g}@{health['step']}")

    data = records.with_name("shuffled") if trial.what == SHUFFLED else records
    settings = (*SETTINGS, f"run.seed={trial.seed}", *trial.overrides)
    with planted(trial) as more, tempfile.TemporaryDirectory() as folder:
        config = small_config(data, (*settings, *more))
        poll = by_calendar(config)
        ports = Ports(report=report) if live else Ports(report=report, poll=poll, decides=False)
        outcome = train(config, Path(folder), Distributed.single(), ports)
    mean_ap = outcome.summary["mAP"]["mean"] if "mAP" in outcome.summary else None
    return Trajectory(trial, tuple(reports), outcome.verdict, outcome.cause, mean_ap, tuple(acts))


def by_calendar(config: Config) -> Callable[[int], Directive | None]:
    """The SDM weight rises at the earliest dates that Go/No-Go knows, whatever the run looks like;
    gives the directives one after the other, as the loop asks."""
    _, plan = open_plan(config, 1)
    schedule = Schedule.of(config, plan.steps_per_epoch)
    dates: list[int] = []
    for step in range(FIRST_LOOK, STEPS):
        gap = schedule.head_gap(step) if dates else 0
        if schedule.is_epoch_end(step) and step - (dates or [0])[-1] >= gap:
            dates.append(step)
    notches = config.loss.sdm.notches
    given = [
        Directive(i + 1, step + 1, (Action("sdm_weight", weight),), "by the calendar")
        for i, (step, weight) in enumerate(zip(dates, notches, strict=False))
    ]
    return lambda known: given[known] if known < len(given) else None


# -- replay ------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Running:
    """A trial as a Ray scheduler sees it; `done` reports of its trajectory have been told."""

    trial_id: str
    trajectory: Trajectory
    status: str = "PENDING"
    done: int = 0

    @property
    def steps(self) -> int:
        return int(self.trajectory.reports[self.done - 1]["step"]) if self.done else 0

    @property
    def is_finished(self) -> bool:
        """It came to its own end."""
        return self.done == len(self.trajectory.reports)


@dataclass(slots=True)
class Controller:
    """What the schedulers ask of Tune's controller."""

    trials: list[Running] = field(default_factory=list)

    def get_trials(self) -> list[Running]:
        return self.trials

    def get_live_trials(self) -> list[Running]:
        return [t for t in self.trials if t.status != "TERMINATED"]


def replay(
    scheduler: TrialScheduler, trajectories: Sequence[Trajectory], slots: int
) -> list[Running]:
    """The trials after the scheduler has seen their reports as if `slots` ran at a time, equally
    fast. A trial that is paused goes on where it was, which is more than a nested run can do."""
    tune = Controller([Running(t.trial.name, t) for t in trajectories])
    api: Any = scheduler
    for trial in tune.trials:
        api.on_trial_add(tune, trial)
    while tune.get_live_trials():
        running = [t for t in tune.trials if t.status == "RUNNING"]
        for _ in range(slots - len(running)):
            if (chosen := api.choose_trial_to_run(tune)) is not None:
                chosen.status = "RUNNING"
        for trial in [t for t in tune.trials if t.status == "RUNNING"]:
            result = dict(trial.trajectory.reports[trial.done])
            trial.done += 1
            answer = api.on_trial_result(tune, trial, result)
            if answer == TrialScheduler.STOP or trial.is_finished:
                trial.status = "TERMINATED"
                api.on_trial_complete(tune, trial, result)
            elif answer == TrialScheduler.PAUSE:
                trial.status = "PAUSED"
    return tune.trials


COMPARED = {"time_attr": "step", "metric": "ce_fraction", "mode": "min"}


def asha(grace: int, factor: float) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        **COMPARED,
        grace_period=grace,
        max_t=STEPS,
        reduction_factor=factor,
        stop_last_trials=False,
    )


STOP_ONLY: dict[str, Callable[[], TrialScheduler]] = {
    "FIFO": FIFOScheduler,
    "ASHA 60/3": lambda: asha(60, 3),
    "ASHA 60/4": lambda: asha(60, 4),
    "ASHA 40/3": lambda: asha(40, 3),
    "ASHA 30/3": lambda: asha(30, 3),
    "Median": lambda: MedianStoppingRule(**COMPARED, grace_period=60, min_samples_required=3),
}
"""ASHA by its first rung and reduction factor; the best of its settings is what ours is held to."""


# -- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one scheduler over one draw."""

    steps: int
    best: float
    faulty_stopped: int
    healthy_stopped: int


def figures(trials: Sequence[Running]) -> Figures:
    """A trial counts as stopped unless it came to its end and was evaluated."""
    stopped = [t for t in trials if not t.is_finished or t.trajectory.mean_ap is None]
    ended = [t.trajectory.mean_ap for t in trials if t not in stopped]
    return Figures(
        steps=sum(t.steps for t in trials),
        best=max((m for m in ended if m is not None), default=0.0),
        faulty_stopped=sum(t.trajectory.trial.sort == "faulty" for t in stopped),
        healthy_stopped=sum(t.trajectory.trial.sort == "healthy" for t in stopped),
    )


def judged(
    observed: Sequence[Trajectory], live: Sequence[Trajectory], slots: int
) -> dict[str, Figures]:
    """Figures by scheduler."""
    found = {name: figures(replay(new(), observed, slots)) for name, new in STOP_ONLY.items()}
    ours = {"FIFO": "ours"} | {n: f"ours over {n}" for n in STOP_ONLY if n != "FIFO"}
    return found | {
        ours[name]: figures(replay(new(), live, slots)) for name, new in STOP_ONLY.items()
    }


def total(found: Sequence[Figures]) -> Figures:
    """Over several draws: sums, and the mean of the best."""
    return Figures(
        steps=sum(f.steps for f in found),
        best=statistics.mean(f.best for f in found),
        faulty_stopped=sum(f.faulty_stopped for f in found),
        healthy_stopped=sum(f.healthy_stopped for f in found),
    )


def better_asha(found: dict[str, Figures], noise: float) -> str:
    """The fewest steps among the settings whose best is the highest, within noise."""
    names = [name for name in found if name.startswith("ASHA")]
    highest = max(found[name].best for name in names)
    return min(
        (name for name in names if found[name].best >= highest - noise),
        key=lambda name: found[name].steps,
    )


def bars(found: dict[str, Figures], num_faulty: int, noise: float) -> Iterator[dict[str, Any]]:
    ours, name = found["ours"], better_asha(found, noise)
    alone, over = found[name], found[f"ours over {name}"]
    name = name.replace(" ", "_")
    yield bar("ours_faulty_stopped==all", ours.faulty_stopped, num_faulty, is_floor=True)
    yield bar("ours_healthy_stopped==0", ours.healthy_stopped, 0)
    yield bar(f"ours_over_{name}_steps<={name}_steps", over.steps, alone.steps)
    floor = round(alone.best - noise, 4)
    yield bar(f"ours_over_{name}_best>={name}_best-noise", over.best, floor, is_floor=True)
    floor = round(found["FIFO"].best - noise, 4)
    yield bar("ours_best>=FIFO_best-noise", ours.best, floor, is_floor=True)


def bar(name: str, value: float, bound: float, *, is_floor: bool = False) -> dict[str, Any]:
    ok = value >= bound if is_floor else value <= bound
    return {"bench": "sweep", "bar": name, "value": round(value, 4), "bound": bound, "ok": ok}


def emit(**line: Any) -> None:
    print(json.dumps({"bench": "sweep", **line}, ensure_ascii=False), flush=True)


# -- the whole ---------------------------------------------------------------------------------


def run_all(
    pool: ProcessPoolExecutor, records: Path, jobs: Sequence[tuple[Trial, bool]]
) -> list[Trajectory]:
    """Every trial in a process of its own, in the order of `jobs`."""
    futures = [pool.submit(run_trial, records, trial, live) for trial, live in jobs]
    return [future.result() for future in futures]


def noise_of(
    pool: ProcessPoolExecutor, records: Path, bests: Sequence[Trajectory], repeats: int
) -> float:
    """Standard deviation of the best trials' mean mAP over run seeds, pooled over the draws."""
    again = [
        (replace(t.trial, seed=t.trial.seed + 1000 * (1 + i)), False)
        for t in bests
        for i in range(repeats)
    ]
    repeated = run_all(pool, records, again)
    groups = [
        [t.mean_ap or 0.0, *(r.mean_ap or 0.0 for r in repeated if r.trial.name == t.trial.name)]
        for t in bests
    ]
    return statistics.mean(statistics.variance(group) for group in groups) ** 0.5


def show_trials(observed: Sequence[Trajectory], live: Sequence[Trajectory]) -> None:
    for seen, ours in zip(observed, live, strict=True):
        emit(
            trial=seen.trial.name,
            sort=seen.trial.sort,
            what=seen.trial.what,
            observed_mAP=round(seen.mean_ap or 0.0, 4),
            observed_ce=round(seen.reports[-1]["ce_fraction"], 3),
            ours=ours.verdict,
            cause=ours.cause,
            steps=ours.steps,
            mAP=ours.mean_ap and round(ours.mean_ap, 4),
            acts=list(ours.acts),
        )


def show(by_seed: Sequence[dict[str, Figures]], slots: int) -> None:
    for name in by_seed[0]:
        each, whole = [f[name] for f in by_seed], total([f["FIFO"] for f in by_seed])
        f = total(each)
        emit(
            slots=slots,
            scheduler=name,
            steps=f.steps,
            share_of_FIFO=round(f.steps / whole.steps, 3),
            best_mAP=round(f.best, 4),
            faulty_stopped=f.faulty_stopped,
            healthy_stopped=f.healthy_stopped,
            steps_by_seed=[f.steps for f in each],
            best_by_seed=[round(f.best, 4) for f in each],
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=1, help="draws of trials")
    parser.add_argument("--short", action="store_true", help="two trials of each sort, not four")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    each = 2 if args.short else 4
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool,
    ):
        records = make_records(Path(folder), people=PEOPLE)
        shuffled(records, records.with_name("shuffled"))
        draws: list[tuple[list[Trajectory], list[Trajectory]]] = []
        for seed in range(args.seeds):
            trials = draw_trials(seed, each)
            ran = run_all(pool, records, [(t, live) for live in (False, True) for t in trials])
            observed, live = ran[: len(trials)], ran[len(trials) :]
            show_trials(observed, live)
            draws.append((observed, live))
        bests = [max(observed, key=lambda t: t.mean_ap or 0.0) for observed, _ in draws]
        noise = noise_of(pool, records, bests, REPEATS)
    emit(noise=round(noise, 4), of=[round(t.mean_ap or 0.0, 4) for t in bests])
    met: list[dict[str, Any]] = []
    for slots in SLOTS:
        by_seed = [judged(observed, live, slots) for observed, live in draws]
        show(by_seed, slots)
        found = {name: total([figures[name] for figures in by_seed]) for name in by_seed[0]}
        met += [line | {"slots": slots} for line in bars(found, each * args.seeds, noise)]
    for line in met:
        print(json.dumps(line), flush=True)
    return 0 if all(line["ok"] for line in met) else 1


if __name__ == "__main__":
    sys.exit(main())
